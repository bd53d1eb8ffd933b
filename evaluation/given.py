"""Measure a bundle by a test that somebody hands over."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.baselines import Log
from evaluation.evaluate import Parts, evaluate
from evaluation.holdout import PAIR, Source, profiles_from_frame, split_validation
from evaluation.metrics import Metric
from evaluation.seen import find_rows
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.recommender import Recommender
from serve.schema import Schema


def evaluate_given(
    bundle: Bundle,
    parts: Parts,
    seed: int,
    baselines: Sequence[str] | None,
    log: Log,
    own: Sequence[Metric] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Measure a bundle on a test by profiles of the events before it.

    Args:
        bundle: whose weights have not seen the test.
        parts: the test, what was before it as `train`, and users.
        seed: draws the users that baselines are validated on.
        baselines: names of those to fit; None: all.
        log: takes a line after each model.
        own: metrics beside the usual ones.

    Returns:
        The figures as of `evaluate`, and notes on what the tables lack.

    Raises:
        SchemaError: the test cannot be met, or was seen.
    """
    schema = bundle.schema
    past = parts.train
    catalogue = pd.Series(bundle.items.column("item_id").to_pylist())
    check_reachable(parts.test, past, catalogue, schema)
    notes = [*find_doubts(past, schema, parts.at)]
    profiles = profiles_from_frame(past, parts.users, schema)
    train, validation = split_validation(past, parts.test, parts.at, seed)
    parts = replace(parts, train=train, validation=validation)
    recommender = Recommender(bundle, profiles)
    return evaluate(recommender, parts, seed, baselines, log, own), notes


def evaluate_tables(
    bundle: Bundle,
    test: Source | str,
    past: Source | str,
    users: Source | str | None,
    at: str | None,
    baselines: Sequence[str] | None,
    own: Sequence[Metric],
) -> dict[str, Any]:
    """Measure a bundle on files or tables in memory; what these lack is a warning."""
    known = None if users is None else name_source(users)
    schema = bundle.schema
    parts = Parts.read(name_source(test), name_source(past), known, at, schema)
    metrics, notes = evaluate_given(bundle, parts, 0, baselines, lambda _: None, own)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return metrics


def name_source(table: Source | str) -> Source:
    """Return a table, a text as the path that it is."""
    return Path(table) if isinstance(table, str) else table


def check_reachable(
    holdout: pd.DataFrame,
    history: pd.DataFrame,
    catalogue: pd.Series[Any],
    schema: Schema,
) -> None:
    """Refuse a test of which no list can hold anything, or whose events are among those before it.

    Args:
        holdout: interactions to predict.
        history: interactions before them.
        catalogue: ids of all items, (N,).
        schema: of the bundle.

    Raises:
        SchemaError: every figure would be 0, or the answer is known.
    """
    listed = holdout[holdout["item_id"].isin(catalogue)]
    if len(holdout) and listed.empty:
        got = holdout["item_id"].tolist()[0]
        raise SchemaError(
            f"none of the {holdout['item_id'].nunique():,} items of the test is in the bundle's "
            f"catalogue: item_id is {got!r} in the test and {catalogue.tolist()[0]!r} in the "
            "catalogue; expected: ids as in the bundle's data"
        )

    if "datetime" in holdout and "datetime" in history:
        n_known = int(find_rows(holdout, history, [*PAIR, "datetime", "event"]).sum())
        if n_known:
            raise SchemaError(
                f"{n_known:,} of the {len(holdout):,} events of the test are among those before "
                "it, too: leave them out there"
            )

    is_owned = find_rows(listed, history, PAIR)
    if schema.repeats == "exclude" and len(listed) and is_owned.all():
        user, item = listed[PAIR].iloc[0].tolist()
        raise SchemaError(
            "every item of the test in the catalogue is one that its user has before it, "
            f"as {user!r} has {item!r}, and this bundle recommends no item again; "
            "leave the events of the test out of those before it"
        )


def find_doubts(history: pd.DataFrame, schema: Schema, at: int | None) -> Iterator[str]:
    """Yield notes on histories that lack columns, or know what comes later."""
    is_read = {
        "datetime": schema.has_datetime,
        "event": bool(schema.event_types),
        "weight": schema.has_weight,
    }

    lacking = [name for name in is_read if is_read[name] and name not in history]
    if lacking:
        yield (
            "columns that the bundle was trained with and the events before the test lack: "
            f"{', '.join(lacking)}; they count as missing"
        )

    if "datetime" not in history:
        return
    n_later = 0 if at is None else int((history["datetime"] >= at).sum())
    if n_later:
        yield (
            f"events before the test at or after its moment: {n_later:,} of {len(history):,}; "
            "nobody knows them then"
        )
