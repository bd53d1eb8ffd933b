"""Estimate what another version would have had on a log: bascule judge --run DIR --bundle DIR.

Each list that was drawn as a whole and followed the end of the bundle's data is asked again, at its
moment and with what was known of its user then, once the window of what may follow it is over; the
logged items are weighed by how likely the other version would have shown them, under the policy of
the log. What a request brought along, filters too, is not logged: requests count as if they gave a
user_id and no more. Where the log does not cover the other version, the weights' mean is not 1, and
there is no estimate.

A row is a slot that was shown: its reward, the probability with which the log's policy put that
item into that slot, and that of the version to judge. IPS and SNIPS weigh rewards by the ratio of
the two (Swaminathan and Joachims, NeurIPS 2015); DR adds a model of the reward and weighs what it
misses (Dudik et al., ICML 2011). Slots count as independent given the request. Intervals are of
users: of their sums, since what one user does is not independent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

from evaluation.feedback import add_log_options, read_log_of
from evaluation.online import (
    DISMISSALS,
    Estimate,
    Feedback,
    add_profiles,
    estimate_mean,
)
from serve.arrays import Doubles, Floats, Ints
from serve.cells import parse_id
from serve.clock import DAY
from serve.errors import SchemaError
from serve.recommender import Recommender
from serve.requests import History, Request
from service.command_line import make_parser, run_command
from service.event_log import DISMISS, Recalled
from service.experiment import Policy
from service.exploration import find_candidates
from service.known_users import fill_in, know_user
from service.sources import NO_PROFILES

Scores = Doubles | Floats
Model = Callable[[Scores, Ints], Doubles]  # scores and slots -> expected rewards

DRAWS = 32  # lists drawn for the mean of the reward model
FOLDS = 2  # parts of the users for its fit
MIN_LISTS = 100
MAX_WEIGHT = 100.0  # of a row; cutting biases the estimate towards the log
MIN_EFFECTIVE = 100.0  # effective rows below which there is no estimate
MIN_SHARE = (
    0.1  # of rows that are effective: of fewer, the largest weights are not seen yet
)
MIN_REWARDED = 30.0  # the same of rewarded rows, and of users who have them
MAX_GAP = 0.1  # between 1 and the mean weight: the rest of the other version is not in the log
NO_ESTIMATE = (
    "note: no estimate: it takes a mean weight within .1 of 1 (else the log lacks what the "
    "version would show), 100 effective slots and .1 of all, and 30 effective slots "
    "and users with a reward\n"
)
_RIDGE = 1e-3  # of the reward model's coefficients, in rows


def main(argv: Sequence[str] | None = None, program: str = "bascule judge") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add_log_options(parser)
    parser.add_argument(
        "--bundle",
        type=Path,
        required=True,
        metavar="DIR",
        help="bundle of the other version",
    )
    add_profiles(parser)

    return run_command(lambda: run(parser.parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Read the log, ask again, and print the estimates as JSON."""
    feedback = read_log_of(arguments)
    recommender = Recommender.load(arguments.bundle, arguments.profiles)
    if not len(recommender.profiles):
        raise SchemaError(NO_PROFILES)

    window = int(arguments.window_days * DAY)
    log = ask_again(recommender, feedback, window)
    content = {
        "version": recommender.version,
        "log": {"value": float(log.reward.mean())},
        **asdict(estimate(log)),
    }
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
    if content["ips"] is None:
        sys.stderr.write(NO_ESTIMATE)


