"""Estimate what another version would have had on a log: python -m evaluation.off_policy --run DIR --bundle DIR.

Each list that was drawn by exploration and followed the end of the bundle's data is asked again, at its moment and with
what was known of its user then; the logged items are weighed by how likely the other version would have shown them,
under the policy of the log. What a request brought along is not logged: requests count that give a user_id and no more.

A row is a slot that was shown: its reward, the probability with which the log's policy put that item into that slot,
and that of the version to judge. IPS and SNIPS weigh rewards by the ratio of the two (Swaminathan and Joachims, NeurIPS
2015); DR adds a model of the reward and weighs what it misses (Dudik et al., ICML 2011). Slots count as independent
given the request. Intervals are of users: of their sums, since what one user does is not independent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

from evaluation.feedback import read_feedback
from evaluation.online import DISMISSALS, Feedback, Z
from serve.arrays import Doubles, Ints
from serve.errors import SchemaError
from serve.recommender import Recommender
from serve.requests import History, Request, parse_id
from service.command_line import make_parser, run_command
from service.experiment import Policy
from service.exploration import find_candidates
from service.known_users import fill_in, know_user
from service.state import DISMISS, Recalled

DRAWS = (
    32  # lists drawn for the mean of the reward model; parts of the users for its fit
)
FOLDS = 2
MIN_LISTS = 100
MAX_WEIGHT = (
    100.0  # of a row: what is above is cut, which biases the estimate towards the log
)
MIN_EFFECTIVE = 100.0  # effective rows below which there is no estimate
_RIDGE = 1e-3  # of the reward model's coefficients, in rows


def main(
    argv: Sequence[str] | None = None, program: str = "python -m evaluation.off_policy"
) -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run, or the registry, with the state",
    )
    add(
        "--bundle",
        type=Path,
        required=True,
        metavar="DIR",
        help="of the other version, its profiles beside it",
    )
    add(
        "--targets",
        nargs="+",
        default=[],
        metavar="EVENT",
        help="events that count; default: all but dismissals",
    )
    add(
        "--window-days",
        type=float,
        default=1.0,
        metavar="DAYS",
        help="in which an event follows a list (default: 1)",
    )
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
    user = rows["user_id"].factorize()[0]
    reward = (rows["conversions"].to_numpy() > 0).astype(np.float64)
    position = rows["position"].to_numpy()
    predicted = np.zeros(len(rows))
    expected = np.zeros(len(rows))
    drawn = np.concatenate([one[3] for one in asked])  # (R, DRAWS)
    for fold in range(FOLDS):
        is_held = user % FOLDS == fold
        shown = np.isfinite(score)
        model = RewardModel(
            *(values[~is_held & shown] for values in (score, position, reward))
        )
        predicted[is_held & shown] = model.predict(score, position)[is_held & shown]
        expected[is_held] = model.predict(drawn[is_held], position[is_held, None]).mean(
            axis=1
        )
    return Logged(
        user,
        reward,
        rows["propensity"].to_numpy(np.float64),
        target,
        predicted,
        expected,
    )


def _choose_slots(recommender: Recommender, feedback: Feedback) -> pd.DataFrame:
    slots = feedback.slots
    schema = recommender.bundle.schema
    is_chosen = slots["policy"].str.startswith("explore") & slots["user_id"].notna()
    if schema.has_datetime:
        is_chosen &= slots["datetime"] > schema.data_until
    return slots[is_chosen]


def _ask_lists(
    recommender: Recommender, feedback: Feedback, slots: pd.DataFrame
) -> Iterator[tuple[Any, ...]]:
    """Yield the slots of each list, the probabilities and scores of its items, and scores of what would be drawn."""
    events = {str(user): rows for user, rows in feedback.events.groupby("user_id")}
    for _, rows in slots.groupby("list", sort=False):
        first = rows.iloc[0]
        request = _make_request(
            recommender, str(first["user_id"]), int(first["datetime"]), events
        )
        policy = Policy.from_text(first["policy"])
        (found,) = find_candidates(recommender, [request], len(rows), None, policy)
        numbers = {
            str(item_id): place for place, item_id in enumerate(found.item_id.tolist())
        }
        places = np.array([numbers.get(item_id, -1) for item_id in rows["item_id"]])
        is_found = places >= 0
        target = np.zeros(len(rows))
        score = np.full(len(rows), np.nan)
        target[is_found] = found.propensities(
            places[is_found], (rows["position"].to_numpy() - 1)[is_found]
        )
        score[is_found] = found.score[places[is_found]]
        drawn = np.stack(
            [found.score[found.draw(f"{number}")] for number in range(DRAWS)], axis=1
        )
        if len(drawn) == len(rows):
            yield rows, target, score, drawn


def _make_request(
    recommender: Recommender, user_id: str, moment: int, events: dict[str, pd.DataFrame]
) -> Request:
    """Return the request of a user at a moment, with what they had done before it."""
    schema = recommender.bundle.schema
    request = Request(
        parse_id(user_id, schema.user_id_type, "user_id"), datetime=moment
    )
    return fill_in(
        request,
        know_user(
            user_id,
            recommender.profiles,
            lambda _: _recall(events.get(user_id), moment),
        ),
    )


def _recall(events: pd.DataFrame | None, moment: int) -> Recalled:
    """Return what a user had done before a moment."""
    if events is None or not (events["datetime"] < moment).any():
        return Recalled()
    events = events[events["datetime"] < moment].astype(
        {"item_id": object, "event": object}
    )
    is_dismissal = events["event"].isin(DISMISSALS)
    last = events[is_dismissal].drop_duplicates("item_id", keep="last")
    done = events[~is_dismissal]
    columns = (
        done[name].to_numpy() for name in ("item_id", "datetime", "event", "weight")
    )
    return Recalled(History(*columns), tuple(last["item_id"][last["event"] == DISMISS]))


# ---- the estimates


@dataclass(frozen=True)
class Logged:
    """Slots that were shown, R rows."""

    user: Ints  # (R,), any numbering
    reward: Doubles  # (R,)
    propensity: Doubles  # (R,), of the logging policy, above 0
    target: Doubles  # (R,), of the policy to judge for the same item in the same slot
    predicted: Doubles  # (R,), reward of the item that was shown, by a model that has not seen this user
    expected: Doubles  # (R,), mean of that model's reward over what the policy to judge would show in this slot


@dataclass(frozen=True)
class Estimate:
    """Mean reward of a slot, with an interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimates:
    """The estimates of one policy; all of them None where too few rows count."""

    ips: Estimate | None
    snips: Estimate | None
    dr: Estimate | None
    effective: float  # rows
    clipped: int  # rows whose weight was cut


