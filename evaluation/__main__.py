"""Evaluate any bundle on any holdout: python -m evaluation --bundle DIR --holdout FILE --train FILE."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import SchemaError
from service.command_line import make_parser, run_command

if (
    TYPE_CHECKING
):  # pandas and scipy take a second: they are imported when options and paths are right
    import pandas as pd

    from serve.bundle import Bundle
    from serve.schema import Schema

_DESCRIPTION = """Evaluate any bundle on any holdout.

example:
  python -m evaluation --bundle runs/grocery/bundle --holdout test.parquet --train train.parquet --json figures.json"""


def main(
    argv: Sequence[str] | None = None, program: str = "python -m evaluation"
) -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, _DESCRIPTION)
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder of the bundle")
    add(
        "--holdout",
        type=Path,
        required=True,
        help="interactions to predict, CSV (also .csv.gz) or Parquet",
    )
    add(
        "--train",
        type=Path,
        required=True,
        help="interactions before them: the users' histories",
    )
    add("--users", type=Path, help="user features; without it they count as missing")
    add(
        "--at",
        help="the moment that each user is asked at; default: users are asked without one",
    )
    add(
        "--baselines",
        nargs="*",
        metavar="NAME",
        help="those to be fitted; default: all. No name: none",
    )
    add("--seed", type=int, default=0, help="draws what baselines are validated by")
    add("--json", type=Path, help="write the figures here")
    return run_command(lambda: run(parser.parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print the tables and write the figures."""
    figures: Path | None = arguments.json
    if figures is not None and (figures.is_dir() or not figures.parent.is_dir()):
        raise SchemaError(
            f"--json {figures} is a folder or in none; give a file in a folder that exists"
        )
    for path in (arguments.holdout, arguments.train, arguments.users):
        if path is not None and not path.exists():
            raise SchemaError(
                f"{path} does not exist; the working directory is {Path.cwd()}"
            )
    from serve.bundle import Bundle

    bundle = Bundle.load(arguments.bundle)
    judge(arguments, bundle)


def judge(arguments: argparse.Namespace, bundle: Bundle) -> None:
    """Read the tables and evaluate the bundle; what this imports takes seconds, so that it comes after the checks."""
    import pandas as pd
    from rich.console import Console

    from evaluation.console import print_metrics
    from evaluation.evaluate import Parts, evaluate, headline_metric
    from evaluation.holdout import profiles_from_frame, split_validation
    from serve.files import write_file
    from serve.recommender import Recommender

    schema = bundle.schema
    figures = arguments.json
    given = arguments
    parts = Parts.read(given.holdout, given.train, given.users, given.at, schema)
    check_reachable(
        parts.test,
        parts.train,
        pd.Series(bundle.items.column("item_id").to_pylist()),
        schema,
    )
    for note in find_doubts(parts.test, parts.train, schema, parts.at):
        print(f"note: {note}", file=sys.stderr)
    recommender = Recommender(
        bundle, profiles_from_frame(parts.train, parts.users, schema)
    )
    train, validation = split_validation(parts.train, parts.test, parts.at, given.seed)
    parts = replace(parts, train=train, validation=validation)
    log = Console(stderr=True, log_path=False).log
    metrics = evaluate(recommender, parts, arguments.seed, arguments.baselines, log)
    print_metrics(Console(), metrics, headline_metric(schema.repeats), ("HR@10",))
    if figures is not None:
        write_file(figures, (json.dumps(metrics, indent=1) + "\n").encode())
        print(f"figures: {figures}")


def check_reachable(
    holdout: pd.DataFrame,
    history: pd.DataFrame,
    catalogue: pd.Series[Any],
    schema: Schema,
) -> None:
    """Refuse a holdout of which no list can hold anything: every figure would be 0."""
    import pandas as pd

    from evaluation.holdout import PAIR

    known = holdout[holdout["item_id"].isin(catalogue)]
    if known.empty and len(holdout):
        got = holdout["item_id"].tolist()[0]
        listed = catalogue.tolist()[0]
        raise SchemaError(
            f"none of the {holdout['item_id'].nunique():,} items of --holdout is in the bundle's catalogue: item_id is "
            f"{got!r} in the holdout and {listed!r} in the catalogue; expected: ids as in the bundle's data"
        )
    is_owned = pd.MultiIndex.from_frame(known[PAIR]).isin(
        pd.MultiIndex.from_frame(history[PAIR])
    )
    if schema.repeats == "exclude" and len(known) and is_owned.all():
        user, item = known[PAIR].iloc[0].tolist()
        raise SchemaError(
            f"every item of --holdout in the catalogue is one that its user has in --train, as {user!r} has {item!r}, "
            "and this bundle recommends no item again; leave the events of the holdout out of --train"
        )


def find_doubts(
    holdout: pd.DataFrame, history: pd.DataFrame, schema: Schema, at: int | None
) -> Iterator[str]:
    """Yield notes on a holdout that does not fit the histories, or whose events, given times, are known from them."""
    import pandas as pd

    from evaluation.holdout import PAIR

    is_read = {
        "datetime": schema.has_datetime,
        "event": bool(schema.event_types),
        "weight": schema.has_weight,
    }
    lacking = [name for name in is_read if is_read[name] and name not in history]
    if lacking:
        yield f"columns that the bundle was trained with and --train lacks: {', '.join(lacking)}; they count as missing"
    if "datetime" not in history:
        return
    if "datetime" in holdout:
        keys = [
            name
            for name in (*PAIR, "datetime", "event", "weight")
            if name in history and name in holdout
        ]
        n_known = int(
            pd.MultiIndex.from_frame(holdout[keys])
            .isin(pd.MultiIndex.from_frame(history[keys]))
            .sum()
        )
        if n_known:
            yield f"events of --holdout that are in --train too: {n_known:,} of {len(holdout):,}; the answer is known"
    n_later = 0 if at is None else int((history["datetime"] >= at).sum())
    if n_later:
        yield f"events of --train at or after --at: {n_later:,} of {len(history):,}; nobody knows them then"


if __name__ == "__main__":
    sys.exit(main())