def ask_again(recommender: Recommender, feedback: Feedback, window: int) -> Logged:
    """Ask another version for the lists of a log.

    Args:
        recommender: the other version, with its profiles.
        feedback: the log.
        window: seconds in which an event follows a list.

    Returns:
        The logged slots, with the probabilities of the other version and a model of the reward.

    Raises:
        SchemaError: too few lists were drawn for users after the data of the version.
    """
    lists = list(_ask_lists(recommender, feedback, window))
    if len(lists) < MIN_LISTS:
        raise SchemaError(
            f"{len(lists)} lists of the log were drawn as a whole for users after the "
            f"bundle's data, and their window is over; needed: {MIN_LISTS}. Serve with a "
            "policy of kind explore, and slots for the whole list, first"
        )

    slots = pd.concat([rows for rows, _ in lists])
    drawn = np.concatenate([scores for _, scores in lists])
    user = slots["user_id"].factorize()[0]
    score = slots["score"].to_numpy()
    position = slots["position"].to_numpy()
    reward = (slots["conversions"].to_numpy() > 0).astype(np.float64)

    predicted = np.zeros(len(slots))
    expected = np.zeros(len(slots))
    is_scored = np.isfinite(score)

    for fold in range(FOLDS):
        is_held = user % FOLDS == fold
        others = ~is_held & is_scored
        predict = fit_reward(score[others], position[others], reward[others])
        held = is_held & is_scored
        predicted[held] = predict(score[held], position[held])
        rewards = predict(drawn[is_held], position[is_held, None])
        expected[is_held] = rewards.mean(axis=1)

    return Logged(
        user=user,
        reward=reward,
        propensity=slots["propensity"].to_numpy(np.float64),
        target=slots["target"].to_numpy(),
        predicted=predicted,
        expected=expected,
    )


def _ask_lists(
    recommender: Recommender, feedback: Feedback, window: int
) -> Iterator[tuple[pd.DataFrame, Floats]]:
    """Ask for each list again that was drawn for a user after the data of the version.

    Yields:
        The S slots of a list, with the `target` probability and the `score` of the version, NaN of
        an item that it would not draw; and the scores of what it would show, (S, DRAWS). Lists are
        left out for which the version has fewer items.
    """
    slots = feedback.slots
    schema = recommender.bundle.schema
    is_chosen = slots["policy"].str.startswith("explore") & slots["user_id"].notna()
    is_chosen &= slots["datetime"] <= slots["datetime"].max() - window

    if schema.has_datetime:
        is_chosen &= slots["datetime"] > schema.data_until

    events = {str(user): rows for user, rows in feedback.events.groupby("user_id")}
    no_events = feedback.events[:0]
    for number, rows in slots[is_chosen].groupby("list", sort=False):
        first = rows.iloc[0]
        policy = Policy.from_text(first["policy"])
        if policy.slots < len(rows):
            continue
        user_id = first["user_id"]
        moment = int(first["datetime"])
        done = events.get(user_id, no_events)

        request = _make_request(recommender, user_id, moment, done)
        candidates = find_candidates(recommender, request, len(rows), None, policy)

        item_ids = map(str, candidates.item_id.tolist())
        indices = pd.Index(item_ids).get_indexer(pd.Index(rows["item_id"]))
        is_listed = indices >= 0
        listed = indices[is_listed]
        positions = rows["position"].to_numpy()[is_listed]

        target = np.zeros(len(rows))
        score = np.full(len(rows), np.nan)
        target[is_listed] = candidates.propensities(listed, positions - 1)
        score[is_listed] = candidates.score[listed]

        draws = [candidates.draw(f"{number} {again}") for again in range(DRAWS)]
        drawn = candidates.score[np.stack(draws, axis=1)]
        if len(drawn) == len(rows):
            yield rows.assign(target=target, score=score), drawn


def _make_request(
    recommender: Recommender, user_id: str, moment: int, events: pd.DataFrame
) -> Request:
    """Return the request of a user at a moment, with what they had done before it."""
    past = events[events["datetime"] < moment]
    past = past.astype({"item_id": object, "event": object})

    is_dismissal = past["event"].isin(DISMISSALS)
    last = past[is_dismissal].drop_duplicates("item_id", keep="last")
    done = past[~is_dismissal]

    columns = ("item_id", "datetime", "event", "weight")
    history = History(*(done[name].to_numpy() for name in columns))
    dismissed = tuple(last["item_id"][last["event"] == DISMISS])
    recalled = Recalled(history, dismissed)

    id_type = recommender.bundle.schema.user_id_type
    request = Request(parse_id(user_id, id_type, "user_id"), datetime=moment)
    return fill_in(
        request, know_user(user_id, recommender.profiles, lambda _: recalled)
    )


