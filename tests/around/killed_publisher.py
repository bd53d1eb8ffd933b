"""Publish over a bundle again and again, each time stopped at another step; say what a reader finds then.

Run as a program, since each attempt is a fork of it. A step is the instant before or after a call that
changes the disk. `kill` ends the process there; `fail` raises "no space left on device" before the call.

    python -m tests.around.killed_publisher FOLDER kill|fail exchange|rename
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve import files as durable
from serve.bundle import Bundle
from serve.errors import BundleError
from service.publish import Stage, publish
from tests.tiny_bundle import FACTS, METRICS, publish_tiny

from service import publish as staging

FINISHED, FAILED, KILLED = 0, 3, 9


class Steps:
    """Count the steps and stop at one of them."""

    def __init__(self, stop_at: int, stop: Callable[[], None], is_before_only: bool) -> None:
        self.passed, self.stop_at, self.stop, self.is_before_only = (
            0,
            stop_at,
            stop,
            is_before_only,
        )

    def step(self) -> None:
        self.passed += 1
        if self.passed == self.stop_at:
            self.stop()

    def wrap(self, module: Any, name: str) -> None:
        call = getattr(module, name)

        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = call(*args, **kwargs)
            if not self.is_before_only:
                self.step()
            return result

        setattr(module, name, stepping)


def kill() -> None:
    os._exit(KILLED)


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def attempt(folder: Path, new: Path, stop_at: int, how: str) -> None:
    """Publish over the bundle, in this process; it ends with its code."""
    steps = Steps(stop_at, {"kill": kill, "fail": fail}[how], how == "fail")
    try:
        with Stage.open(folder) as stage:
            shutil.copytree(new, stage.path, dirs_exist_ok=True)
            calls = [
                (os, "fsync"),
                (os, "rename"),
                (os, "replace"),
                (durable, "exchange"),
                (staging, "write_file"),
            ]
            calls += [(shutil, "rmtree")] if how == "kill" else []
            for module, name in calls:
                steps.wrap(module, name)
            publish(stage.prepare(FACTS, METRICS), overwrite=True)
    except OSError as error:
        os._exit(FAILED if error.errno == errno.ENOSPC else 1)
    os._exit(FINISHED)


def find_version(path: Path) -> str:
    """Load as a reader would: a version, or why there is none."""
    try:
        return Bundle.load(path).manifest.version
    except BundleError as error:
        return str(error)


def main(folder: Path, how: str, way: str) -> None:
    os.fsync = lambda descriptor: None  # what was written outlives a process without it
    if way == "rename":
        durable.exchange = lambda left, right: False  # type: ignore[assignment]
    old, new = (publish_tiny(folder / str(seed), seed) for seed in (1, 2))
    found = []
    for stop_at in itertools.count(1):
        run = folder / f"run-{stop_at}"
        shutil.copytree(old.path, run / "bundle")
        child = os.fork()
        if child == 0:
            attempt(run, new.path, stop_at, how)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        at_once = find_version(run / "bundle")
        with Stage.open(run):
            pass
        left = sorted(path.name for path in run.iterdir())
        found.append(
            {
                "code": code,
                "at_once": at_once,
                "later": find_version(run / "bundle"),
                "left": left,
            }
        )
        if code not in (FAILED, KILLED):
            break
    versions = [old.manifest.version, new.manifest.version]
    print(json.dumps({"versions": versions, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
