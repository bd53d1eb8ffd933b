"""The page to try the service: it loads nothing from elsewhere, and what data says can never become code."""

import json
import math
import re
from dataclasses import replace
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from serve.explanations import find_reasons, show_items
from serve.index import ItemIndex
from serve.recommender import Recommender
from serve.requests import InlineHistory, Request, parse_request
from tests.linear_bundle import DAY, FILMS, UNTIL, D, item_ids, vectors_of
from tests.live_service import asking, publish_served
from tests.served import ROOT, ask

SCRIPT = (ROOT / "serve" / "http" / "page.js").read_text(encoding="utf-8")
PAGE = (ROOT / "serve" / "http" / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("page"), FILMS)


@pytest.fixture(scope="module")
def app(bundle):
    with asking(bundle) as app:
        yield app


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_the_page_is_served_with_a_policy_that_lets_in_nothing_else(app, path, kind):
    reply = ask(app, "GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith(kind)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_has_no_code_in_it_and_nothing_from_elsewhere():
    assert re.findall(r"<script[^>]*>", PAGE) == ['<script src="/page.js" defer>']
    assert not re.search(r"\son\w+=|style=|<style|https?://", PAGE)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|https?://", SCRIPT)


def test_every_element_that_the_script_asks_for_is_there():
    for name in set(re.findall(r'byId\("([\w-]+)"\)', SCRIPT)):
        assert f'id="{name}"' in PAGE


def test_ids_beyond_the_numbers_of_the_page_stay_texts():
    assert ".json()" not in SCRIPT  # which rounds them
    (pattern,) = re.findall(r"const TOKEN = /(.*)/g;", SCRIPT)
    (whole,) = re.findall(r"const kept = \(token\) => /(.*)/\.test\(token\) && !Number\.isSafeInteger", SCRIPT)
    big = 2**53 + 1
    answer = {
        "a": big,
        "b": [-big, 7, 0.12345678901234567, 1e300, -1.5e-17],
        f'"{big}': f'\\ \\" {big} {{',
        "c": [2**53 - 1, None],
    }

    def keep(found):
        token = found[0]
        return f'"{token}"' if re.fullmatch(whole, token) and abs(int(token)) >= 2**53 else token

    kept = json.loads(re.sub(pattern, keep, json.dumps(answer)))
    assert kept == {**answer, "a": str(big), "b": [str(-big), *answer["b"][1:]]}


def cosine(one, other):
    return float(one @ other / (one @ one * (other @ other)) ** 0.5)


def test_an_explained_item_has_its_columns_and_the_nearest_of_the_history(app):
    ids = item_ids(FILMS)
    history = [3, 8, 11]
    body = {"history": [{"item_id": ids[row]} for row in history], "datetime": UNTIL + DAY, "k": 6, "explain": True}
    items = ask(app, "POST", "/v1/recommend", body).json["answers"][0]["items"]
    vectors = vectors_of(3)[:, :D].astype(float)
    for item in items:
        row = ids.index(item["item_id"])
        cosines = {old: cosine(vectors[row], vectors[old]) for old in history}
        nearest = max(cosines, key=cosines.get)
        assert item["because"] == {"item_id": ids[nearest], "cosine": pytest.approx(cosines[nearest], abs=1e-3)}
        assert item["columns"]["title"] == f"Title {row}"
        assert "item_id" not in item["columns"]


def test_without_a_history_there_is_no_because(app):
    items = ask(app, "POST", "/v1/recommend", {"k": 3, "explain": True}).json["answers"][0]["items"]
    assert [item["because"] for item in items] == [None] * 3


def test_nothing_is_explained_unasked(app):
    (item,) = ask(app, "POST", "/v1/recommend", {"k": 1}).json["answers"][0]["items"]
    assert set(item) == {"item_id", "score", "rank"}


def test_similar_items_show_their_columns_when_asked(app):
    ids = item_ids(FILMS)
    for item in ask(app, "POST", "/v1/similar", {"item_id": ids[0], "k": 3, "explain": True}).json["items"]:
        assert item["columns"]["title"] == f"Title {ids.index(item['item_id'])}"


def test_an_owned_item_is_its_own_reason(bundle):
    recommender, ids = Recommender.load(bundle), item_ids(FILMS)
    request = parse_request({"history": [{"item_id": ids[5]}, {"item_id": ids[2]}]}, FILMS)
    (reason,) = find_reasons(recommender, request, recommender.item_rows([ids[5]]))
    assert reason == {"item_id": ids[5], "cosine": 1.0}


def test_an_item_of_a_history_that_is_not_known_is_no_reason(bundle):
    recommender, ids = Recommender.load(bundle), item_ids(FILMS)
    last = recommender.item_rows([ids[-1]])
    for history, expected in (([999_999], None), ([999_999, ids[2], 999_998], ids[2])):
        (reason,) = find_reasons(recommender, Request(history=InlineHistory(history)), last)
        assert (reason and reason["item_id"]) == expected


def test_an_item_without_a_direction_is_as_near_to_all(bundle):
    """A vector of zeros has no cosine, and JSON no number that is none."""
    recommender, ids = Recommender.load(bundle), item_ids(FILMS)
    vectors = recommender.bundle.vectors.copy()
    vectors[5] = 0
    flat = Recommender(replace(recommender.bundle, index=ItemIndex.build(vectors)))
    for row, history in ((5, [2]), (2, [5])):
        request = Request(history=InlineHistory([ids[old] for old in history]))
        assert find_reasons(flat, request, np.array([row])) == [{"item_id": ids[history[0]], "cosine": 0.0}]


def test_of_a_long_history_the_latest_events_are_compared(bundle):
    recommender, ids = Recommender.load(bundle), item_ids(FILMS)
    vectors = vectors_of(3)[:, :D].astype(float)
    rows = recommender.item_rows([ids[5], ids[2]])
    for history, compared in (([5, *[2] * 500], [2]), ([5, *[2] * 499], [2, 5])):
        request = Request(history=InlineHistory([ids[row] for row in history]))
        for row, reason in zip((5, 2), find_reasons(recommender, request, rows), strict=True):
            nearest = max(compared, key=lambda old: cosine(vectors[row], vectors[old]))
            expected = round(cosine(vectors[row], vectors[nearest]), 3)
            assert reason == {"item_id": ids[nearest], "cosine": pytest.approx(expected, abs=1e-3)}


def test_columns_are_shown_as_json_can_say_them_and_vectors_are_not(bundle):
    recommender = Recommender.load(bundle)
    items = recommender.bundle.items
    table = pa.table({"item_id": items.column("item_id")})
    more = {
        "price": pa.array([math.nan, math.inf, 2.5], pa.float64()),
        "repeat_rate": pa.array([0.5, 0.5, 0.5], pa.float32()),
        "day": pa.array([date(2020, 1, 2), None, date(2021, 3, 4)]),
        "in_stock": pa.array([True, None, False]),
        "tags": pa.array([["a", "b"], [], None]),
        "picture": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
        "sound": pa.array([[1.0], [], None], pa.list_(pa.float64())),
        "smell": pa.array([[1.0], [], None], pa.large_list(pa.float32())),
    }
    for name, values in more.items():
        rest = pa.nulls(len(items) - 3, values.type)
        table = table.append_column(name, pa.chunked_array([values, rest]))
    shown = show_items(Recommender(replace(recommender.bundle, items=table)), np.array([2, 0, 1]))
    assert shown == [
        {"price": 2.5, "day": "2021-03-04", "in_stock": False, "tags": None},
        {"price": None, "day": "2020-01-02", "in_stock": True, "tags": ["a", "b"]},
        {"price": None, "day": None, "in_stock": None, "tags": []},
    ]
