"""Stop whole runs of `train.py` by signals and by a full disk; say how they ended and what a reader finds.

Run as a program, since each run is a fork of it. Towers, export and evaluation are stood in for by a linear bundle
of a seed, with profiles of users `<seed>-0`, `<seed>-1`..., so that a run takes a fraction of a second; opening the
stage, preparing, publishing and clearing are real.

    python -m tests.pipeline.stopped_runs kills FOLDER N SEED
    python -m tests.pipeline.stopped_runs signals FOLDER
    python -m tests.pipeline.stopped_runs full FOLDER
    python -m tests.pipeline.stopped_runs quick FOLDER N SEED    all of it, and two chains of `killed_training`
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from hashlib import pbkdf2_hmac
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

import train
from datamodules.config import DataConfig
from datamodules.tables import Rejects, reject_frame
from models.two_tower import TwoTower
from serve import command_line as interruption
from serve import durable
from serve import versions as staging
from serve.bundle import Bundle
from serve.errors import BundleError
from serve.recommender import Recommender
from serve.versions import Stage
from tests.linear_bundle import SHOP, write_linear
from tests.linear_profiles import known_users, make_profiles
from tests.pipeline.killed_training import DATA, LONGEST_WAIT, MODEL, finish, make_tables, report_chain, tell, wait_for

LONG = 30.0  # seconds, more than anybody waits
FEW = 5  # bytes of a file where the disk is full
REJECTED = reject_frame("a.csv", pd.Series([7]), "item_id", pd.Series([""]), "it is empty")


def stand_in(seed: int) -> None:
    """Replace what is between opening the stage and preparing it, in this process."""
    users = {f"{seed}-{number}": user for number, user in enumerate(known_users(SHOP).values())}

    def prepare(config: train.Config, frames: Any, stage: Stage) -> train.Work:
        train.keep_rejects(Rejects({"items": REJECTED}, {"items": 900}, {}), config, stage.beside)
        return train.Work(config, frames, {}, [], "")

    def produce(work: train.Work, stage: Stage) -> Any:
        facts = write_linear(stage, SHOP, seed)
        stage.seal(facts, {})
        return facts, Recommender(Bundle.load_staged(stage.path), make_profiles(SHOP, users)), {"seed": seed}, {}, None

    train.prepare, train.produce = prepare, produce
    train.write_report = train.print_summary = lambda *_: None


def config_of(folder: Path, seed: int, **options: Any) -> train.Config:
    return train.Config(DataConfig(), MODEL, {"enable_progress_bar": False}, folder / "run", seed, **options)


def run_main(config: train.Config, tables: Any, errors: int) -> None:
    """Run `train.main` in this process; it ends with its status."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    train.parse = lambda argv: (config, f"seed: {config.seed}\n")
    train.read_tables = lambda data, tombstones: train.tables_from_frames(data, *tables, tombstones=tombstones)
    code: Any = 1
    try:
        code = train.main([])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def start(config: train.Config, prepare: Callable[[], Any], tables: Any = None) -> tuple[int, int]:
    """Fork a run; return its process and where its errors come."""
    said, errors = os.pipe()
    child = os.fork()
    if not child:
        prepare()
        run_main(config, tables, errors)
    os.close(errors)
    return child, said


def wait(child: int, said: int) -> tuple[int, str]:
    """Wait for the end; return the status and what was said."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(said) as errors:
        return code, errors.read()


def read(run: Path) -> str:
    """Load as a service does; say which seeds the bundle and its profiles are of, or why they do not load."""
    try:
        recommender = Recommender.load(run / "bundle")
    except BundleError as error:
        return str(error)
    seed = recommender.bundle.manifest.facts.config["seed"]
    users = {user.split("-")[0] for user in recommender.profiles.user_ids.tolist()}
    return f"bundle {seed} profiles {','.join(sorted(users))}"


def look(run: Path) -> dict[str, Any]:
    """Say what there is for a reader at once, and when the next run has opened its stage."""
    at_once = read(run)
    Stage.open(run).abandon()
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        "at_once": at_once,
        "reader": read(run),
        "metrics": [metrics["version"], metrics["seed"]],
        "version": staging.read_version(run / "bundle"),
        "config": yaml.safe_load((run / "config.yaml").read_bytes())["seed"],
        "names": sorted({path.name for path in run.iterdir()} - {"checkpoints", "logs"}),
        "profiles": len(list((run / "profiles").iterdir())),
    }


def tell_changes(pipe: int) -> None:
    """Say through the pipe when a call begins that changes the disk."""
    calls = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (durable, "exchange"), (shutil, "rmtree")]
    for module, name in calls:
        setattr(module, name, tell(pipe, getattr(module, name)))


def start_telling(folder: Path, seed: int) -> tuple[int, int]:
    events, pipe = os.pipe()

    def prepare() -> None:
        os.close(events)
        stand_in(seed)
        tell_changes(pipe)

    child, said = start(config_of(folder, seed, overwrite=True), prepare)
    os.close(pipe)
    os.close(said)
    return child, events


def kill_at_random(folder: Path, n: int, seed: int) -> list[dict[str, Any]]:
    """Kill n runs that replace a bundle at random moments; the last one comes to its end."""
    rng, found = np.random.default_rng(seed), []
    _, most = finish(*start_telling(folder, 0))
    for number in itertools.count(1):
        child, events = start_telling(folder, number)
        if len(found) < n:
            wait_for(events, int(rng.integers(1, most)))
            time.sleep(rng.uniform(0, LONGEST_WAIT))
            os.kill(child, signal.SIGKILL)
        code, _ = finish(child, events)
        looked = {"code": code, "number": number, **look(folder / "run")}
        if len(found) == n:
            return [*found, looked]
        if code:  # else it came to its end before
            found.append(looked)
    return found


def hold(module: Any, name: str, call: Callable[[], Any]) -> None:
    """Let something happen before a function."""
    real = getattr(module, name)

    def held(*args: Any, **kwargs: Any) -> Any:
        call()
        return real(*args, **kwargs)

    setattr(module, name, held)


def sleep() -> None:
    """Take long in Python's eyes: a signal comes through."""
    time.sleep(LONG)


