"""Questions of several callers, ranked together: what each would be given alone."""

import pytest

from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.questions import Question, rank_together
from serve.recommender import Recommender
from serve.requests import parse_request
from tests.linear_bundle import SHOP, publish_linear
from tests.linear_profiles import known_users, make_profiles


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    profiles = make_profiles(SHOP, known_users(SHOP))
    return Recommender(Bundle.load(publish_linear(tmp_path_factory.mktemp("questions"), SHOP, 3)), profiles)


def question(recommender, raw, k=3, filter_viewed=None):
    schema = recommender.bundle.schema
    return Question([parse_request(one, schema) for one in raw], k, filter_viewed)


def describe(lists):
    return [
        (one.user_id, one.item_id.tolist(), one.score.round(5).tolist(), one.rank.tolist(), one.reason) for one in lists
    ]


def test_each_is_answered_as_alone(recommender):
    users = recommender.profiles.user_ids.tolist()
    items = recommender.catalogue.item_ids.ids.tolist()
    questions = [
        question(recommender, [{"user_id": users[0]}]),
        question(recommender, [{"user_id": users[1]}, {"history": [{"item_id": items[2]}]}]),
        question(recommender, [{"user_id": users[0]}], k=5),
        question(recommender, [{"user_id": users[2]}], filter_viewed=True),
        question(recommender, [{"user_id": users[3], "filters": {"only": items[:2]}}]),
        question(recommender, []),
    ]
    for asked, outcome in zip(questions, rank_together(recommender, questions), strict=True):
        alone = recommender.recommend(asked.requests, asked.k, asked.filter_viewed)
        assert outcome.requests is asked.requests
        assert describe(outcome.lists) == describe(alone)
        assert outcome.lists.to_table().drop(["score"]).equals(alone.to_table().drop(["score"]))
        assert outcome.lists.unknown_items.tolist() == alone.unknown_items.tolist()


def test_a_fault_is_its_callers_alone(recommender):
    user = recommender.profiles.user_ids.tolist()[0]
    good = question(recommender, [{"user_id": user}])
    bad = question(recommender, [{"user_id": user, "filters": {"where": "nonsense = 1"}}])
    unread = SchemaError("it could not be read")
    first, second, third, fourth = rank_together(recommender, [good, bad, unread, good])
    assert isinstance(second, SchemaError)
    assert "nonsense" in str(second)
    assert third is unread
    assert describe(first.lists) == describe(fourth.lists) == describe(recommender.recommend(good.requests, 3))


@pytest.mark.parametrize("filters", [{"where": "prise = 1"}, {"at_most": {"prise": 1}}, {"where": "price = 'x'"}])
def test_of_several_requests_it_is_said_whose_filters_do_not_fit(recommender, filters):
    good, bad = {"filters": {"where": "price > 1"}}, {"filters": filters}
    (outcome,) = rank_together(recommender, [question(recommender, [good, {}, bad, bad])])
    (alone,) = rank_together(recommender, [question(recommender, [bad])])
    assert str(outcome) == f"requests[2]: {alone}"
    assert not str(alone).startswith("requests")


def test_no_questions_have_no_answers(recommender):
    assert rank_together(recommender, []) == []
