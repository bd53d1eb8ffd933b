from __future__ import annotations

import json

import numpy as np
import pytest
from pipeline.golden import draw_requests, write_golden
from serve.errors import BundleError
from serve.recommendations import Answer
from serve.recommender import replay
from serve.requests import parse_request
from tests.tiny_bundle import SCHEMA, item_ids

REFERENCE = [
    ("a", 5.0),
    ("b", 4.0),
    ("c", 3.0),
    ("d", 2.9999),
    ("e", 2.5),
    ("f", 1.0),
    ("g", 0.5),
]


def answer_from(pairs):
    def answer(requests, k):
        ids, scores = map(np.array, zip(*pairs[:k], strict=True))
        ranks = np.arange(1, len(ids) + 1)
        return [Answer(None, ids, scores.astype(np.float32), ranks, 0)] * len(requests)

    return answer


@pytest.fixture
def content(tmp_path):
    write_golden(
        tmp_path / "golden.json",
        [{"history": []}, {"features": {}}],
        answer_from(REFERENCE),
        k=3,
    )
    return (tmp_path / "golden.json").read_bytes()


def test_the_file_holds_requests_with_lists_longer_than_k(content):
    first, second = json.loads(content)
    assert (first["request"], second["request"]) == ({"history": []}, {"features": {}})
    assert (first["k"], first["item_ids"]) == (3, ["a", "b", "c", "d", "e", "f"])
    np.testing.assert_allclose(first["scores"], [5, 4, 3, 2.9999, 2.5, 1])


@pytest.mark.parametrize(
    "pairs",
    [
        REFERENCE,
        [("b", 4.0), ("a", 5.0), ("c", 3.0)],
        [("a", 5.0), ("b", 4.0), ("d", 3.0)],
        [("a", 5.0001), ("b", 4.0), ("c", 2.9999)],
    ],
    ids=["the same", "another order", "an equally good item", "other last digits"],
)
def test_equally_good_lists_pass(content, pairs):
    assert replay(content, answer_from(pairs)) == 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", 5.0), ("b", 4.0), ("e", 3.0)], "item 'e' scores 3; expected 2.5"),
        ([("a", 5.0), ("b", 4.0), ("z", 3.0)], "item 'z' scores"),
        ([("a", 5.0), ("a", 5.0), ("b", 4.0)], "2 different items of 3; expected 3"),
        ([("a", 5.0), ("b", 4.0)], "2 different items of 2; expected 3"),
        ([("a", 5.01), ("b", 4.0), ("c", 3.0)], "item 'a' scores 5.01; expected 5"),
        ([("a", float("nan")), ("b", 4.0), ("c", 3.0)], "item 'a' scores nan"),
    ],
)
def test_a_worse_list_is_refused(content, pairs, message):
    with pytest.raises(BundleError, match=rf"golden\.json, request 0: {message}"):
        replay(content, answer_from(pairs))


@pytest.mark.parametrize("kth", [0.01, -0.3, 3.0, 700.0, -700.0])
def test_scores_may_be_off_by_more_where_they_are_large(tmp_path, kth):
    most = 2e-4 * max(1, abs(kth))
    first, second = ("a", kth + 2), ("b", kth + 1)
    reference = [
        first,
        second,
        ("c", kth),
        ("d", kth - 0.5 * most),
        ("e", kth - 1.5 * most),
        ("f", kth - 3),
    ]
    write_golden(tmp_path / "golden.json", [{}], answer_from(reference), k=3)
    content = (tmp_path / "golden.json").read_bytes()
    for pairs in (
        [first, second, reference[3]],
        [("a", kth + 2 + 0.5 * most), *reference[1:]],
    ):
        assert replay(content, answer_from(pairs)) == 1
    for pairs in (
        [first, second, reference[4]],
        [("a", kth + 2 + 1.5 * most), *reference[1:]],
    ):
        with pytest.raises(
            BundleError,
            match="item 'e' scores" if pairs[0] == first else "item 'a' scores",
        ):
            replay(content, answer_from(pairs))


@pytest.mark.parametrize("content", [b"[]", b""])
def test_no_request_is_no_proof(content):
    with pytest.raises(BundleError, match=r"golden\.json .* holds no request"):
        replay(content, answer_from(REFERENCE))


def test_a_short_catalogue_has_short_lists(tmp_path):
    write_golden(tmp_path / "golden.json", [{"history": []}], answer_from(REFERENCE[:2]), k=3)
    assert replay((tmp_path / "golden.json").read_bytes(), answer_from(REFERENCE[:2])) == 1


def test_a_score_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_golden(
            tmp_path / "golden.json",
            [{"history": []}],
            answer_from([("a", float("inf"))]),
            k=1,
        )
    assert list(tmp_path.iterdir()) == []


def test_drawn_requests_are_valid_of_every_kind_and_hold_only_catalogue_ids_and_vocabulary_values():
    requests = draw_requests(SCHEMA, item_ids(), 43, np.random.default_rng(7))
    parsed = [parse_request(request, SCHEMA) for request in requests]
    assert {len(request.history or ()) for request in parsed} == set(range(21))
    for part in ("features", "context", "datetime"):
        assert {getattr(request, part) is None for request in parsed} == {True, False}
    assert all(request.user_id is None for request in parsed)
    requests = json.loads(json.dumps(requests))
    events = [event for request in requests for event in request["history"]]
    assert {event["item_id"] for event in events} <= set(item_ids())
    assert {event["event"] for event in events} == {"view", "buy"}
    assert {request["features"]["gender"] for request in requests if "features" in request} == {
        "f",
        "m",
    }
    assert {request["context"]["device"] for request in requests if "context" in request} == {
        "phone",
        "web",
    }
    assert all("hour" not in request.get("context", {}) for request in requests)


def test_drawn_requests_are_a_function_of_the_seed():
    first, again, other = (
        draw_requests(SCHEMA, item_ids(), 13, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert first == again != other