def compute() -> None:
    """Take long in C, without a step of Python."""
    pbkdf2_hmac("sha256", b"", b"", 200_000_000)


PHASES: dict[str, tuple[Any, str, Callable[[], Any], signal.Signals]] = {
    "reading": (train, "clean", sleep, signal.SIGTERM),
    "training": (TwoTower, "training_step", sleep, signal.SIGTERM),
    "training, Ctrl-C": (TwoTower, "training_step", sleep, signal.SIGINT),
    "within C": (train, "keep_rejects", compute, signal.SIGTERM),
    "preparing": (staging, "sync_files", sleep, signal.SIGTERM),
    "preparing, Ctrl-C": (staging, "sync_files", sleep, signal.SIGINT),
    "profiles": (train, "stage_profiles", sleep, signal.SIGTERM),
    "publishing": (staging, "place_folder", lambda: time.sleep(0.5), signal.SIGTERM),
}
REAL = ("reading", "training", "training, Ctrl-C")
"""Phases that nothing stands in for."""


def stop(folder: Path, phase: str) -> dict[str, Any]:
    """Send a signal when a run that replaces a bundle has come to a phase; then look, and let the run go on."""
    folder.mkdir()
    wait(*start(config_of(folder, 1), lambda: stand_in(1)))
    told, pipe = os.pipe()
    module, name, call, number = PHASES[phase]

    def prepare() -> None:
        if phase not in REAL:
            stand_in(2)
        interruption.GRACE = 1.0
        hold(module, name, call)
        hold(module, name, lambda: os.write(pipe, b"."))

    config = config_of(folder, 2, overwrite=True, resume=True)
    process = start(replace(config, data=DATA["ordered"]) if phase in REAL else config, prepare, TABLES)
    os.read(told, 1)
    time.sleep(0.2)  # now it is in the midst of it
    begun = time.monotonic()
    os.kill(process[0], number)
    code, said = wait(*process)
    report = {"code": code, "said": said, "seconds": time.monotonic() - begun, **look(folder / "run")}
    again, _ = wait(*start(config, lambda: stand_in(2)))
    return {**report, "again": again, "later": look(folder / "run")}


FULL_FROM = {
    "config.yaml": (train, "write_file", 1),
    "rejects.parquet": (train, "write_rejects", 1),
    "manifest.json": (train, "release", 1),
    "metrics.json": (train, "write_file", 2),
    "users-": (train, "stage_profiles", 1),
    "published.json": (train, "note_published", 1),
    "profiles/manifest.json": (train, "publish", 1),
}
"""File that is written next -> the n-th call of a function from which on the disk is full."""


def fill_disk(folder: Path, name: str) -> dict[str, Any]:
    """Let no file grow above a few bytes from one call on, in a run that replaces a bundle."""
    folder.mkdir()
    wait(*start(config_of(folder, 1), lambda: stand_in(1)))
    module, called, n = FULL_FROM[name]

    def prepare() -> None:
        stand_in(2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        calls = itertools.count(1)
        hold(module, called, lambda: next(calls) >= n and resource.setrlimit(resource.RLIMIT_FSIZE, (FEW, FEW)))

    code, said = wait(*start(config_of(folder, 2, overwrite=True), prepare))
    return {"code": code, "said": said, **look(folder / "run")}


TABLES = make_tables(False)


def main(what: str, folder: Path, *numbers: int) -> Any:
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    if what == "kills":
        return kill_at_random(folder, *numbers)
    if what == "signals":
        return {phase: stop(folder / phase, phase) for phase in PHASES}
    if what == "full":
        return {name: fill_disk(folder / name.replace("/", "-"), name) for name in FULL_FROM}
    parts = {part: main(part, folder / part, *numbers) for part in ("kills", "signals", "full")}
    chains = {name: report_chain(folder / name, name, 3, "weights", seed) for seed, name in enumerate(DATA, start=1)}
    return parts | chains


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
