"""Evaluate any bundle on any holdout: bascule evaluate --bundle DIR --holdout FILE --train FILE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import SchemaError
from service.command_line import make_parser, run_command

# pandas and scipy take a second: they come after the checks of options
if TYPE_CHECKING:
    from serve.bundle import Bundle

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
    from rich.console import Console

    from evaluation.console import print_metrics
    from evaluation.evaluate import Parts
    from evaluation.given import evaluate_given
    from evaluation.metrics import headline_metric
    from serve.files import write_json

    schema = bundle.schema
    parts = Parts.read(
        arguments.holdout, arguments.train, arguments.users, arguments.at, schema
    )
    log = Console(stderr=True, log_path=False).log
    metrics, notes = evaluate_given(
        bundle, parts, arguments.seed, arguments.baselines, log
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print_metrics(Console(), metrics, headline_metric(schema.repeats), ("HR@10",))
    if arguments.json is not None:
        write_json(arguments.json, metrics)
        print(f"figures: {arguments.json}")


if __name__ == "__main__":
    sys.exit(main())
