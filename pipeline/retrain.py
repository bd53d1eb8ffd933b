"""Train the next version on what was logged: python -m pipeline.retrain --config my.yaml --run runs/my.

The events that a service logged in `runs/my/state` are appended to the tables of the configuration, and the towers
train on from the weights of `runs/my` into `runs/my-2`, the next number, or --out. Further options are those of a
training, such as `--model.batch_size 512`. Stopped, the same command goes on where it was, with the same events.
Nothing of `runs/my` changes. With --registry, the gate then compares the new version with the registry's current one
on what came since --at, which neither has seen, writes `verdict.json` into the new run, and publishes and activates it
if it is no worse; exit status 3 where it is stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from evaluation import gate
from evaluation.holdout import read_moment
from evaluation.online import read_log
from pipeline.config import Config, parse
from serve.bundle import BUNDLE, FEEDBACK, METRICS, STATE, STATE_FILE, Bundle
from serve.errors import SchemaError
from serve.files import make_private
from serve.recommender import Recommender
from service.command_line import make_parser, run_command
from service.export import write_table
from service.forget import erase_forgotten, inherit_erasure_list
from service.registry import Registry

VERDICT = "verdict.json"
_TRAINED = "trained-"  # before the name of a run: the events that it is trained on


def main(
    argv: Sequence[str] | None = None, program: str = "python -m pipeline.retrain"
) -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="configuration of the training",
    )
    add(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run whose weights are trained on",
    )
    add(
        "--state",
        type=Path,
        metavar="DIR",
        help="called 'state', with the log; default: in --registry or --run",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the new run; default: that of --run with the next number",
    )
    add(
        "--registry",
        type=Path,
        metavar="DIR",
        help="let the new version take over here if it is no worse",
    )
    add(
        "--at",
        metavar="TIME",
        help="test on all events from then on: --data.split.kind time --data.split.at TIME",
    )
    gate.add_limits(parser)
    return run_command(lambda: retrain(*parser.parse_known_args(argv)))


def retrain(given: argparse.Namespace, options: Sequence[str] = ()) -> None:
    """Export the log, train on, say what was done and, for a registry, let the gate decide."""
    run = given.run
    out = given.out or name_next(given.run)
    state = given.state or (given.registry or run) / STATE
    if not (run / BUNDLE).is_dir():
        raise SchemaError(
            f"{run} holds no '{BUNDLE}' to train on from; give the folder of a finished run"
        )
    registry = (
        None if given.registry is None else Registry(given.registry, given.trusted_keys)
    )
    if registry is not None and gate.has_taken_over(registry, out / BUNDLE):
        return
    log = export_log(state, out)
    words = [
        f"--config={given.config}",
        f"--out={out}",
        f"--previous={run / BUNDLE}",
        f"--data.feedback={log}",
    ]
    words += ["--warm_start", "--ckpt_path=last"]  # where nothing was begun, it begins
    words += (
        []
        if given.at is None
        else ["--data.split.kind=time", f"--data.split.at={given.at}"]
    )
    config, text = parse([*words, *options], "pipeline.retrain")
    if registry is not None:
        check_test(config, registry)
    from pipeline.run import run_or_search, set_apart

    out.mkdir(parents=True, exist_ok=True)
    home = (
        state.absolute().parent / BUNDLE
    )  # the erasure list of the service lies beside it, there is a bundle or not
    inherit_erasure_list(out, home)
    done = run_or_search(config, text)
    inherit_erasure_list(out, home)  # with those who were forgotten meanwhile
    erase_forgotten(out, Recommender.load(out / BUNDLE).profiles)
    describe(run, out)
    if registry is not None and done is not None:
        given.candidate = done.bundle
        given.out = out / VERDICT
        test = replace(set_apart(done.work), train=done.work.split.refit)
        gate.decide(given, lambda _: test)


def check_test(config: Config, registry: Registry) -> None:
    """Refuse, before anything is trained, a test that the current version may have seen."""
    split = config.data.split
    if split.at is None:
        raise SchemaError(
            f"data.split.kind is {split.kind}; give --at: versions are compared on the days after it, seen by neither"
        )
    gate.check_unseen(
        Bundle.load(registry.folder(registry.current())),
        read_moment(split.at, config.data.timezone),
    )


def name_next(run: Path) -> Path:
    """Name the run after a run: my, my-2, my-3."""
    name, number = re.fullmatch(
        r"(.+?)(?:-(\d+))?", run.absolute().name, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    return run.absolute().with_name(f"{name}-{int(number or 1) + 1}")


def export_log(state: Path, out: Path) -> Path:
    """Write the events of a log for a training, and leave them as they are once it has begun; return the file.

    It lies beside the state, where users are erased from it, too.
    """
    from models.checkpoints import CHECKPOINTS

    source = state / STATE_FILE
    path = state.parent / FEEDBACK / f"{_TRAINED}{out.name}.parquet"
    if not source.exists():
        raise SchemaError(
            f"{source} does not exist; give the folder 'state' of a service that was asked"
        )
    if path.exists() and any((out / name).exists() for name in (CHECKPOINTS, BUNDLE)):
        return path
    *_, events = read_log(source)
    make_private(path.parent)
    write_table(path, pa.Table.from_pandas(events, preserve_index=False))
    return path


def describe(run: Path, out: Path) -> None:
    """Say what the training was, and how both bundles ranked their own tests."""
    was, now = (json.loads((folder / METRICS).read_bytes()) for folder in (run, out))
    taken = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in now["data"]["feedback"].items()
        if count
    )
    sys.stdout.write(
        f"{out / BUNDLE}: version {now['version']}, {now['training']['epochs']} epochs from {was['version']} in "
        f"{now['timing']['training']:.0f} s\nlogged events: {taken or 'none'}\n"
        f"on its own test: {_say_figures(now)}; {run} on its own: {_say_figures(was)}\n"
    )


def _say_figures(metrics: dict[str, Any]) -> str:
    from evaluation.evaluate import headline_metric

    views = metrics.get("test", {}).get("bascule", {})
    name = headline_metric(metrics["data"]["repeats"])
    found = [
        f"{name} {figures[name]:.4f} ({view})"
        for view, figures in views.items()
        if name in figures
    ]
    return ", ".join(found) or "not tested"


if __name__ == "__main__":
    sys.exit(main())
