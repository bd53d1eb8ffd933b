"""Train the next version on what was logged: python -m pipeline.retrain --config my.yaml --run runs/my.

The events that a service logged in `runs/my/state` are appended to the tables of the configuration, and the towers
train on from the weights of `runs/my` into `runs/my-2`, the next number, or --out. Further options are those of a
training, such as `--data.split.at 2025-03-01`. Stopped, the same command goes on where it was, with the same events.
Nothing of `runs/my` changes; whether the new version is served is decided afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import parse
from serve.bundle import BUNDLE, FEEDBACK, METRICS, STATE, STATE_FILE
from serve.command_line import make_parser, run_command
from serve.errors import SchemaError

_TRAINED = "trained-"  # before the name of a run: the events that it is trained on


def main(argv: Sequence[str] | None = None, program: str = "python -m pipeline.retrain") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="configuration of the training")
    add("--run", type=Path, required=True, metavar="DIR", help="folder of the run whose weights are trained on")
    add("--state", type=Path, metavar="DIR", help="called 'state', with the log of a service; default: in --run")
    add("--out", type=Path, metavar="DIR", help="folder of the new run; default: that of --run with the next number")

    def work() -> None:
        retrain(*parser.parse_known_args(argv))

    return run_command(work)


def retrain(given: argparse.Namespace, options: Sequence[str] = ()) -> Path:
    """Export the log, train on, and say what was done; return the new bundle."""
    run, state = given.run, given.state or given.run / STATE
    out = given.out or name_next(run)
    if not (run / BUNDLE).is_dir():
        raise SchemaError(f"{run} holds no '{BUNDLE}' to train on from; give the folder of a finished run")
    log = export_log(state, out)
    words = {"--config": given.config, "--out": out, "--previous": run / BUNDLE, "--data.feedback": log}
    words |= {"--ckpt_path": "last"}  # where nothing was begun, it begins
    given_words = [f"{name}={value}" for name, value in words.items()]
    config, text = parse([*given_words, "--warm_start", *options], "pipeline.retrain")
    from pipeline.run import run_or_search
    from serve.erasure import erase_forgotten, inherit_erasure_list
    from serve.recommender import Recommender

    out.mkdir(parents=True, exist_ok=True)
    home = state.absolute().parent / BUNDLE  # the erasure list of the service lies beside it, there is a bundle or not
    inherit_erasure_list(out, home)
    run_or_search(config, text)
    inherit_erasure_list(out, home)  # with those who were forgotten meanwhile
    erase_forgotten(out, Recommender.load(out / BUNDLE).profiles)
    describe(run, out)
    # Here the gate compares out / BUNDLE with run / BUNDLE, and publishes and activates it, or says why not.
    return out / BUNDLE


def name_next(run: Path) -> Path:
    """Name the run after a run: my, my-2, my-3."""
    name, number = re.fullmatch(r"(.+?)(?:-(\d+))?", run.absolute().name, re.DOTALL).groups()  # type: ignore[union-attr]
    return run.absolute().with_name(f"{name}-{int(number or 1) + 1}")


def export_log(state: Path, out: Path) -> Path:
    """Write the events of a log for a training, and leave them as they are once it has begun; return the file.

    It lies beside the state, where users are erased from it, too.
    """
    from models.checkpoints import CHECKPOINTS

    source, path = state / STATE_FILE, state.parent / FEEDBACK / f"{_TRAINED}{out.name}.parquet"
    if not source.exists():
        raise SchemaError(f"{source} does not exist; give the folder 'state' of a service that was asked")
    if path.exists() and any((out / name).exists() for name in (CHECKPOINTS, BUNDLE)):
        return path
    import pyarrow as pa

    from evaluation.online import read_log
    from serve.durable import make_private
    from serve.tables import write_table

    *_, events = read_log(source)
    make_private(path.parent)
    write_table(path, pa.Table.from_pandas(events, preserve_index=False))
    return path


def describe(run: Path, out: Path) -> None:
    """Say what the training was, and how both bundles ranked their own tests."""
    was, now = (json.loads((folder / METRICS).read_bytes()) for folder in (run, out))
    taken = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in now["data"]["feedback"].items() if count)
    sys.stdout.write(
        f"{out / BUNDLE}: version {now['version']}, {now['training']['epochs']} epochs from {was['version']} in "
        f"{now['timing']['training']:.0f} s\nlogged events: {taken or 'none'}\n"
        f"on its own test: {_say_figures(now)}; {run} on its own: {_say_figures(was)}\n"
    )


def _say_figures(metrics: dict[str, Any]) -> str:
    from evaluation.evaluate import headline_metric

    views, name = metrics.get("test", {}).get("bascule", {}), headline_metric(metrics["data"]["repeats"])
    return ", ".join(f"{name} {figures[name]:.4f} ({view})" for view, figures in views.items()) or "not tested"


if __name__ == "__main__":
    sys.exit(main())
