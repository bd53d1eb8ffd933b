"""Evaluate any bundle on any holdout: python -m evaluation --bundle DIR --holdout FILE --train FILE."""

from __future__ import annotations

if __name__ == "__main__":  # before anything that may be missing is imported
    from serve.interpreter import EVALUATING, require_packages

    require_packages(EVALUATING)

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from evaluation.evaluate import evaluate
from evaluation.examination import headline_metric
from evaluation.frames import read_interactions, read_moment, read_users
from evaluation.histories import profiles_from_frame
from evaluation.joins import check_reachable, say_gaps, say_leaks, say_strangers
from evaluation.progress import Watched
from evaluation.result_table import print_metrics
from evaluation.validation import count_pairs, hold_out_last, hold_out_pairs, hold_out_window
from serve.bundle import Bundle
from serve.command_line import FAULT, make_parser, parse_options
from serve.durable import write_file
from serve.errors import SchemaError, say
from serve.interruption import ending_on_signals
from serve.recommender import Recommender
from serve.schema import Schema

OTHERS = ("HR@10",)
_DESCRIPTION = """Evaluate any bundle on any holdout.

example:
  python -m evaluation --bundle runs/grocery/bundle --holdout test.parquet --train train.parquet --json figures.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after one line about what is wrong. Ctrl-C ends it with 130, SIGTERM with 143."""
    try:
        with ending_on_signals():
            run(_parse(argv))
    except (ValueError, OSError) as error:  # SchemaError and BundleError are ValueErrors
        print(f"error: {say(error)}", file=sys.stderr)
        return FAULT
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print the tables and write the figures.

    Raises:
        SchemaError: an option cannot be, a file or the moment cannot be read, or no list can hold anything of the
            holdout.
        BundleError: the bundle cannot be trusted.
    """
    _check_options(arguments)
    bundle = Bundle.load(arguments.bundle)
    schema = bundle.schema
    holdout = read_interactions(arguments.holdout, schema)
    train = read_interactions(arguments.train, schema)
    users = _read_users(arguments.users, schema)
    at = None if arguments.at is None else read_moment(arguments.at, schema.timezone)
    _check_joins(bundle, holdout, train, at)
    recommender = Recommender(bundle, profiles_from_frame(train, users, schema))
    parts = _split(train, holdout, at, arguments.seed)
    with Watched(Console(stderr=True, log_path=False), has_bar=True) as progress:
        metrics = evaluate(
            recommender,
            holdout,
            *parts,
            users,
            at,
            _groups(users, schema),
            arguments.seed,
            progress,
            arguments.baselines,
        )
    print_metrics(Console(), metrics, headline_metric(schema.repeats), OTHERS)
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(metrics, indent=1) + "\n").encode())
        print(f"figures: {arguments.json}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m evaluation", _DESCRIPTION)
    options: dict[str, dict[str, Any]] = {
        "--bundle": {"type": Path, "required": True, "help": "folder of the bundle"},
        "--holdout": {"type": Path, "required": True, "help": "interactions to predict, CSV (also .csv.gz) or Parquet"},
        "--train": {"type": Path, "required": True, "help": "interactions before them: the users' histories"},
        "--users": {"type": Path, "help": "user features; without it they count as missing"},
        "--at": {"help": "the moment that each user is asked at; default: users are asked without one"},
        "--baselines": {"nargs": "*", "metavar": "NAME", "help": "those to be fitted; default: all. No name: none"},
        "--seed": {"type": int, "default": 0, "help": "draws what baselines are validated by"},
        "--json": {"type": Path, "help": "write the figures here"},
    }
    for name, option in options.items():
        parser.add_argument(name, **option)
    return parse_options(parser, argv)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse at once what would fail after minutes of baselines, or replace a file that is read."""
    if arguments.seed < 0:
        raise SchemaError(f"--seed is {arguments.seed}; allowed: 0 and above")
    if arguments.json is not None:
        _check_place(arguments.json, [arguments.holdout, arguments.train, arguments.users])


def _check_place(figures: Path, sources: Sequence[Path | None]) -> None:
    if figures.is_dir() or not figures.parent.is_dir():
        what = "is a folder" if figures.is_dir() else f"has no folder {figures.parent}"
        raise SchemaError(f"--json {figures} {what}; give a file in a folder that exists")
    for source in filter(None, sources):
        if figures.exists() and source.exists() and figures.samefile(source):
            raise SchemaError(f"--json {figures} is a file that is read, and the figures would replace it")


def _read_users(path: Path | None, schema: Schema) -> pd.DataFrame:
    if path is not None:
        return read_users(path, schema)
    return pd.DataFrame({"user_id": pd.Series([], dtype=object if schema.user_id_type == "string" else "int64")})


def _check_joins(bundle: Bundle, holdout: pd.DataFrame, train: pd.DataFrame, at: int | None) -> None:
    check_reachable(holdout, train, pd.Series(bundle.items.column("item_id").to_pylist()), bundle.schema.repeats)
    for note in (say_strangers(holdout, train), say_gaps(train, bundle.schema), *say_leaks(holdout, train, at)):
        if note is not None:
            print(f"note: {note}", file=sys.stderr)


def _split(train: pd.DataFrame, holdout: pd.DataFrame, at: int | None, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part validation from training as the holdout was: a window as long, each user's last, or as many of the pairs."""
    if at is not None and "datetime" in train and "datetime" in holdout:
        parts = hold_out_window(train, at, max(int(holdout["datetime"].max()) - at, 1))
        if all(map(len, parts)):
            return parts
    if "datetime" in train or "position" in train:
        return hold_out_last(train)
    n_held_out = count_pairs(holdout)
    return hold_out_pairs(train, n_held_out / (n_held_out + count_pairs(train)), seed)


def _groups(users: pd.DataFrame, schema: Schema) -> list[str]:
    single = [feature.column for feature in schema.user_features if feature.kind in ("categorical", "numeric")]
    return [column for column in single if column in users]


if __name__ == "__main__":
    sys.exit(main())
