"""Segments are planted groups, none where there are none; what marks them is counted by loops, and nobody is named."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from models.segments import MIN_PEOPLE, adjusted_rand, find_segments, find_traits
from serve.bundle import SEGMENTS, Bundle
from serve.errors import BundleError
from serve.profiles import Profiles
from serve.recommendations import Segments
from serve.requests import History
from service.publish import Stage, publish
from tests.linear_bundle import FILMS, SHOP, N, W, item_ids, item_values, write_linear

SIZES = (130, 60, 90)  # of three groups of users
GROUP = np.repeat([0, 1, 2], SIZES)


def plant(seed=0, spread=0.3):
    """Draw vectors around a centre of each group, far from the origin."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((3, W)) + 10
    return (centres[GROUP] + spread * rng.standard_normal((len(GROUP), W))).astype(np.float32)


def make_people(n_rare):
    """Make users whose items and gender follow their group, with a gender that few of one group have."""
    rng, ids = np.random.default_rng(1), item_ids(SHOP)
    rows = [rng.choice(np.arange(7) + 7 * group, 4) for group in GROUP]  # some come twice
    gender = np.array([("f", "m", None)[group] for group in GROUP], object)
    schema = replace(
        SHOP,
        user_features=(
            replace(SHOP.user_features[0], vocabulary=("f", "m", "rare")),
            SHOP.user_features[1],
        ),
    )
    gender[np.flatnonzero(GROUP == 2)[:n_rare]] = "rare"
    income = np.where(GROUP == 1, np.nan, GROUP * 1.0 + np.arange(len(GROUP)) / 1000)
    history = History(np.array([ids[row] for of_user in rows for row in of_user], object))
    offsets = np.arange(len(GROUP) + 1) * 4
    users = np.array([f"person {number}" for number in range(len(GROUP))], object)
    return (
        Profiles(users, {"gender": gender, "income": income}, history, offsets),
        np.concatenate(rows),
        schema,
    )


def traits_of(n_rare=MIN_PEOPLE):
    profiles, rows, schema = make_people(n_rare)
    columns = {
        name: [item_values(row)[name] for row in range(N)] for name in ("department", "brand")
    }
    return [*find_traits(profiles, rows, [f"Title {row}" for row in range(N)], columns, schema)]


@pytest.fixture(scope="module")
def found():
    return find_segments(plant(), traits_of(), 0)


def test_groups_are_found_the_largest_first_and_each_user_is_told_theirs(found):
    assert [one.size for one in found.segments] == [130, 90, 60]
    assert [one.id for one in found.segments] == [1, 2, 3]
    assert found.of(plant()).tolist() == np.array([0, 2, 1])[GROUP].tolist()
    assert (
        found.of(found.centre + 2 * (plant() - np.array(found.centre))).tolist()
        == found.of(plant()).tolist()
    )
    assert found.stability["3"] == 1.0


def test_the_same_users_and_seed_give_the_same_bytes_which_read_as_they_were(found):
    content = find_segments(plant(), traits_of(), 0).to_bytes()
    assert content == found.to_bytes()
    assert Segments.from_bytes(content, W) == found


def test_no_groups_or_few_users_have_no_segments():
    noise = np.random.default_rng(0).standard_normal((400, W)).astype(np.float32)
    assert find_segments(noise, [], 0) is None
    assert find_segments(plant()[np.r_[:26, 130:156, 190:216]], [], 0) is None


def test_groups_on_which_halves_of_the_users_do_not_agree_are_no_segments(monkeypatch):
    blurred = plant(spread=5)
    assert find_segments(blurred, [], 0) is None
    monkeypatch.setattr("models.segments.STABLE", 0.65)
    assert find_segments(blurred, [], 0).stability["2"] == pytest.approx(0.7, abs=0.05)


def test_stability_is_a_mean_over_divisions(monkeypatch):
    blurred = plant(spread=5)
    monkeypatch.setattr("models.segments.STABLE", 0.0)
    whole = find_segments(blurred, [], 0).stability["2"]
    single = set()
    draw = np.random.default_rng
    for split in range(5):
        monkeypatch.setattr("models.segments.N_SPLITS", 1)
        monkeypatch.setattr(np.random, "default_rng", lambda key, s=split: draw((key[0], s)))
        single.add(find_segments(blurred, [], 0).stability["2"])
        monkeypatch.setattr(np.random, "default_rng", draw)
    assert len(single) == 5
    assert whole == pytest.approx(np.mean([*single]), abs=1e-3)


