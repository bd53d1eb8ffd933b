"""Publish and activate over and over, each time stopped at another step; say what a service finds then.

Run as a program, since each attempt is a fork of it. A step is the instant before or after a call that
changes the disk. `kill` ends the process there; `fail` raises "no space left on device" before the call.

    python -m tests.around.killed_registry FOLDER kill|fail
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from service.registry import Registry, publish_version
from service.sources import RegistrySource
from tests.around.killed_publisher import FAILED, FINISHED, KILLED, Steps, fail, kill
from tests.linear_bundle import SHOP, publish_linear

from service import registry as versions


def attempt(registry: Registry, bundle: Path, stop_at: int, how: str) -> None:
    """Publish into the registry, in this process; it ends with its code."""
    steps = Steps(stop_at, {"kill": kill, "fail": fail}[how], how == "fail")
    calls = [(os, "fsync"), (os, "rename"), (os, "replace"), (Path, "mkdir")]
    calls += [
        (versions, "write_file"),
        *([(shutil, "rmtree")] if how == "kill" else []),
    ]
    for module, name in calls:
        steps.wrap(module, name)
    try:
        publish_version(registry, bundle, keep=1, is_activated=True)
    except OSError as error:
        os._exit(FAILED if error.errno == errno.ENOSPC else 1)
    os._exit(FINISHED)


def describe(registry: Registry) -> dict:
    """Say what a service would load, and what lies in the registry."""
    recommender, reason = RegistrySource(registry).start()
    left = sorted(path.name for path in registry.path.iterdir() if path.name.startswith("."))
    return {
        "version": recommender.version,
        "reason": reason,
        "versions": registry.versions(),
        "left": left,
    }


def main(folder: Path, how: str) -> None:
    os.fsync = lambda descriptor: None  # what was written outlives a process without it
    bundles = [publish_linear(folder / str(seed), SHOP, seed) for seed in (1, 2, 3)]
    start = Registry(folder / "start")
    old = [
        publish_version(start, bundle, keep=3, is_activated=True).version for bundle in bundles[:2]
    ]
    found = []
    for stop_at in itertools.count(1):
        registry = Registry(folder / f"registry-{stop_at}")
        shutil.copytree(start.path, registry.path)
        child = os.fork()
        if child == 0:
            attempt(registry, bundles[2], stop_at, how)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        at_once = describe(registry)
        again = publish_version(registry, bundles[2], keep=1, is_activated=True)
        found.append(
            {
                "code": code,
                "at_once": at_once,
                "later": describe(registry),
                "new": again.version,
            }
        )
        if code not in (FAILED, KILLED):
            break
    print(json.dumps({"old": old, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
