"""Say what a user did with an item, and when: the rhythm is the one that `serve.clock` measures."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace

from serve.arrays import Id
from serve.clock import Rhythm, measure_rhythms
from serve.just_taken import JustTaken
from serve.profiles import Profiles
from serve.requests import Request
from serve.schema import Schema

# Pattern of an event's name, past and present; the first that fits.
_VERBS = (
    ("remove|cancel|return|refund|dislike", "took {}", "take {}"),
    ("purchase|buy|bought|order|transaction|sale|checkout", "bought {}", "buy {}"),
    ("cart|basket", "put {} in the cart", "put {} in the cart"),
    ("rate|rating|review", "rated {}", "rate {}"),
    ("view|visit|detail|click|open", "viewed {}", "view {}"),
    ("play|listen|watch|stream", "played {}", "play {}"),
    ("like|fav|wish|save", "liked {}", "like {}"),
    ("^$", "took {}", "take {}"),
)

MAX_NAME = 80  # characters of a name in a sentence
MIN_GAPS = 3  # gaps of a rhythm that a sentence states
FADED = 2.5  # gaps after which a user no longer takes an item


def say_habit(event: str | None, days_ago: int | None, rhythm: Rhythm | None) -> str:
    """Say what a user does with an item that is listed itself.

    A rhythm needs `MIN_GAPS` gaps, and has ended after `FADED` more.
    """
    past, present, faded = find_verb(event)
    ago = say_ago(days_ago)
    if rhythm is None or not rhythm.gap or days_ago is None:
        return f"{past.format('this')}{ago}"

    n_days = len(rhythm.days)
    if n_days <= MIN_GAPS:
        times = "twice" if n_days == 2 else f"{n_days} times"
        if rhythm.n_times > n_days:
            times = f"on {n_days} days"
        return f"{past.format('this')} {times}, last{ago}"

    days = max(1, round(rhythm.every_days))
    often = f"about every {days} days" if days > 1 else "nearly every day"
    if days_ago > FADED * min(days, rhythm.every_days):
        present = faded
    return f"{present.format('this')} {often}, last{ago}"


def say_past(event: str | None) -> str:
    """Return the past tense for an event, with a place for the item: "bought {}".

    An event without a known verb, of any language, is called by its own name: "Kauf: {}".
    """
    past, *_ = find_verb(event)
    return past.removeprefix("you ")


def find_verb(event: str | None) -> list[str]:
    """Return what a user did, does and no longer does: "you bought {}", "you buy {}" and so on."""
    name = event or ""
    for pattern, past, present in _VERBS:
        if re.search(pattern, name.lower()):
            return [f"you {past}", f"you {present}", f"you used to {present}"]

    own = re.sub("[{}]", "", name)[:MAX_NAME] + ": {}"
    return [own, own, f"{own} used to come"]


def say_ago(days: int | None) -> str:
    if days is None:
        return ""
    return {0: " today", 1: " yesterday"}.get(days, f" {days} days ago")


def complete_request(request: Request, profiles: Profiles, schema: Schema) -> Request:
    """Return a request that names no user, but has their history, features and moment.

    The moment of a request without a datetime is its last event, else the end of the data.
    """
    completed = replace(profiles.complete(request), user_id=None)
    if request.datetime is not None or not schema.has_datetime:
        return completed

    moment = schema.data_until
    history = completed.history
    if history and history.datetime is not None:
        moment = int(history.datetime[-1])
    return replace(completed, datetime=moment)


def find_rhythms(
    request: Request, just_taken: JustTaken, item_ids: Container[Id]
) -> dict[Id, Rhythm]:
    """Return the rhythm of each item that the user of a request took."""
    if request.history is None:
        return {}
    moment = request.datetime or 0
    takings = just_taken.list_takings(request.history, moment, item_ids)
    return measure_rhythms(takings, takings)
