"""Answers that an earlier release gave with the same weights: a trained bundle, requests in order, and their answers.

`ordered.zip` holds a bundle and its profiles: 320 users and 230 items drawn at random, every kind of feature, event
types, weights and next-item weights. `ordered.json` holds one step a line. A change of the bundle's format converts
the zip; a change of an answer needs a reason in the CHANGELOG.
"""

import itertools
import json
import zipfile
from pathlib import Path

import pytest
from serve.recommender import Recommender
from tests.served import serving

HERE = Path(__file__).parent
TOLERANCE = 2e-5  # of a score, relative above 1: other machines round otherwise


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    with zipfile.ZipFile(HERE / "ordered.zip") as archive:
        archive.extractall(folder)
    return folder / "bundle"


@pytest.fixture(scope="module")
def steps():
    return json.loads((HERE / "ordered.json").read_text())


def is_close(expected, found):
    return abs(expected - found) <= TOLERANCE * max(1.0, abs(expected))


def check_list(expected, found):
    """Compare place by place; items whose scores are equal but for rounding may change places."""
    name = "cosine" if expected and "cosine" in expected[0] else "score"
    assert len(found) == len(expected)
    assert all(is_close(old[name], new[name]) for old, new in zip(expected, found, strict=True))
    scores = {item["item_id"]: item for item in found}
    for item in expected:
        if item["item_id"] in scores:
            assert is_close(item[name], scores[item["item_id"]][name])
        else:
            assert is_close(item[name], expected[-1][name])


def check(expected, found):
    """Compare answers; texts, ranks and columns are not kept."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key == "items":
                check_list(value, found[key])
            elif key not in ("columns", "because"):
                check(value, found[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for old, new in zip(expected, found, strict=True):
            check(old, new)
    else:
        assert found == expected


def ask(server, step):
    """Ask over HTTP; return the status and the answer."""
    body = step["raw"].encode() if "raw" in step else step.get("body")
    reply = server.ask(step["method"], step["path"], body, step.get("headers"))
    return reply.status, json.loads(reply.content or b"null")


def test_every_step_over_http_is_answered_as_before(bundle, steps, tmp_path):
    ours = [step for step in steps if step["do"] in ("http", "restart")]
    assert len(ours) > 20
    starts = [
        0,
        *(place + 1 for place, step in enumerate(ours) if step["do"] == "restart"),
        len(ours) + 1,
    ]
    for first, end in itertools.pairwise(starts):  # between them the service ends and starts again
        with serving(
            "--bundle",
            bundle,
            "--state",
            tmp_path / "state",
            "--retention-days",
            "36000",
        ) as server:
            for step in ours[first : end - 1]:
                status, answer = ask(server, step)
                assert status == step.get("status", 200), step
                if status == 200:
                    check(step["answer"], answer)
            assert server.end() == 0


def test_every_step_in_the_process_is_answered_as_before(bundle, steps):
    recommender = Recommender.load(bundle)
    assert {"similar", "recommend"} <= {step["do"] for step in steps}
    for step in steps:
        if step["do"] == "similar":
            ids, cosines = recommender.similar_items(step["item_id"], step["k"])
            pairs = zip(ids.tolist(), cosines.tolist(), strict=True)
            check(
                step["answer"],
                {"items": [{"item_id": item, "cosine": cosine} for item, cosine in pairs]},
            )
        elif step["do"] == "recommend":
            arguments = step["requests"], step["k"], step["filter_viewed"]
            if "error" in step["answer"]:
                with pytest.raises(ValueError, match=r"."):
                    recommender.recommend(*arguments)
                continue
            found = recommender.recommend(*arguments)
            check(step["answer"], {"answers": [write(answer) for answer in found]})


def write(answer):
    pairs = zip(answer.item_id.tolist(), answer.score.tolist(), strict=True)
    items = [{"item_id": item, "score": score} for item, score in pairs]
    return {"items": items, "unknown_items": answer.unknown_items}
