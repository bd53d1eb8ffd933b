"""Answers that are kept for a minute are those that would be made anew, whatever happens in between."""

from dataclasses import replace

import numpy as np
import pytest

from serve import kept_answers
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.incoming import Asked
from serve.kept_answers import MINUTE, KeptAnswers, name_question
from serve.questions import Question, rank_together
from serve.recommender import Recommender
from serve.requests import InlineHistory, parse_request
from serve.state.store import Recalled
from tests.linear_bundle import DAY, FILMS, SHOP, UNTIL, item_ids, publish_linear
from tests.linear_profiles import known_users, make_profiles
from tests.live_service import publish_served, sharing

STEPS = 150


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    path = publish_linear(tmp_path_factory.mktemp("kept"), SHOP, 3)
    return Recommender(Bundle.load(path), make_profiles(SHOP, known_users(SHOP)))


@pytest.fixture
def ranked(monkeypatch):
    """Count the questions that are not answered by what was kept."""
    counted = []

    def count(recommender, questions):
        counted.extend(questions)
        return rank_together(recommender, questions)

    monkeypatch.setattr(kept_answers, "rank_together", count)
    return counted


def question(recommender, raw, k=3):
    request = parse_request(raw, recommender.bundle.schema)
    return Question([request], k, None, name_question(raw, k, None, 0, Recalled()))


class ForgetfulAnswers(KeptAnswers):
    """Keeps nothing."""

    def rank(self, recommender, minute, era, questions):
        return rank_together(recommender, questions)


def draw_step(rng, schema):
    """Draw what happens next, and to whom."""
    users, ids = [*known_users(schema)][:3], item_ids(schema)
    user, item = users[int(rng.integers(3))], ids[int(rng.integers(len(ids)))]
    new = 900 if schema.item_id_type == "integer" else "new"
    kinds = ["ask"] * 14 + ["tick", "observe", "dismiss", "put", "change", "remove", "forget", "reload"]
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "ask":
        about = [
            {},
            {"context": {"device": "web"}},
            {"exclude": [ids[0]]},
            {"filters": {"where": "price > 1"}},
            {"history": [{"item_id": ids[2]}, {"item_id": ids[5]}]},
            {"history": [{"item_id": ids[2], "datetime": UNTIL + DAY + 90}]},
        ]
        requests = [{"user_id": user} | about[int(rng.integers(len(about)))]]
        more = [{"user_id": user}] * (rng.random() < 0.1)
        return kind, Asked([*requests, *more], int(rng.integers(4, 6)), [None, True][int(rng.integers(2))], "r")
    if kind == "forget" and rng.random() < 0.7:  # a forgotten user stays forgotten: not too early
        kind = "tick"
    return kind, {"user": user, "item": item, "new": new, "since": int(rng.choice([-100, 0, 30]))}


def take_step(service, kind, what, now):
    """Let it happen to a service; return what an answer says."""
    if kind == "ask":
        (answered,) = service.recommend([what])
        lists = [(one.user_id, one.item_id.tolist(), one.score.tolist(), one.reason) for one in answered.lists]
        return lists, [answered.explain(index) for index in range(len(lists))]
    if kind in ("observe", "dismiss"):
        event = {"user_id": what["user"], "item_id": what["item"], "datetime": now + what["since"]}
        service.observe([event | ({"event": "dismiss"} if kind == "dismiss" else {})])
    elif kind == "put":
        service.put_item(what["new"], {"department": "dairy", "price": 3.0})
    elif kind == "change":
        service.put_item(what["item"], {"price": float(now % 7)})
    elif kind == "remove":
        service.remove_item(what["item"])
    elif kind == "forget":
        service.forget(what["user"])
    elif kind == "reload":
        service.reload()
    return None


