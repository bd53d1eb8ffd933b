"""`bascule COMMAND`: `python train.py`, `python -m evaluation` and `python -m serve COMMAND` under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from serve import errors

_OTHERS = {
    "train": (
        "train",
        "train, export, evaluate and publish; with --tune.trials, search",
    ),
    "evaluate": ("evaluation.__main__", "evaluate a bundle on a holdout"),
    "report": ("evaluation.report", "write the report of a finished run again"),
    "feedback": (
        "evaluation.feedback",
        "what followed the lists that a service showed: tables, figures, a page",
    ),
    "retrain": (
        "pipeline.retrain",
        "train the next version on what a service logged, from the weights of a run",
    ),
    "judge": (
        "evaluation.off_policy",
        "what another version would have had on the log of a service",
    ),
    "gate": (
        "evaluation.gate",
        "let a new version take over if it is no worse; gate watch: take it back",
    ),
    "drift": (
        "evaluation.drift",
        "compare what a service sees with what its bundle was trained on",
    ),
}  # command -> module whose `main` it is, imported when it is asked for, and help in a line
_HOME = errors.__name__.removesuffix(
    "serve.errors"
)  # what their names begin with: `bascule.` in the wheel


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in _OTHERS:
        try:
            module = import_module(f"{_HOME}{_OTHERS[words[0]][0]}")
        except ModuleNotFoundError as error:
            print(
                f"error: {error}; this install only answers: install bascule with its dependencies",
                file=sys.stderr,
            )
            return 2
        return int(module.main(words[1:], f"bascule {words[0]}"))
    served = import_module("bascule.commands")
    commands = {
        "serve" if name == "http" else name: command
        for name, command in served.COMMANDS.items()
    }
    return int(
        served.main(
            words,
            "bascule",
            commands,
            {name: text for name, (_, text) in _OTHERS.items()},
        )
    )


if __name__ == "__main__":
    sys.exit(main())
