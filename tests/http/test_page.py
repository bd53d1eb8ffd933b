"""What the page asks for beside lists: a form, users to try for those who may see them, and items by their names."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from serve.recommender import Recommender
from service.http.access import KeyFile
from service.http.page import find_target
from tests.http.services import asking, publish_served
from tests.http.test_access import KEYS, bearer, write_line
from tests.linear_bundle import (
    DEPARTMENTS,
    FILMS,
    GENDERS,
    SHOP,
    N,
    item_ids,
    item_values,
)
from tests.linear_profiles import known_users
from tests.served import JSON, ask


@pytest.fixture(scope="module", params=[SHOP, FILMS], ids=["shop", "films"])
def schema(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(schema, tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("page"), schema)


@pytest.fixture(scope="module")
def app(bundle):
    with asking(bundle) as app:
        yield app


def find(app, **query):
    reply = ask(
        app,
        "GET",
        "/v1/items?" + "&".join(f"{name}={value}" for name, value in query.items()),
    )
    return (
        [item["item_id"] for item in reply.json["items"]] if reply.status == 200 else reply.status
    )


def test_the_form_offers_what_the_bundle_reads(app, schema):
    form = ask(app, "GET", "/v1/page").json
    assert form["names"] == ["title"]
    assert [(one["name"], one["values"]) for one in form["features"]] == [
        ("gender", [*GENDERS]),
        ("income", []),
    ]
    assert [one["kind"] for one in form["context"]] == ["categorical", "hour_of_day"]
    assert (form["events"], form["repeats"], form["items"]) == (
        [*schema.event_types],
        schema.repeats,
        N,
    )
    assert form["may_change"] is True


def test_the_form_names_the_event_that_is_predicted_and_its_verb(app, schema):
    form = ask(app, "GET", "/v1/page").json
    if schema.event_types:
        assert (form["target"], form["verb"]) == ("buy", "bought {}")
        assert form["verbs"] == {"view": "viewed {}", "buy": "bought {}"}
    else:
        assert (form["target"], form["verb"], form["verbs"]) == (None, "took {}", {})


@pytest.mark.parametrize(
    ("declared", "target"), [(None, "purchase"), (["view", "cart"], "view"), (["cart"], "cart")]
)
def test_the_predicted_event_is_one_of_the_declared_targets(bundle, declared, target):
    bundle = Recommender.load(bundle).bundle
    data = {} if declared is None else {"targets": {"events": declared}}
    facts = replace(bundle.manifest.facts, config={"data": data})
    manifest = replace(bundle.manifest, facts=facts)
    schema = replace(bundle.schema, event_types=("view", "cart", "purchase"))
    current = Recommender(replace(bundle, schema=schema, manifest=manifest))
    assert find_target(current) == target


def test_users_to_try_are_known_ones_with_what_they_took_last(app, schema):
    known, ids = known_users(schema), item_ids(schema)
    users = ask(app, "GET", "/v1/page").json["users"]
    assert len({one["user_id"] for one in users}) == len(users) > 2
    for one in users:
        history, features = (
            known[one["user_id"]]["history"],
            known[one["user_id"]]["features"],
        )
        latest = [event["item_id"] for event in reversed(history) if event["item_id"] in ids]
        assert (
            one["recent"]
            == [f"Title {ids.index(item_id)}" for item_id in dict.fromkeys(latest)][:4]
        )
        assert (one["events"], one["features"].keys()) == (
            len(history),
            features.keys(),
        )


def test_who_is_forgotten_is_not_offered(bundle, tmp_path):
    own = (
        shutil.copytree(bundle.parent, tmp_path / "own", ignore=lambda *_: ["state"]) / bundle.name
    )
    with asking(own) as app:
        user = ask(app, "GET", "/v1/page").json["users"][0]["user_id"]
        assert ask(app, "POST", "/v1/users/forget", {"user_id": user}).status == 200
        assert user not in [one["user_id"] for one in ask(app, "GET", "/v1/page").json["users"]]


def test_people_are_shown_to_admins_only_and_a_key_says_what_it_may(bundle, tmp_path):
    (tmp_path / "keys").write_text(
        "".join(write_line(role, role, key) for role, key in KEYS.items())
    )
    for read_only in (False, True):
        with asking(
            bundle,
            tmp_path / "state",
            keys=KeyFile(tmp_path / "keys"),
            read_only=read_only,
        ) as app:
            seen = {
                role: ask(app, "GET", "/v1/page", headers=bearer(key)).json
                for role, key in KEYS.items()
            }
            assert [bool(form["users"]) for form in seen.values()] == [
                False,
                False,
                True,
            ]
            may_change = [form["may_change"] for form in seen.values()]
            assert may_change == ([False] * 3 if read_only else [False, True, True])
            assert ask(app, "GET", "/v1/page", headers=JSON).status == 401


def test_items_are_found_by_words_in_any_order_or_their_id(app, schema):
    ids = item_ids(schema)
    of_dairy = [row for row in range(N) if item_values(row)["department"] == DEPARTMENTS[0]]
    assert sorted(map(str, find(app, search="DAI+title", k=100))) == sorted(
        str(ids[row]) for row in of_dairy
    )
    assert ids[5] in find(app, search=ids[5], k=100)
    assert find(app, search="dairy+meat") == []
    assert [
        find(app, search="x", k=101),
        find(app, search=""),
        ask(app, "GET", "/v1/items").status,
    ] == [422] * 3


def test_found_items_come_in_the_order_of_a_list_for_nobody_in_particular(app, bundle, schema):
    found = find(app, search="title", k=9)
    (expected,) = Recommender.load(bundle).recommend(
        [{"datetime": schema.data_until}], 9, filter_viewed=False
    )
    assert found == expected.item_id.tolist()
    assert len(np.unique(found)) == 9