def test_marks_are_what_a_segment_has_more_than_all(found):
    profiles, rows, _ = make_people(MIN_PEOPLE)
    group_of = [0, 2, 1]  # of each segment
    for place, segment in enumerate(found.segments):
        own = group_of[place] == GROUP
        for mark in segment.marks:
            if mark.kind == "item":
                has = np.array(
                    [mark.value in {f"Title {row}" for row in four} for four in rows.reshape(-1, 4)]
                )
                part, known = has.astype(float), np.ones(len(GROUP), bool)
            elif mark.kind == "category":
                counts = [
                    Counter(item_values(row)[mark.trait] for row in four)
                    for four in rows.reshape(-1, 4)
                ]
                part, known = (
                    np.array([count[mark.value] / 4 for count in counts]),
                    np.array([any(map(bool, one)) for one in counts]),
                )
                has = part > 0
            elif mark.trait == "gender":
                has = profiles.features["gender"] == mark.value
                part, known = (
                    has.astype(float),
                    np.array([one is not None for one in profiles.features["gender"]]),
                )
            else:
                continue
            share = part[own & known].mean()
            assert (mark.people, mark.share) == (
                has[own].sum(),
                pytest.approx(share, abs=1e-4),
            )
            assert mark.lift == pytest.approx(share / part[known].mean(), abs=0.01)
            assert mark.value in segment.text or mark.kind != "item"
    assert {mark.kind for one in found.segments for mark in one.marks} == {
        "item",
        "category",
        "user",
    }
    income = [mark.value for one in found.segments for mark in one.marks if mark.trait == "income"]
    assert all("below" in one or "to" in one or "more" in one for one in income)
    assert income


def test_nothing_of_fewer_people_than_the_least_is_written_and_nobody_is_named():
    texts = {
        n: find_segments(plant(), traits_of(n), 0).to_bytes().decode()
        for n in (MIN_PEOPLE - 1, MIN_PEOPLE)
    }
    assert ["rare" in text for text in texts.values()] == [False, True]
    assert not any("person" in text.replace('"people"', "") for text in texts.values())


def test_the_adjusted_rand_index_counts_pairs():
    rng = np.random.default_rng(2)
    for n in (5, 40):
        one, other = rng.integers(0, 3, n), rng.integers(0, 4, n)
        pairs = [(one[a] == one[b], other[a] == other[b]) for a, b in combinations(range(n), 2)]
        both, first, second = (
            sum(map(test, pairs)) for test in (all, lambda pair: pair[0], lambda pair: pair[1])
        )
        chance = first * second / len(pairs)
        assert adjusted_rand(one, other) == pytest.approx(
            (both - chance) / ((first + second) / 2 - chance)
        )
    assert adjusted_rand(one, (one + 1) % 3) == 1.0


def damage(content, **changes):
    return json.dumps(json.loads(content) | changes).encode()


def test_a_bundle_holds_segments_as_it_holds_its_other_files(found, tmp_path):
    for name, content in {
        "none": None,
        "good": found.to_bytes(),
        "narrow": damage(found.to_bytes(), centre=[0.0]),
        "infinite": found.to_bytes().replace(b'"centre": [', b'"centre": [1e999,', 1),
        "few": damage(found.to_bytes(), centroids=[[0.0] * W]),
        "worded": damage(found.to_bytes(), users="many"),
        "marked": found.to_bytes().replace(b'"people": ', b'"people": "x", "persons": '),
        "empty": b"[]",
        "binary": b"\xff\xfe",
    }.items():
        with Stage.open(tmp_path / name) as stage:
            facts = write_linear(stage, FILMS, 3)
            if content is not None:
                (stage.path / SEGMENTS).write_bytes(content)
            if name in ("none", "good"):
                path = publish(stage.prepare(facts, {})).path
                assert Bundle.load(path).segments == (None if content is None else found)
            else:
                with pytest.raises(BundleError, match=SEGMENTS):
                    stage.prepare(facts, {})
    path.with_name("bundle").joinpath(SEGMENTS).write_bytes(found.to_bytes() + b" ")
    with pytest.raises(BundleError, match=SEGMENTS):
        Bundle.load(path)
