"""The fall of a score without one part of a request is what the plain recommender says of the reduced request."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from serve.due import find_due
from serve.index import Neighbours
from serve.reasons import MAX_SAID, MIN_SHARE, NEARLY, explain
from serve.recommender import Recommender
from tests.linear_bundle import DAY, FILMS, SHOP, UNTIL, N, item_ids, publish_linear
from tests.linear_profiles import draw_history, known_users, make_profiles


@pytest.fixture(scope="module", params=[SHOP, FILMS], ids=["shop", "films"])
def schema(request):
    return request.param


@pytest.fixture(scope="module")
def recommender(schema, tmp_path_factory):
    """Give a recommender with item-item weights, of which some are for all."""
    recommender, rng = (
        Recommender.load(publish_linear(tmp_path_factory.mktemp("why"), schema, 3)),
        np.random.default_rng(1),
    )
    offsets = np.concatenate([[0], rng.integers(0, 6, N).cumsum()])
    weights = rng.standard_normal(offsets[-1] + 2).astype(np.float32)
    neighbours = Neighbours(offsets, rng.integers(0, N, len(weights)), weights, 0.1, 0.5)
    bundle = replace(recommender.bundle, neighbours=neighbours)
    return Recommender(bundle, make_profiles(schema, known_users(schema)))


def draw_requests(schema, n):
    rng = np.random.default_rng(9)
    for number in range(n):
        given = {"gender": ["f", "m", "x"][number % 3], "income": float(rng.normal())}
        context = {"device": ["phone", "web"][number % 2]}
        yield {
            "history": draw_history(schema, int(rng.integers(0, 12)), rng),
            "features": dict(list(given.items())[: number % 3]),
            "context": context if number % 5 else {},
            "datetime": UNTIL + int(rng.integers(0, 3 * DAY)),
        }


def score(recommender, request, items):
    """Ask the plain recommender for lists of these items alone."""
    (answer,) = recommender.recommend(
        [request | {"filters": {"only": items}, "again": "any"}], len(items), filter_viewed=False
    )
    found = dict(zip(answer.item_id.tolist(), answer.score.tolist(), strict=True))
    return np.array([found[item] for item in items])


def reduce(request, known):
    """Return (kind, what) -> the request without it, written by hand."""
    reduced = {}
    for item in {event["item_id"] for event in request["history"]} & known:
        kept = [event for event in request["history"] if event["item_id"] != item]
        reduced["history", item] = request | {"history": kept}
    for field in ("features", "context"):
        for name in request[field]:
            reduced[field, name] = request | {
                field: {key: one for key, one in request[field].items() if key != name}
            }
    return reduced


def name_part(reason):
    if reason.kind in ("history", "memory"):
        return "history", reason.item_id
    return reason.kind, reason.name


def find_usual(recommender, part, request, without, items, repeats):
    """Return what a part lifts of what is listed anyway, and the items that it is no reason for."""
    is_owned = {event["item_id"] for event in request["history"]} & set(items)

    def list_for(asked):
        (answer,) = recommender.recommend([asked], 10, filter_viewed=not is_owned)
        return answer.item_id.tolist()

    nobody = {"datetime": request["datetime"], "context": request["context"]}
    listed, popular, other = map(list_for, (request, nobody, without))
    fall_of_popular = score(recommender, request, popular) - score(recommender, without, popular)
    if part[0] == "history":
        fall = score(recommender, request, listed) - score(recommender, without, listed)
        return max(fall.mean(), fall_of_popular.mean()), set()
    if set(other) == set(listed):
        return np.inf, set()
    anyway = {*other, *popular} if part[0] == "features" else {*other}
    return fall_of_popular.mean(), anyway


def test_what_is_said_is_special_to_the_item_and_has_the_effect_of_the_reduced_request(
    recommender, schema
):
    n_said = n_unsaid = n_again = 0
    for request in draw_requests(schema, 200):
        items = next(iter(recommender.recommend([request], 4))).item_id.tolist()
        full, reduced = (
            score(recommender, request, items),
            reduce(request, set(item_ids(schema))),
        )
        falls = {
            part: full - score(recommender, without, items) for part, without in reduced.items()
        }
        usual = {
            part: find_usual(recommender, part, request, without, items, schema.repeats)
            for part, without in reduced.items()
        }
        told = {part: fall for part, fall in falls.items() if usual[part][0] < np.inf}
        least = MIN_SHARE * max((abs(fall).max() for fall in told.values()), default=0)
        (found,) = explain(recommender, [request], [items])
        first = set()
        for place, (item, reasons) in enumerate(zip(items, found.reasons, strict=True)):
            scale = max(1.0, abs(full[place]))
            special = {
                part: fall[place] - usual[part][0]
                for part, fall in told.items()
                if fall[place] > least and item not in usual[part][1]
            }
            special = {part: above for part, above in special.items() if above > least}
            said = [one for one in reasons if one.kind != "popular"]
            n_said += len(said)
            n_unsaid += sum(fall[place] > least for fall in falls.values()) - len(said)
            assert len(said) == min(MAX_SAID, len(special))
            if said:
                top = max(special.values())
                near = {part for part, above in special.items() if above > NEARLY * top}
                leads = near - first or {max(special, key=special.get)}
                parts = [name_part(one) for one in said]
                assert parts[0] == max(leads, key=special.get)
                n_again += parts[0] in first
                first.add(parts[0])
            for one in said:
                part = name_part(one)
                assert part in special
                assert one.effect == pytest.approx(falls[part][place], abs=1e-6 * scale)
                assert (one.kind == "memory") == (one.item_id == item and schema.repeats == "allow")
    assert n_said > 200
    assert n_unsaid > 200
    assert n_again > 20


def test_a_known_user_is_explained_by_their_profile_as_by_the_same_in_the_request(
    recommender, schema
):
    bundle = recommender.bundle  # its profiles know of no event in what context it happened
    bundle = replace(bundle, neighbours=replace(bundle.neighbours, context_gain=0.0))
    recommender = Recommender(bundle, recommender.profiles)
    users = known_users(schema)
    assert len(users) == 5
    for user, known in users.items():
        moment = known["history"][-1]["datetime"] if known["history"] else UNTIL
        items = item_ids(schema)[:7]
        # A history that is sent along was just taken, and is held back from lists.
        again = {"again": "any"}
        asked = [{"user_id": user} | again, known | {"datetime": moment} | again]
        by_profile, by_request = explain(recommender, asked, [items, items])
        assert by_profile.is_personal == by_request.is_personal
        pairs = zip(by_profile.reasons, by_request.reasons, strict=True)
        for found, expected in pairs:
            assert [replace(one, effect=0.0) for one in found] == [
                replace(one, effect=0.0) for one in expected
            ]
            np.testing.assert_allclose(
                [one.effect for one in found],
                [one.effect for one in expected],
                rtol=1e-6,
            )


def test_nothing_personal_makes_a_listed_item_popular_and_no_item_needs_no_reason(recommender):
    (answer,) = recommender.recommend([{}], 12)
    *listed, last = answer.item_id.tolist()
    (found,) = explain(recommender, [{}], [listed[:2]])
    assert [[one.kind for one in reasons] for reasons in found.reasons] == [["popular"]] * 2
    (unlisted,) = explain(recommender, [{}], [[last]])
    assert unlisted.reasons == [[]]
    assert not found.is_personal
    assert [of_none.reasons for of_none in explain(recommender, [{}, {}], [[], []])] == [[], []]


def test_no_item_is_a_reason_for_another_of_the_same_name(recommender, schema, monkeypatch):
    ids = item_ids(schema)
    names = {item: f"size {place // 4}" for place, item in enumerate(ids)}

    def count_namesakes():
        n_causes = n_namesakes = 0
        for request in draw_requests(schema, 60):
            items = next(iter(recommender.recommend([request], 10))).item_id.tolist()
            (found,) = explain(recommender, [request], [items])
            for item, reasons in zip(items, found.reasons, strict=True):
                causes = {one.item_id for one in reasons} - {None, item}
                n_causes += len(causes)
                n_namesakes += sum(names[cause] == names[item] for cause in causes)
        return n_causes, n_namesakes

    assert count_namesakes()[1] > 10  # each item has a name of its own
    monkeypatch.setattr(Recommender, "name", lambda _, asked: [names[item] for item in asked])
    n_causes, n_namesakes = count_namesakes()
    assert n_causes > 100
    assert n_namesakes == 0


def test_a_reason_says_what_happened_when_and_how_often(tmp_path):
    recommender = Recommender.load(publish_linear(tmp_path, SHOP, 3))
    first, second, *_ = ids = item_ids(SHOP)
    days = (
        (9, first, "view"),
        (8, first, "buy"),
        (4, first, "buy"),
        (4, second, "view"),
        (0, second, None),
    )
    history = [
        {"item_id": item, "event": event, "datetime": UNTIL - day * DAY}
        for day, item, event in days
    ]
    asked = {"history": history, "datetime": UNTIL + DAY, "features": {"income": 400.5}}
    (found,) = explain(recommender, [asked], [ids])
    said = {
        (place, one.name): one for place, reasons in enumerate(found.reasons) for one in reasons
    }
    texts = {one.text for one in said.values()}
    assert {
        "because you bought Title 0 5 days ago",
        "because you took Title 1 yesterday",
    } <= texts
    (answer,) = recommender.recommend([asked], 10, filter_viewed=False)
    (listed,) = explain(recommender, [asked], [answer.item_id.tolist()])
    of_list = {one.text for reasons in listed.reasons for one in reasons}
    assert "because of your income: 400.5" in of_list
    bought = next(one for one in said.values() if one.item_id == first)
    # gaps of 1 and 4 days: their median, drawn towards that of the user's three gaps
    assert (bought.event, bought.days_ago, bought.every_days) == ("buy", 5, 2.84)
    of_itself = [one for (place, _), one in said.items() if one.item_id == ids[place]]
    assert [one.kind for one in of_itself] == ["memory"] * len(of_itself) != []
    assert {one.text for one in of_itself} <= {
        "you bought this 3 times, last 5 days ago",
        "you took this twice, last yesterday",
    }


def test_of_a_long_history_the_listed_items_are_varied_first_then_the_latest(
    recommender, schema, monkeypatch
):
    monkeypatch.setattr("serve.reasons.MAX_VARIED", 3)
    ids = item_ids(schema)
    history = [{"item_id": item, "datetime": UNTIL - 9} for item in (*ids[:9], ids[8])]
    (found,) = explain(recommender, [{"history": history}], [ids[2:9:6]])
    (more,) = explain(recommender, [{"history": history}], [ids[12:]])
    assert {one.item_id for reasons in found.reasons for one in reasons} <= {
        ids[2],
        ids[8],
        ids[7],
        None,
    }
    assert {one.item_id for reasons in more.reasons for one in reasons} - {None} == {
        ids[8],
        ids[7],
        ids[6],
    }


@pytest.mark.parametrize(
    ("event", "verb"),
    [
        ("purchase", "bought"), ("add_to_cart", "put Title 0 in the cart"), ("page_view", "viewed"),
        ("Review", "rated"), ("dislike", "took"), ("remove_from_cart", "took"), ("like", "liked"), (None, "took"),
        ("Kauf", "Kauf: Title 0"), ("購入", "購入: Title 0"), ("{x}", "x: Title 0"),
    ],
)  # fmt: skip
def test_the_verb_is_that_of_the_event_where_it_is_known(recommender, schema, event, verb):
    asked = {
        "history": [
            {
                "item_id": item_ids(schema)[0],
                "event": event,
                "datetime": UNTIL - 3 * DAY,
            }
        ],
        "datetime": UNTIL,
    }
    (found,) = explain(recommender, [asked], [item_ids(schema)[1:]])
    said = {one.text for reasons in found.reasons for one in reasons if one.kind == "history"}
    said_verb = verb if "Title" in verb else f"{verb} Title 0"
    who = "" if ":" in verb else "you "
    assert said == {f"because {who}{said_verb} 3 days ago"}


# ---- sentences of rhythms, against the events

_SENTENCE = re.compile(
    r"you (?P<used>used to )?\w+ this(?: in the cart)?"
    r"(?: (?:about every (?P<every>\d+) days|(?P<daily>nearly every day)|(?P<twice>twice)"
    r"|(?P<times>\d+) times|on (?P<on>\d+) days))?"
    r"(?:,? (?:last )?(?:(?P<today>today)|(?P<yesterday>yesterday)|(?P<ago>\d+) days ago))?"
)


def find_contradiction(text, times, moment, every_days):
    """Compare a sentence with the times of the events and with the typical gap in days.

    Returns:
        What is wrong, "" if nothing is.
    """
    said = _SENTENCE.fullmatch(text)
    if said is None:
        return "it cannot be read"
    times = [min(time, moment) for time in times]
    days = len({time // DAY for time in times})
    ago = (moment - max(times)) // DAY
    said_ago = 0 if said["today"] else 1 if said["yesterday"] else int(said["ago"])
    if said_ago != ago:
        return f"last {ago} days ago"
    n_said = 2 if said["twice"] else int(said["times"] or 0)
    if n_said and n_said != len(set(times)):
        return f"{len(set(times))} times"
    if said["on"] and int(said["on"]) != days:
        return f"on {days} days"
    if not (said["every"] or said["daily"]):
        return "" if days <= 3 and not said["used"] else "it has a rhythm"
    every = 1 if said["daily"] else int(said["every"])
    if days <= 3:
        return f"{days - 1} gaps make no rhythm"
    if abs(every - every_days) > 0.5 + 0.01 and not (said["daily"] and every_days < 1.5):
        return f"about every {every_days} days"
    if not said["used"] and ago > 2.5 * min(every, every_days):
        return "it was long ago"
    if said["used"] and ago <= 2.5 * min(every, every_days):
        return "it was lately"
    return ""


def test_no_sentence_contradicts_its_own_numbers_or_the_events(tmp_path):
    recommender = Recommender.load(publish_linear(tmp_path, SHOP, 3))
    rng = np.random.default_rng(8)
    ids = item_ids(SHOP)
    forms = Counter()
    for _ in range(300):
        span = int(rng.choice([5, 30, 300])) * DAY
        times = np.sort(UNTIL - rng.integers(0, span, int(rng.integers(1, 40))))
        history = [
            {"item_id": ids[int(rng.integers(5))], "datetime": int(time), "event": "buy"}
            for time in times
        ]
        moment = UNTIL + int(rng.integers(0, 60)) * int(rng.integers(0, 2)) * DAY
        request = {"history": history, "datetime": moment}
        times_of = defaultdict(list)
        for event in history:
            times_of[event["item_id"]].append(event["datetime"])
        sentences = []
        for due in find_due(recommender, [request], N)[0].items:
            sentences.append((due.item_id, due.text, due.every_days))
        (explained,) = explain(recommender, [request], [ids[:5]])
        for item, reasons in zip(ids, explained.reasons, strict=False):
            for reason in reasons:
                if reason.kind == "memory":
                    sentences.append((item, reason.text, reason.every_days))
                    assert reason.days_ago == (moment - times_of[item][-1]) // DAY
        rhythms = {item: every_days for item, _, every_days in sentences}
        for item, text, every_days in sentences:
            assert every_days == rhythms[item]
            assert find_contradiction(text, times_of[item], moment, every_days) == "", text
            forms[re.sub(r"\d+", "n", text).split(",")[0]] += 1
    assert forms["you buy this about every n days"] > 50
    assert forms["you used to buy this about every n days"] > 20
    assert forms["you used to buy this nearly every day"] > 5
    assert forms["you buy this nearly every day"] > 5
    assert forms["you bought this twice"] > 50
    assert forms["you bought this n times"] > 50
    assert forms["you bought this on n days"] > 5


def test_a_listed_item_that_was_only_viewed_is_said_to_be_viewed(tmp_path):
    recommender = Recommender.load(publish_linear(tmp_path, SHOP, 3))
    manifest = recommender.bundle.manifest
    config = {"data": {"targets": {"events": ["buy"]}}}
    manifest = replace(manifest, facts=replace(manifest.facts, config=config))
    recommender = Recommender(replace(recommender.bundle, manifest=manifest))
    said = {}
    for seen, had in permutations(item_ids(SHOP)[:9], 2):  # of some both memories are special
        events = (
            (9, had, "buy"),
            (5, seen, "view"),
            (4, had, "buy"),
            (2, seen, "view"),
            (1, had, "view"),
        )
        history = [
            {"item_id": item, "event": event, "datetime": UNTIL - day * DAY}
            for day, item, event in events
        ]
        (found,) = explain(recommender, [{"history": history, "datetime": UNTIL}], [[seen, had]])
        memories = [one for reasons in found.reasons for one in reasons if one.kind == "memory"]
        said = {one.item_id: one for one in memories}
        if len(said) == 2:
            break

    assert said[seen].text == "you viewed this 2 days ago"
    assert (said[seen].event, said[seen].every_days) == ("view", None)
    assert said[had].text == "you bought this twice, last 4 days ago"
    assert (said[had].event, said[had].days_ago, said[had].every_days) == ("buy", 4, 5)
