"""Evaluate any bundle on any holdout: bascule evaluate --bundle DIR --holdout FILE --train FILE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import SchemaError
from service.command_line import make_parser, run_command

# pandas and scipy take a second: they come after the checks of options
if TYPE_CHECKING:
    import pandas as pd

    from serve.bundle import Bundle
    from serve.schema import Schema

_DESCRIPTION = """Evaluate any bundle on any holdout.

example:
  bascule evaluate --bundle runs/grocery/bundle --holdout test.parquet --train train.parquet"""
_OPTIONS: dict[str, dict[str, Any]] = {
    "--bundle": {"type": Path, "required": True, "help": "folder of the bundle"},
    "--holdout": {
        "type": Path,
        "required": True,
        "help": "interactions to predict, CSV (also .csv.gz) or Parquet",
    },
    "--train": {
        "type": Path,
        "required": True,
        "help": "interactions before them: the users' histories",
    },
    "--users": {"type": Path, "help": "user features (default: all missing)"},
    "--at": {"help": "time of each user's request (default: none)"},
    "--baselines": {
        "nargs": "*",
        "metavar": "NAME",
        "help": "baselines to fit (default: all; no name: none)",
    },
    "--seed": {
        "type": int,
        "default": 0,
        "help": "draws the users that baselines are validated on",
    },
    "--json": {"type": Path, "help": "file to write the figures to"},
}


def main(argv: Sequence[str] | None = None, program: str = "bascule evaluate") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, _DESCRIPTION)
    for name, option in _OPTIONS.items():
        parser.add_argument(name, **option)
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

    judge(arguments, Bundle.load(arguments.bundle))


def judge(arguments: argparse.Namespace, bundle: Bundle) -> None:
    """Read the tables and evaluate the bundle."""
    import pandas as pd
    from rich.console import Console

    from evaluation.console import print_metrics
    from evaluation.evaluate import Parts, evaluate, headline_metric
    from evaluation.holdout import profiles_from_frame, split_validation
    from serve.files import write_json
    from serve.recommender import Recommender

    schema = bundle.schema
    parts = Parts.read(
        arguments.holdout, arguments.train, arguments.users, arguments.at, schema
    )
    catalogue = pd.Series(bundle.items.column("item_id").to_pylist())
    check_reachable(parts.test, parts.train, catalogue, schema)
    for note in find_doubts(parts.test, parts.train, schema, parts.at):
        print(f"note: {note}", file=sys.stderr)
    profiles = profiles_from_frame(parts.train, parts.users, schema)
    train, validation = split_validation(
        parts.train, parts.test, parts.at, arguments.seed
    )
    parts = replace(parts, train=train, validation=validation)

    log = Console(stderr=True, log_path=False).log
    recommender = Recommender(bundle, profiles)
    metrics = evaluate(recommender, parts, arguments.seed, arguments.baselines, log)
    print_metrics(Console(), metrics, headline_metric(schema.repeats), ("HR@10",))
    if arguments.json is not None:
        write_json(arguments.json, metrics)
        print(f"figures: {arguments.json}")


def check_reachable(
    holdout: pd.DataFrame,
    history: pd.DataFrame,
    catalogue: pd.Series[Any],
    schema: Schema,
) -> None:
    """Refuse a holdout of which no list can hold anything.

    Args:
        holdout: interactions to predict.
        history: interactions before them.
        catalogue: ids of all items, (N,).
        schema: of the bundle.

    Raises:
        SchemaError: every figure would be 0.
    """
    from evaluation.holdout import PAIR

    listed = holdout[holdout["item_id"].isin(catalogue)]
    if len(holdout) and listed.empty:
        got = holdout["item_id"].tolist()[0]
        raise SchemaError(
            f"none of the {holdout['item_id'].nunique():,} items of --holdout is in the bundle's "
            f"catalogue: item_id is {got!r} in the holdout and {catalogue.tolist()[0]!r} in the "
            "catalogue; expected: ids as in the bundle's data"
        )

    is_owned = _find_rows(listed, history, PAIR)
    if schema.repeats == "exclude" and len(listed) and is_owned.all():
        user, item = listed[PAIR].iloc[0].tolist()
        raise SchemaError(
            "every item of --holdout in the catalogue is one that its user has in --train, "
            f"as {user!r} has {item!r}, and this bundle recommends no item again; "
            "leave the events of the holdout out of --train"
        )


def _find_rows(rows: pd.DataFrame, table: pd.DataFrame, columns: list[str]) -> Any:
    """Mark the rows whose columns are those of a row of the table."""
    import pandas as pd

    wanted = pd.MultiIndex.from_frame(table[columns])
    return pd.MultiIndex.from_frame(rows[columns]).isin(wanted)


def find_doubts(
    holdout: pd.DataFrame, history: pd.DataFrame, schema: Schema, at: int | None
) -> Iterator[str]:
    """Yield notes on histories that lack columns, or know the answers."""
    from evaluation.holdout import PAIR

    is_read = {
        "datetime": schema.has_datetime,
        "event": bool(schema.event_types),
        "weight": schema.has_weight,
    }

    lacking = [name for name in is_read if is_read[name] and name not in history]
    if lacking:
        yield (
            "columns that the bundle was trained with and --train lacks: "
            f"{', '.join(lacking)}; they count as missing"
        )

    if "datetime" not in history:
        return

    if "datetime" in holdout:
        shared = history.columns.intersection(holdout.columns)
        keys = shared.intersection([*PAIR, *is_read]).tolist()
        n_known = int(_find_rows(holdout, history, keys).sum())
        if n_known:
            yield (
                f"events of --holdout that are in --train too: {n_known:,} of {len(holdout):,}; "
                "the answer is known"
            )

    n_later = 0 if at is None else int((history["datetime"] >= at).sum())
    if n_later:
        yield (
            f"events of --train at or after --at: {n_later:,} of {len(history):,}; "
            "nobody knows them then"
        )


if __name__ == "__main__":
    sys.exit(main())
