import io
import json

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import clean
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.data_report import print_heavy_users, print_report, report_data
from datamodules.leaks import Leak
from datamodules.splits import split_interactions
from datamodules.tables import tables_from_frames
from rich.console import Console

DAY = 86400
START = 1512086400


@pytest.fixture
def report():
    """Three users; the last of nine days is test, the one before validation."""
    config = DataConfig(
        users=TableConfig(),
        items=TableConfig(),
        features=FeaturesConfig(user={"town": "categorical"}),
        split=SplitConfig("time", "2017-12-09"),
        max_reject_rate=0.5,
        unlisted="list",
    )
    rows = [
        (1, "a", 0),
        (1, "a", 0),
        (1, "b", 1),
        (1, "a", 2),
        (2, "a", 3),
        (2, "c", 7),
        (None, "a", 4),
    ]
    rows += [
        (1, "a", 8),
        (1, "d", 8),
        (2, "e", 8.5),
        (3, "f", 9),
        (3, "f", 9),
        (3, "f", 8.75),
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "day"])
    events["datetime"] = (START + events.pop("day") * DAY).astype("int64")
    events["till"] = 5
    users = pd.DataFrame({"user_id": [1, 2, 3, 4], "town": ["x", None, None, None]})
    items = pd.DataFrame({"item_id": ["a", "b", "c", "d"]})
    tables, rejects = tables_from_frames(config, events, users, items)
    tables, cleaning = clean(tables)
    return report_data(
        tables,
        rejects,
        cleaning,
        split_interactions(tables.interactions, config, 0),
        config,
        (),
    )