# ---- the estimates


@dataclass(frozen=True)
class Logged:
    """Slots that were shown, R rows."""

    user: Ints  # (R,), from 0
    reward: Doubles  # (R,)
    propensity: Doubles  # (R,), of the logging policy, above 0
    target: Doubles  # (R,), of the policy to judge for the same item and slot
    predicted: Doubles  # (R,), reward by a model that has not seen this user
    expected: Doubles  # (R,), its mean over what the policy to judge would show here


@dataclass(frozen=True)
class Estimates:
    """The estimates of one policy; all of them None where the log does not do."""

    effective: float  # rows
    rewarded: float  # effective rows with a reward, or their users if these are fewer
    mean_weight: float  # 1 where the log covers the policy
    clipped: int  # rows whose weight was cut
    ips: Estimate | None = None
    snips: Estimate | None = None
    dr: Estimate | None = None


def estimate(log: Logged) -> Estimates:
    """Estimate the mean reward of a slot under the policy to judge."""
    ratio = log.target / log.propensity
    weight = np.minimum(ratio, MAX_WEIGHT)
    total = weight.sum()
    ips = weight * log.reward
    of_users = np.bincount(log.user, ips)
    effective = count_effective(weight)
    rewarded = min(count_effective(ips), count_effective(of_users))
    mean_weight = float(weight.mean())
    clipped = int((ratio > MAX_WEIGHT).sum())
    facts = Estimates(effective, rewarded, mean_weight, clipped)

    needed = max(MIN_EFFECTIVE, MIN_SHARE * len(weight))
    is_much = effective >= needed and rewarded >= MIN_REWARDED
    if not is_much or abs(mean_weight - 1) > MAX_GAP:
        return facts

    value = float(ips.sum() / total)
    snips = value + weight * (log.reward - value) * (len(weight) / total)
    dr = log.expected + weight * (log.reward - log.predicted)
    return replace(
        facts,
        ips=estimate_mean(ips, log.user),
        snips=estimate_mean(snips, log.user),
        dr=estimate_mean(dr, log.user),
    )


def count_effective(weights: Doubles | Ints) -> float:
    """Return how many equal weights say as much (Kish), 0 where there is none."""
    return float(weights.sum() ** 2 / max((weights**2).sum(), 1e-300))


def fit_reward(score: Doubles, position: Ints, reward: Doubles) -> Model:
    """Fit a logistic regression of a reward on score and slot, the direct method of DR.

    Args:
        score: (R,) scores of items.
        position: (R,) slots from 1.
        reward: (R,) from 0 to 1.

    Returns:
        A function of scores and slots: the expected reward, of the shape of the scores.
    """
    centre = float(score.mean())
    scale = float(score.std()) or 1.0

    def describe(score: Scores, position: Ints) -> Doubles:
        scaled = (score - centre) / scale
        columns = np.broadcast_arrays(
            np.ones_like(scaled), scaled, scaled**2, np.log(position), 1 / position
        )
        return np.stack(columns, axis=-1)

    inputs = describe(score, position)

    def loss(coefficients: Doubles) -> tuple[float, Doubles]:
        logits = inputs @ coefficients
        likelihood = np.logaddexp(0, logits).sum() - reward @ logits
        value = likelihood + _RIDGE * coefficients @ coefficients
        gradient = inputs.T @ (expit(logits) - reward) + 2 * _RIDGE * coefficients
        return float(value), gradient

    start = np.zeros(inputs.shape[1])
    fitted: Doubles = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return lambda score, position: expit(describe(score, position) @ fitted)