@pytest.mark.parametrize("schema", [SHOP, FILMS], ids=["shop", "films"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_answers_are_those_of_a_service_that_keeps_none(schema, seed, tmp_path, monkeypatch, ranked):
    clock = [UNTIL + DAY]
    monkeypatch.setattr("serve.service.time.time", lambda: clock[0])
    paths = [publish_served(tmp_path / name, schema) for name in ("keeping", "forgetful")]
    rng, n_asked, last = np.random.default_rng(seed), 0, None
    with sharing(paths[0]) as keeping, sharing(paths[1]) as forgetful:
        monkeypatch.setattr(forgetful.service, "kept", ForgetfulAnswers())
        for _ in range(STEPS):
            kind, what = draw_step(rng, schema)
            if kind == "ask":  # often what was asked before something happened
                last = what = last if last and rng.random() < 0.6 else what
            clock[0] += int(rng.integers(2)) if kind != "tick" else int(rng.integers(MINUTE))
            for _ in range(2 if kind == "ask" else 1):
                given = [take_step(parts.service, kind, what, clock[0]) for parts in (keeping, forgetful)]
                assert given[0] == given[1]
                n_asked += kind == "ask"
    assert len(ranked) < n_asked - STEPS // 15  # the test would say nothing if nothing were kept


def test_what_is_shown_again_is_logged_again(tmp_path):
    path = publish_served(tmp_path, SHOP)
    user = next(iter(known_users(SHOP)))
    with sharing(path) as parts:
        for request_id in ("first", "second"):
            parts.service.recommend([Asked([{"user_id": user}], 4, None, request_id)])
        state = parts.service._state
        parts.service.impressions.close()
        shown = state._database.read("SELECT request_id, position FROM feedback ORDER BY 1, 2")
    assert shown == [(request_id, position) for request_id in ("first", "second") for position in (1, 2, 3, 4)]


def test_the_same_is_answered_once_in_a_minute_and_among_others(recommender, ranked):
    kept, users = KeptAnswers(), [*known_users(SHOP)]
    first, second = (question(recommender, {"user_id": user}) for user in users[:2])
    (one,) = kept.rank(recommender, 0, kept.era, [first])
    fault = SchemaError("unread")
    outcomes = kept.rank(recommender, 0, kept.era, [second, fault, first])
    assert outcomes[1] is fault
    assert outcomes[2].lists is kept._lists[first.name]
    assert list(outcomes[2].lists.item_row) == list(one.lists.item_row)
    assert ranked == [first, second, fault]
    assert kept.n_found == 1
    kept.rank(recommender, 1, kept.era, [first])
    assert (kept.n_found, len(ranked)) == (1, 4)
    kept.rank(recommender, 1, kept.era, [first])
    kept.drop()
    kept.rank(recommender, 1, kept.era, [first])
    assert (kept.n_found, len(ranked)) == (2, 5)


def test_another_catalogue_answers_anew(recommender, ranked):
    kept, asked = KeptAnswers(), question(recommender, {"user_id": next(iter(known_users(SHOP)))})
    (one,) = kept.rank(recommender, 0, kept.era, [asked])
    assert one.lists is not kept._lists[asked.name]  # a copy is kept
    assert kept.rank(recommender, 0, kept.era, [asked])[0].lists is kept._lists[asked.name]
    assert ranked == [asked]
    for another in (recommender.with_catalogue(recommender.catalogue), recommender):
        kept.rank(another, 0, kept.era, [asked])
    assert ranked == [asked] * 3


def test_an_answer_that_another_catalogue_overtook_is_not_kept(recommender, monkeypatch):
    kept, asked = KeptAnswers(), question(recommender, {"user_id": next(iter(known_users(SHOP)))})
    other = recommender.with_catalogue(recommender.catalogue)

    def be_overtaken(slow, questions):
        if slow is recommender:
            kept.rank(other, 0, kept.era, [])
        return rank_together(slow, questions)

    monkeypatch.setattr(kept_answers, "rank_together", be_overtaken)
    kept.rank(recommender, 0, kept.era, [asked])
    assert not kept._lists
    kept.rank(other, 0, kept.era, [asked])
    assert kept.n_found == 0
    assert kept.rank(other, 0, kept.era, [asked])[0].lists is kept._lists[asked.name]


def test_what_was_asked_before_a_drop_is_not_kept_after_it(recommender, monkeypatch):
    kept, asked = KeptAnswers(), question(recommender, {"user_id": next(iter(known_users(SHOP)))})
    before = kept.era

    def drop_meanwhile(slow, questions):
        if questions:
            kept.drop()
            kept.rank(recommender, 0, kept.era, [])  # somebody else begins anew in the same minute
        return rank_together(slow, questions)

    with monkeypatch.context() as patched:
        patched.setattr(kept_answers, "rank_together", drop_meanwhile)
        kept.rank(recommender, 0, before, [asked])
    assert not kept._lists
    kept.rank(recommender, 0, before, [asked])  # read before the drop, ranked after it
    assert not kept._lists
    kept.rank(recommender, 0, kept.era, [asked])
    assert kept._lists


def test_what_was_asked_between_two_drops_is_not_kept(recommender):
    kept, asked = KeptAnswers(), question(recommender, {"user_id": next(iter(known_users(SHOP)))})
    kept.drop()
    between = kept.era
    kept.drop()
    kept.rank(recommender, 0, between, [asked])
    assert not kept._lists


def test_room_is_free_again_in_another_minute_and_after_a_drop(recommender):
    kept, users = KeptAnswers(), [*known_users(SHOP)]
    first, second = (question(recommender, {"user_id": user}) for user in users[:2])
    for minute in (0, 1, 2):
        kept.rank(recommender, minute, kept.era, [first, second])
        assert len(kept._lists) == 2
        assert kept._n_bytes == sum(map(kept_answers._measure, kept._lists, kept._lists.values()))
        if minute == 1:
            kept.drop()
            assert kept._n_bytes == 0


def test_what_is_kept_holds_nothing_of_who_was_asked_for_beside_it(tmp_path):
    user, other, *_ = known_users(SHOP)
    with sharing(publish_served(tmp_path, SHOP)) as parts:
        parts.service.forget(user)
        parts.service.recommend([Asked([{"user_id": one}], 4, None, "r") for one in (user, other)])
        (lists,) = parts.service.kept._lists.values()
        assert list(lists.user_id) == [other]
        assert all(getattr(lists, name).base is None for name in ("user_id", "item_row", "score", "rank", "reason"))


def test_faults_and_questions_without_a_name_are_not_kept(recommender, ranked):
    kept = KeptAnswers()
    nameless = replace(question(recommender, {}), name=None)
    wrong = question(recommender, {"filters": {"where": "nonsense = 1"}})
    for _ in range(2):
        assert isinstance(kept.rank(recommender, 0, kept.era, [nameless, wrong])[1], SchemaError)
    assert ranked == [nameless, wrong] * 2


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(recommender, ranked):
    kept, users = KeptAnswers(most_bytes=3_500), [*known_users(SHOP)]
    asked = [question(recommender, {"user_id": user}, k=3) for user in users[:4]]
    for one in asked:  # a thousand bytes each: the fourth is too many
        kept.rank(recommender, 0, kept.era, [one])
    kept.rank(recommender, 0, kept.era, asked[1:])
    assert ranked == asked
    kept.rank(recommender, 0, kept.era, asked[:1])
    assert ranked == [*asked, asked[0]]
    kept.rank(recommender, 0, kept.era, asked[2:])
    assert len(ranked) == 5
    assert kept._n_bytes == sum(map(kept_answers._measure, kept._lists, kept._lists.values()))


def test_an_answer_that_would_take_most_of_the_room_is_not_kept(recommender):
    kept, asked = KeptAnswers(), question(recommender, {"exclude": ["i100"] * 10_000})
    kept.rank(recommender, 0, kept.era, [asked])
    assert not kept._lists


def test_what_is_kept_of_a_long_history_is_the_list_alone(recommender):
    kept, asked = KeptAnswers(), question(recommender, {"user_id": next(iter(known_users(SHOP)))})
    kept.rank(
        recommender,
        0,
        kept.era,
        [replace(asked, requests=[replace(asked.requests[0], history=InlineHistory(["i100"]))])],
    )
    (found,) = kept.rank(recommender, 0, kept.era, [asked])
    assert found.requests is asked.requests


def test_what_is_asked_twice_at_once_is_kept_once(recommender):
    kept, asked = KeptAnswers(), question(recommender, {})
    kept.rank(recommender, 0, kept.era, [asked, asked])
    assert kept._n_bytes == kept_answers._measure(asked.name, kept._lists[asked.name])


@pytest.mark.parametrize(
    ("about", "k", "recalled"),
    [
        ({"exclude": [f"i{number}" for number in range(500)]}, 3, Recalled()),
        ({}, 23, Recalled()),
        ({}, 3, Recalled(InlineHistory(("i100",) * 100))),
        ({}, 3, Recalled(dismissed=tuple(f"i{number}" for number in range(100)))),
    ],
    ids=["words", "items", "events", "dismissals"],
)
def test_long_answers_count_as_more(recommender, about, k, recalled):
    sizes = []
    for raw, length, past in (({}, 3, Recalled()), (about, k, recalled)):
        kept, asked = KeptAnswers(), question(recommender, raw, length)
        kept.rank(recommender, 0, kept.era, [replace(asked, name=name_question(raw, length, None, 0, past))])
        sizes.append(kept._n_bytes)
    assert sizes[1] > sizes[0] + 300


def test_values_that_are_equal_in_python_alone_are_told_apart():
    names = {name_question({"context": {"x": value}}, 3, None, 0, Recalled()) for value in (1, 1.0, True, "1", None)}
    assert len(names) == 5
    assert name_question({"context": {"x": object()}}, 3, None, 0, Recalled()) is None


def test_the_list_that_is_asked_for_and_the_user_s_state_are_part_of_the_name():
    raw = {"user_id": 1}
    names = [
        name_question(raw, 3, None, 0, Recalled()),
        name_question(raw, 4, None, 0, Recalled()),
        name_question(raw, 3, True, 0, Recalled()),
        name_question(raw, 3, None, MINUTE, Recalled()),
        name_question(raw, 3, None, 0, Recalled(dismissed=(7,))),
    ]
    assert name_question(raw, 3, None, 0, Recalled(is_forgotten=True)) is None
    assert name_question(raw, 3, None, 0, Recalled(dismissed=tuple(range(500)))) is None  # too long to be kept
    assert len(set(names)) == len(names)
    assert name_question(dict(raw), 3, None, 0, Recalled()) == names[0]


def ask_for(service, user):
    (answered,) = service.recommend([Asked([{"user_id": user}], 4, None, "r")])
    return answered.requests[0]


def test_nothing_is_kept_of_who_is_forgotten(tmp_path, monkeypatch):
    user, other, *_ = known_users(SHOP)
    with sharing(publish_served(tmp_path, SHOP)) as parts:
        kept = parts.service.kept
        for _ in range(2):
            ask_for(parts.service, user)
            parts.service.forget(user)
            assert not kept._lists
            ask_for(parts.service, user)
            assert not kept._lists
        ask_for(parts.service, other)
        assert kept._lists

        def fail(run, users):
            raise OSError("the disk is full")

        monkeypatch.setattr("serve.service.forget_known", fail)
        with pytest.raises(OSError, match="full"):
            parts.service.forget(other)
        assert not kept._lists


def test_a_reload_lets_go_of_the_version_before(tmp_path):
    with sharing(publish_served(tmp_path, SHOP)) as parts:
        ask_for(parts.service, next(iter(known_users(SHOP))))
        parts.service.reload()
        assert parts.service.kept._now.recommender is None


@pytest.mark.parametrize(("since", "asked"), [(10, 10), (-100, 0), (50, 50), (59, 0)])
def test_an_event_of_this_minute_moves_the_moment_to_it(tmp_path, monkeypatch, since, asked):
    start, user = UNTIL + DAY, next(iter(known_users(SHOP)))
    assert start % MINUTE == 0
    monkeypatch.setattr("serve.service.time.time", lambda: start + 50)
    with sharing(publish_served(tmp_path, SHOP)) as parts:
        assert ask_for(parts.service, user).datetime == start
        parts.service.observe([{"user_id": user, "item_id": "i107", "datetime": start + since}])
        assert ask_for(parts.service, user).datetime == start + asked
        history = [{"item_id": "i107", "datetime": start + since}]
        (answered,) = parts.service.recommend([Asked([{"history": history}], 4, None, "r")])
        assert answered.requests[0].datetime == start + asked
