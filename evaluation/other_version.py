"""Estimate what another version would have had on a log: python -m evaluation.other_version --run DIR --bundle DIR.

Each list that was drawn by exploration and followed the end of the bundle's data is asked again, at its moment and with
what was known of its user then; the logged items are weighed by how likely the other version would have shown them,
under the policy of the log. What a request brought along is not logged: requests count that give a user_id and no more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.feedback import read_feedback
from evaluation.off_policy import Logged, RewardModel, estimate
from evaluation.online import DISMISSALS, Feedback
from serve.command_line import make_parser, run_command
from serve.discovery.experiment import Policy
from serve.discovery.exploration import find_candidates
from serve.errors import SchemaError
from serve.recommender import Recommender
from serve.requests import History, Request, parse_id
from serve.state import DISMISS, Recalled, fill_in, know_user

DRAWS, FOLDS = 32, 2  # lists drawn for the mean of the reward model; parts of the users for its fit
MIN_LISTS = 100


def main(argv: Sequence[str] | None = None, program: str = "python -m evaluation.other_version") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="folder of the run, or the registry, with the state")
    add("--bundle", type=Path, required=True, metavar="DIR", help="of the other version, its profiles beside it")
    add("--targets", nargs="+", default=[], metavar="EVENT", help="events that count; default: all but dismissals")
    add("--window-days", type=float, default=1.0, metavar="DAYS", help="in which an event follows a list (default: 1)")
    return run_command(lambda: run(parser.parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Read the log, ask again, and print the estimates as JSON."""
    feedback = read_feedback(arguments)
    recommender = Recommender.load(arguments.bundle)
    logged = ask_again(recommender, feedback)
    found = estimate(logged)
    was = {"value": float(logged.reward.mean()), "slots": len(logged.reward)}
    content = {"version": recommender.version, "log": was, **asdict(found)}
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def ask_again(recommender: Recommender, feedback: Feedback) -> Logged:
    """Return the logged slots with the probabilities of the other version and a model of the reward."""
    slots = _choose_slots(recommender, feedback)
    asked = list(_ask_lists(recommender, feedback, slots))
    if len(asked) < MIN_LISTS:
        raise SchemaError(
            f"{len(asked)} lists of the log were drawn for users after the bundle's data; needed: {MIN_LISTS}. Serve "
            "with a policy of kind explore first"
        )
    rows = slots.loc[np.concatenate([one.index for one, *_ in asked])]
    target, score = (np.concatenate([one[place] for one in asked]) for place in (1, 2))
    user, reward = rows["user_id"].factorize()[0], (rows["conversions"].to_numpy() > 0).astype(np.float64)
    position, predicted, expected = rows["position"].to_numpy(), np.zeros(len(rows)), np.zeros(len(rows))
    drawn = np.concatenate([one[3] for one in asked])  # (R, DRAWS)
    for fold in range(FOLDS):
        is_held, shown = user % FOLDS == fold, np.isfinite(score)
        model = RewardModel(*(values[~is_held & shown] for values in (score, position, reward)))
        predicted[is_held & shown] = model.predict(score, position)[is_held & shown]
        expected[is_held] = model.predict(drawn[is_held], position[is_held, None]).mean(axis=1)
    return Logged(user, reward, rows["propensity"].to_numpy(np.float64), target, predicted, expected)


def _choose_slots(recommender: Recommender, feedback: Feedback) -> pd.DataFrame:
    slots, schema = feedback.slots, recommender.bundle.schema
    is_chosen = slots["policy"].str.startswith("explore") & slots["user_id"].notna()
    if schema.has_datetime:
        is_chosen &= slots["datetime"] > schema.data_until
    return slots[is_chosen]


def _ask_lists(recommender: Recommender, feedback: Feedback, slots: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Yield the slots of each list, the probabilities and scores of its items, and scores of what would be drawn."""
    events = {str(user): rows for user, rows in feedback.events.groupby("user_id")}
    for _, rows in slots.groupby("list", sort=False):
        first = rows.iloc[0]
        request = _make_request(recommender, str(first["user_id"]), int(first["datetime"]), events)
        policy = Policy.from_text(first["policy"])
        (found,) = find_candidates(recommender, [request], len(rows), None, policy)
        numbers = {str(item_id): place for place, item_id in enumerate(found.item_id.tolist())}
        places = np.array([numbers.get(item_id, -1) for item_id in rows["item_id"]])
        is_found = places >= 0
        target, score = np.zeros(len(rows)), np.full(len(rows), np.nan)
        target[is_found] = found.propensities(places[is_found], (rows["position"].to_numpy() - 1)[is_found])
        score[is_found] = found.score[places[is_found]]
        drawn = np.stack([found.score[found.draw(f"{number}")] for number in range(DRAWS)], axis=1)
        if len(drawn) == len(rows):
            yield rows, target, score, drawn


def _make_request(recommender: Recommender, user_id: str, moment: int, events: dict[str, pd.DataFrame]) -> Request:
    """Return the request of a user at a moment, with what they had done before it."""
    schema = recommender.bundle.schema
    request = Request(parse_id(user_id, schema.user_id_type, "user_id"), datetime=moment)
    return fill_in(request, know_user(user_id, recommender.profiles, lambda _: _recall(events.get(user_id), moment)))


def _recall(events: pd.DataFrame | None, moment: int) -> Recalled:
    """Return what a user had done before a moment."""
    if events is None or not (events["datetime"] < moment).any():
        return Recalled()
    events = events[events["datetime"] < moment].astype({"item_id": object, "event": object})
    is_dismissal = events["event"].isin(DISMISSALS)
    last = events[is_dismissal].drop_duplicates("item_id", keep="last")
    done = events[~is_dismissal]
    columns = (done[name].to_numpy() for name in ("item_id", "datetime", "event", "weight"))
    return Recalled(History(*columns), tuple(last["item_id"][last["event"] == DISMISS]))


if __name__ == "__main__":
    sys.exit(main())