def estimate(log: Logged) -> Estimates:
    """Estimate the mean reward of a slot under the policy to judge."""
    raw = log.target / log.propensity
    weight = np.minimum(raw, MAX_WEIGHT)
    clipped = int((raw > MAX_WEIGHT).sum())
    total = weight.sum()
    effective = float(total**2 / max((weight**2).sum(), 1e-300))
    if effective < MIN_EFFECTIVE:
        return Estimates(None, None, None, effective, clipped)
    ips = weight * log.reward
    value = float(ips.sum() / total)
    snips = value + weight * (log.reward - value) * (len(weight) / total)
    dr = log.expected + weight * (log.reward - log.predicted)
    described = [_describe(rows, log.user) for rows in (ips, snips, dr)]
    return Estimates(described[0], described[1], described[2], effective, clipped)


def _describe(rows: Doubles, user: Ints) -> Estimate:
    """Return the mean of rows, and its interval by the spread of the sums of users (of the influence function)."""
    _, number = np.unique(user, return_inverse=True)
    mean = float(rows.mean())
    sums = np.bincount(number, rows - mean)
    n_users = len(sums)
    half = Z * np.sqrt((sums**2).sum() * n_users / max(n_users - 1, 1)) / len(rows)
    return Estimate(mean, float(mean - half), float(mean + half))


class RewardModel:
    """Logistic regression of a reward on the score of an item and the slot, the direct method of DR."""

    def __init__(self, score: Doubles, position: Ints, reward: Doubles) -> None:
        """Fit by maximum likelihood; rewards lie in 0 to 1, positions count from 1."""
        self._centre = float(score.mean())
        self._scale = float(score.std()) or 1.0
        inputs = self._inputs(score, position)

        def loss(coefficients: Doubles) -> tuple[float, Doubles]:
            logits = inputs @ coefficients
            value = (
                np.logaddexp(0, logits).sum()
                - reward @ logits
                + _RIDGE * coefficients @ coefficients
            )
            return float(value), inputs.T @ (
                expit(logits) - reward
            ) + 2 * _RIDGE * coefficients

        self._coefficients: Doubles = minimize(
            loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B"
        ).x

    def predict(self, score: Doubles, position: Ints) -> Doubles:
        """Return the expected reward, of the shape of the scores."""
        rewards: Doubles = expit(self._inputs(score, position) @ self._coefficients)
        return rewards

    def _inputs(self, score: Doubles, position: Ints) -> Doubles:
        scaled = (score - self._centre) / self._scale
        columns = np.broadcast_arrays(
            np.ones_like(scaled), scaled, scaled**2, np.log(position), 1 / position
        )
        return np.stack(columns, axis=-1)


if __name__ == "__main__":
    sys.exit(main())
