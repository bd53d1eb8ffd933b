"""Train the next version on what was logged: bascule retrain --config my.yaml --run runs/my.

The events that a service logged in `runs/my/state` are appended to the tables of the configuration,
and the towers train on from the weights of `runs/my` into `runs/my-2`, the next number, or --out.
Further options are those of a training, such as `--model.batch_size 512`. Stopped, the same command
goes on where it was, with the same events. Nothing of `runs/my` changes. With --registry, the gate
then compares the new version with the registry's current one on what came since --at, which neither
has seen, writes `verdict.json` into the new run, and publishes and activates it if it is no worse;
exit status 3 where it is stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluation import gate
from evaluation.holdout import read_moment
from pipeline.config import Config, parse
from serve.bundle import (
    BUNDLE,
    CHECKPOINTS,
    FEEDBACK,
    METRICS,
    STATE,
    STATE_FILE,
    Bundle,
)
from serve.errors import SchemaError
from serve.files import make_private
from serve.recommender import Recommender
from service.command_line import make_parser, run_command
from service.event_log import read_log
from service.export import write_table
from service.forget import erase_forgotten, inherit_left_out
from service.registry import Registry
from service.remote.fetched import fetch_left_out, fetch_state

VERDICT = "verdict.json"
_TRAINED = "trained-"  # before the name of a run: the events that it is trained on
_OPTIONS = {
    "--config": ("FILE", "configuration of the training"),
    "--run": ("DIR", "folder of the run whose weights are trained on"),
    "--state": ("DIR", "called 'state', with the log; default: in --registry or --run"),
    "--out": (
        "DIR",
        "folder of the new run; default: that of --run with the next number",
    ),
    "--registry": ("DIR", "let the new version take over here if it is no worse"),
}


def main(argv: Sequence[str] | None = None, program: str = "bascule retrain") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    for name, (metavar, text) in _OPTIONS.items():
        parser.add_argument(
            name,
            type=Path,
            required=name in ("--config", "--run"),
            metavar=metavar,
            help=text,
        )

    parser.add_argument(
        "--at",
        metavar="TIME",
        help="test on all events from then on: --data.split.kind time "
        "--data.split.at TIME",
    )
    gate.add_limits(parser)
    return run_command(lambda: retrain(*parser.parse_known_args(argv)))


def retrain(options: argparse.Namespace, more: Sequence[str] = ()) -> None:
    """Export the log, train on, say what was done and, for a registry, let the gate decide.

    Args:
        options: of the command.
        more: options of the training.

    Raises:
        SchemaError: a folder or the test does not fit.
        SystemExit: with status 3, the gate stops the new version.
    """
    run = options.run
    out = options.out or name_next(run)
    state = options.state or (options.registry or run) / STATE
    if not (run / BUNDLE).is_dir():
        raise SchemaError(
            f"{run} holds no '{BUNDLE}' to train on from; give the folder of a finished "
            "run"
        )

    registry = None
    if options.registry is not None:
        registry = Registry(options.registry, options.trusted_keys)
        if gate.has_taken_over(registry, out / BUNDLE):
            return

    log = fetch_state(options.state, state)
    feedback = export_log(log, state.parent, out)
    words = [
        f"--config={options.config}",
        f"--out={out}",
        f"--previous={run / BUNDLE}",
        f"--data.feedback={feedback}",
        "--warm_start",
        "--refit=profiles",  # a gate judges the weights that take over
        "--ckpt_path=last",  # begins where nothing was begun
    ]
    if options.at is not None:
        words += ["--data.split.kind=time", f"--data.split.at={options.at}"]
    config, text = parse([*words, *more], "bascule retrain")
    if registry is not None:
        check_test(config, registry)

    from pipeline.run import run_command, set_apart

    out.mkdir(parents=True, exist_ok=True)
    # The lists of the service lie beside this, whether it is there or not.
    home = state.absolute().parent / BUNDLE
    inherit_left_out(out, home)
    inherit_left_out(out, log.absolute().parent / BUNDLE)
    done = run_command(config, text)
    inherit_left_out(out, home)  # with those who left meanwhile
    fetch_left_out(options.state, out)
    erase_forgotten(out, Recommender.load(out / BUNDLE).profiles)
    describe(run, out)
    if registry is not None:
        options.candidate = done.bundle
        options.state = log
        options.out = out / VERDICT
        test = replace(set_apart(done.work), train=done.work.split.refit)
        gate.decide(options, lambda _: test)


def check_test(config: Config, registry: Registry) -> None:
    """Refuse, before anything is trained, a test that the current version may have seen."""
    split = config.data.split
    if split.at is None:
        raise SchemaError(
            f"data.split.kind is {split.kind}; give --at: versions are compared on the "
            "days after it, seen by neither"
        )

    current = Bundle.load(registry.folder(registry.current()))
    gate.check_unseen(current, read_moment(split.at, config.data.timezone))


def name_next(run: Path) -> Path:
    """Name the run after a run: my, my-2, my-3."""
    path = run.absolute()
    name, dash, number = path.name.rpartition("-")
    if name and dash and number.isdecimal():
        return path.with_name(f"{name}-{int(number) + 1}")
    return path.with_name(f"{path.name}-2")


def export_log(state: Path, home: Path, out: Path) -> Path:
    """Write the events of a log for a training; leave them as they are once it has begun.

    Args:
        state: folder of the state.
        home: folder of the run or registry, where users are erased from the file, too.
        out: folder of the new run.

    Returns:
        The file.

    Raises:
        SchemaError: there is no state.
    """
    path = home / FEEDBACK / f"{_TRAINED}{out.name}.parquet"
    has_begun = (out / CHECKPOINTS).exists() or (out / BUNDLE).exists()
    if not (path.exists() and has_begun):
        events = read_log(state / STATE_FILE).events
        make_private(path.parent)
        write_table(path, events)

    return path


def describe(run: Path, out: Path) -> None:
    """Say what the training was."""
    before, now = (json.loads((folder / METRICS).read_bytes()) for folder in (run, out))
    counts = now["data"]["feedback"].items()
    events = ", ".join(f"{name} {count:,}" for name, count in counts)
    epochs = now["training"]["epochs"]
    seconds = now["timing"]["training"]

    sys.stdout.write(
        f"{out / BUNDLE}: version {now['version']}, {epochs} epochs "
        f"from {before['version']} in {seconds:.0f} s\n"
        f"logged events: {events}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