def test_the_report_counts(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["counts"] == {
        "interactions": 10,
        "users": 3,
        "items": 6,
        "users_table": 4,
        "items_table": 4,
        "train": 4,
        "validation": 1,
        "test": 5,
    }
    assert report["time"] == {
        "first": "2017-12-01T00:00:00Z",
        "last": "2017-12-10T00:00:00Z",
        "days": 9.0,
    }
    assert report["split"]["test_at"] == "2017-12-09T00:00:00Z"
    assert report["split"]["validation_at"] == "2017-12-08T00:00:00Z"
    assert report["rejected"] == {"missing": 1}
    assert report["records"] == {"interactions": 13, "users": 4, "items": 4}
    assert report["dropped_columns"] == {
        "interactions": ["till"],
        "users": [],
        "items": [],
    }
    assert report["missing"]["users"] == {"user_id": 0.0, "town": 0.75}
    assert report["cleaning"]["duplicate_events"] == 2
    assert report["unlisted"] == {"users": 0.0, "items": 2 / 6}  # e and f


def test_the_report_says_what_the_test_cannot_know(report):
    # the test pairs: (1, a), (1, d), (2, e), (3, f); only the first is known, and d is in the items table
    assert report["cold"] == {
        "test_users_unseen": pytest.approx(1 / 3),
        "test_items_unseen": pytest.approx(3 / 4),
        "test_pairs_outside_catalogue": pytest.approx(2 / 4),
        "test_pairs_owned_before": pytest.approx(1 / 4),
    }
    assert report["repeat_share"] == pytest.approx(
        3 / 10
    )  # a twice again by user 1, f once again by user 3


def test_the_long_tail_is_that_of_a_naive_count():
    rng = np.random.default_rng(0)
    counts = rng.zipf(1.5, 37).clip(max=60)
    events = pd.DataFrame(
        {
            "user_id": np.arange(counts.sum()) % 11,
            "item_id": np.repeat(np.arange(37), counts),
        }
    )
    config = DataConfig(split=SplitConfig("none"))
    tables, rejects = tables_from_frames(config, events)
    _, cleaning = clean(tables)
    report = report_data(
        tables, rejects, cleaning, split_interactions(events, config, 0), config, ()
    )
    gini = np.abs(counts[:, None] - counts[None]).sum() / (2 * 37 * counts.sum())
    assert report["long_tail"]["gini"] == pytest.approx(gini)
    assert report["long_tail"]["top_10%"] == pytest.approx(
        np.sort(counts)[-4:].sum() / counts.sum()
    )
    assert report["long_tail"]["top_1%"] == pytest.approx(counts.max() / counts.sum())
    lengths = np.bincount(events["user_id"])
    assert report["history_length"]["p50"] == np.median(lengths)
    assert report["history_length"]["p100"] == lengths.max()
    assert report["time"] is None
    assert report["unlisted"] == {}
    assert report["cold"]["test_users_unseen"] is None
    print_report(report, Console(file=io.StringIO()))


def test_much_of_the_test_that_is_owned_and_many_ties_are_said():
    events = pd.DataFrame(
        {
            "user_id": [1, 1, 1, 2, 2],
            "item_id": ["a", "b", "a", "a", "b"],
            "datetime": np.array([1, 1, 9, 3, 4]) + START,
        }
    )
    tables, rejects = tables_from_frames(DataConfig(), events)
    _, cleaning = clean(tables)

    def hints(config: DataConfig) -> list[str]:
        return report_data(
            tables, rejects, cleaning, split_interactions(events, config, 0), config, ()
        )["hints"]

    ties, owned = hints(DataConfig())
    assert ties.startswith("40.0% of events")
    assert owned.startswith("50.0% of the tested pairs")
    assert hints(DataConfig(ties="simultaneous", repeats="allow")) == []


@pytest.mark.parametrize(("unlisted", "n_items", "share"), [("exclude", 2, 1 / 2), ("list", 0, 0)])
def test_the_report_counts_what_cannot_be_recommended(unlisted, n_items, share):
    """Of a, b and c the items table has b; a and b are tested."""
    events = pd.DataFrame(
        {"user_id": [1, 1, 1, 2, 2], "item_id": ["a", "c", "b", "c", "a"], "datetime": START}
    )
    events["datetime"] += np.arange(5)
    config = DataConfig(items=TableConfig(), unlisted=unlisted)
    tables, rejects = tables_from_frames(config, events, None, pd.DataFrame({"item_id": ["b"]}))
    _, cleaning = clean(tables)
    split = split_interactions(tables.interactions, config, 0)
    assert sorted(split.test["item_id"]) == ["a", "b"]
    report = report_data(tables, rejects, cleaning, split, config, ())
    assert report["cold"]["test_pairs_outside_catalogue"] == share
    hints = [hint for hint in report["hints"] if "data.unlisted" in hint]
    assert [int(hint.split()[0]) for hint in hints] == [n_items] * (n_items > 0)


def test_leaks_are_listed_and_printed(report):
    leak = Leak(
        "fact of the item",
        "interactions.cost",
        0.75,
        "interactions.cost[0] is a fact of the item",
    )
    tables, rejects = tables_from_frames(
        DataConfig(), pd.DataFrame({"user_id": [1, 1, 2], "item_id": list("aba")})
    )
    _, cleaning = clean(tables)
    split = split_interactions(tables.interactions, DataConfig(), 0)
    found = report_data(tables, rejects, cleaning, split, DataConfig(), [leak])
    assert found["leaks"] == [
        {
            "kind": leak.kind,
            "column": "interactions.cost",
            "power": 0.75,
            "message": leak.message,
        }
    ]
    text = io.StringIO()
    print_report(found, Console(file=text, width=110))
    print_report(report, Console(file=text, width=110))
    assert leak.message in text.getvalue()
    assert "none found" in text.getvalue()


def test_the_printed_report_is_short(report):
    text = io.StringIO()
    print_report(report, Console(file=text, width=110))
    lines = text.getvalue().splitlines()
    assert len(lines) <= 26  # the alarm of two items without a row takes two
    for part in (
        "interactions 10, users 3",
        "missing 1",
        "interactions: till",
        "users.town 0.75",
        "duplicate_events 2",
    ):
        assert any(part in line for line in lines), part


def report_hints(events, items=None, config=None) -> list[str]:
    config = config or DataConfig()
    tables, rejects = tables_from_frames(config, events, items=items)
    tables, cleaning = clean(tables)
    split = split_interactions(tables.interactions, config, 0)
    return report_data(tables, rejects, cleaning, split, config, ())["hints"]


@pytest.mark.parametrize(
    ("ids", "theirs", "pair"),
    [
        ("KAF 0051", "KAF0051", ("'KAF 0051'", "'KAF0051'")),
        ("kaf-7", "KAF-7", ("'kaf-7'", "'KAF-7'")),
        ("0012", "12", ("'0012'", "'12'")),
        ("x", "z", ("'x'", "'b'")),
    ],
)
def test_items_without_a_row_are_said_with_ids_that_look_alike(ids, theirs, pair):
    events = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": ["b", "c", "d", ids]})
    items = pd.DataFrame({"item_id": ["b", "c", "d", theirs]})
    hint = next(hint for hint in report_hints(events, items) if "without a row" in hint)
    assert "25%" in hint
    assert all(shown in hint for shown in pair)
    assert not any("without a row" in hint for hint in report_hints(events, events))


@pytest.mark.parametrize(
    ("words", "n_flags", "is_advised"),
    [
        (("0", "1"), 5, True),
        ((False, True), 7, True),
        (("No", "yes"), 5, True),
        ((None, "t"), 5, True),
        (("0", "1"), 4, False),
        (("m", "f"), 7, False),
        (("0", "1", "2"), 7, False),
        ((None, None), 7, False),
    ],
)
def test_many_columns_of_true_and_false_are_better_one_list_of_names(words, n_flags, is_advised):
    names = [f"has_{number}" for number in range(n_flags)]
    config = DataConfig(
        items=TableConfig(),
        features=FeaturesConfig(item=dict.fromkeys(names, "categorical")),
        split=SplitConfig("none"),
    )
    events = pd.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "c"]})
    items = pd.DataFrame({"item_id": ["a", "b", "c"]})
    for name in names:
        items[name] = pd.Series((*words, *words)[:3], dtype=object)
    advice = [hint for hint in report_hints(events, items, config) if "multi_categorical" in hint]
    assert len(advice) == is_advised
    assert all(f"{n_flags} columns of items" in line and "has_0" in line for line in advice)


def test_users_with_extreme_counts_are_named_on_the_console():
    users = np.repeat([*(f"p{n}" for n in range(60)), "K17", "K18"], [3] * 60 + [300, 90])
    events = pd.DataFrame({"user_id": users, "item_id": np.arange(len(users))})
    text = io.StringIO()
    print_heavy_users(events, Console(file=text))
    assert "'K17': 300" in text.getvalue()
    assert 'exclude_users: ["K17", "K18"] in data' in text.getvalue()
    text = io.StringIO()
    print_heavy_users(events[~events["user_id"].isin(["K17", "K18"])], Console(file=text))
    assert text.getvalue() == ""
