"""Write the report of a finished run again: python -m evaluation.report --run DIR [--holdout FILE]."""

from __future__ import annotations

if __name__ == "__main__":  # before anything that may be missing is imported
    from serve.interpreter import EVALUATING, require_packages

    require_packages(EVALUATING)

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.frames import read_interactions
from evaluation.report.page import write_report
from serve.command_line import FAULT, make_parser, parse_options
from serve.errors import SchemaError, say
from serve.interruption import ending_on_signals
from serve.layout import BUNDLE, METRICS, REPORT
from serve.recommender import Recommender


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after one line about what is wrong. Ctrl-C ends it with 130, SIGTERM with 143."""
    parser = make_parser("python -m evaluation.report", "Write the report of a finished run again.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--holdout", type=Path, help="the test interactions, to mark what was right in the examples")
    try:
        arguments = parse_options(parser, argv)
        with ending_on_signals():
            run(arguments.run, arguments.holdout)
    except (ValueError, OSError) as error:  # SchemaError and BundleError are ValueErrors
        print(f"error: {say(error)}", file=sys.stderr)
        return FAULT
    print(f"report: {arguments.run / REPORT}")
    return 0


def run(folder: Path, holdout: Path | None) -> None:
    """Write the report.

    Raises:
        SchemaError: no finished run, figures of another bundle than the one there, or the holdout cannot be read.
        BundleError: the bundle cannot be trusted.
    """
    content = _read_metrics(folder / METRICS)
    recommender = Recommender.load(folder / BUNDLE)
    measured, there = content.get("version"), recommender.bundle.manifest.version
    if measured != there:
        raise SchemaError(
            f"{folder / METRICS} is of version {measured}, the bundle beside it of {there}; give a folder as train.py "
            "left it"
        )
    held_out = None if holdout is None else read_interactions(holdout, recommender.bundle.schema)
    write_report(folder, folder, content, recommender, held_out)


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SchemaError(f"{path}: no such file; give the folder of a finished run of train.py")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SchemaError(f"{path} is damaged: {say(error)}; train again") from error
    if not isinstance(content, dict) or "data" not in content:
        raise SchemaError(f"{path}: no data report in it; give the folder of a finished run of train.py")
    return content


if __name__ == "__main__":
    sys.exit(main())
