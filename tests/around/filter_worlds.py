"""The two worlds of `linear_bundle` with more item columns, and expressions that say in Python what they mean."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
from hypothesis import strategies as st
from serve.bundle import Bundle
from serve.catalogue import Catalogue, Columns
from serve.kinds import Feature
from serve.recommender import Recommender
from tests.linear_bundle import SEED, WORLDS, N, item_ids, item_values, publish_linear
from tests.linear_profiles import known_users, make_profiles

GENRES = ("drama", "comedy", "sci-fi")


def more_values(row: int) -> dict:
    """Return columns that no tower reads; some are missing, and `genres` has many values."""
    genres = [genre for place, genre in enumerate(GENRES) if (row + 1) >> place & 1]
    return {
        "genres": "|".join(genres) or None,
        "fresh": None if row % 6 == 5 else row % 3 == 0,
        "stock": None if row % 8 == 7 else row % 4 - 1,
        "odd name": f"it's {row % 2}",
    }


def read_items(schema) -> list[dict]:
    """Return each item as a mapping of plain values; `genres` is a list."""
    items = []
    for row, item_id in enumerate(item_ids(schema)):
        item = {"item_id": item_id, **item_values(row), **more_values(row)}
        items.append(item | {"genres": item["genres"].split("|") if item["genres"] else []})
    return items


def make_recommender(folder, world: str) -> Recommender:
    bundle = Bundle.load(publish_linear(folder / world, WORLDS[world], SEED))
    table = bundle.items
    for name in more_values(0):
        table = table.append_column(name, pa.array([more_values(row)[name] for row in range(N)]))
    features = (
        *WORLDS[world].item_features,
        Feature("genres", "multi_categorical", "genres", GENRES),
    )
    wider = replace(bundle, items=table, schema=replace(bundle.schema, item_features=features))
    recommender = Recommender(bundle, make_profiles(WORLDS[world], known_users(WORLDS[world])))
    recommender.bundle = wider  # with a feature that the item tower does not read
    catalogue = Catalogue.of_items(table, bundle.index, wider.schema)
    recommender._set_catalogue(catalogue, Columns(catalogue.table, features))
    return recommender


def quote(value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower()


COMPARE = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
VALUES = {
    "price": st.sampled_from([0, 1, 2.0, 3.0, 7 / 3, 5, 100, -1]),
    "stock": st.sampled_from([-1, 0, 1, 2, 1.5, 2.0, 10**30]),
    "department": st.sampled_from(["dairy", "meat", "fruit", "none"]),
    "brand": st.sampled_from(["x", "y"]),
    "odd name": st.sampled_from(["it's 0", "it's 1", "its"]),
    "fresh": st.booleans(),
}


def meets(item: dict, column: str, test) -> bool:
    return item[column] is not None and test(item[column])


@st.composite
def comparisons(draw):
    column = draw(st.sampled_from(sorted(VALUES)))
    sign = draw(
        st.sampled_from(sorted(COMPARE) if column in ("price", "stock") else ["=", "==", "!="])
    )
    value = draw(VALUES[column])
    name = f"`{column}`" if " " in column else column
    return f"{name} {sign} {quote(value)}", lambda item: meets(
        item, column, lambda got: COMPARE[sign](got, value)
    )


@st.composite
def memberships(draw):
    column, keyword = (
        draw(st.sampled_from(sorted(VALUES))),
        draw(st.sampled_from(["in", "not in", "IN", "NOT IN"])),
    )
    values = draw(st.lists(VALUES[column], max_size=3))
    is_in = keyword.lower() == "in"
    text = f"`{column}` {keyword} [{', '.join(map(quote, values))}]"
    return text, lambda item: meets(item, column, lambda got: (got in values) == is_in)


@st.composite
def genre_tests(draw):
    values = draw(st.lists(st.sampled_from([*GENRES, "western"]), min_size=1, max_size=2))
    forms = {
        f"genres in [{', '.join(map(quote, values))}]": lambda item: bool(
            set(item["genres"]) & set(values)
        ),
        f"genres = {quote(values[0])}": lambda item: values[0] in item["genres"],
        f"genres != {quote(values[0])}": lambda item: (
            bool(item["genres"]) and values[0] not in item["genres"]
        ),
    }
    return draw(st.sampled_from(sorted(forms.items(), key=lambda form: form[0])))


FLAGS = st.just(("fresh", lambda item: item["fresh"] is True))


def join(parts):
    (left, is_left), (right, is_right) = parts
    return st.sampled_from(
        [
            (f"({left}) and ({right})", lambda item: is_left(item) and is_right(item)),
            (f"({left} OR ({right}))", lambda item: is_left(item) or is_right(item)),
            (f"not ({left})", lambda item: not is_left(item)),
        ]
    )


def expressions():
    """Draw a text and what it says of an item."""
    leaves = comparisons() | memberships() | genre_tests() | FLAGS
    return st.recursive(leaves, lambda inner: st.tuples(inner, inner).flatmap(join), max_leaves=4)
