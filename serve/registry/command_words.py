"""`python -m serve publish | activate | rollback | list`; what they need is imported when one runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_DEFAULT = Path("runs") / "registry"
_PUBLISH = """Copy a bundle into a registry, as a version that can be activated and gone back to.

Profiles and state stay where they are: a version holds no users.

examples:
  python -m serve publish --bundle runs/demo/bundle --activate
  python -m serve publish --bundle runs/demo/bundle --registry /srv/shop"""
_ACTIVATE = """Let a version be served from now on, after it was verified.

A service that runs takes it up when it is told to reload, others when they start.

example:
  python -m serve activate --version 9f86d081884c"""
_ROLLBACK = """Let the version be served that was current before; once more goes back further.

example:
  python -m serve rollback"""
_LIST = """Show the versions of a registry, the latest first; `*` is the current one.

example:
  python -m serve list"""


def _publish(given: argparse.Namespace) -> None:
    from serve.bundle import PROFILES, STATE
    from serve.registry.changes import publish, publish_and_activate
    from serve.registry.versions import Registry

    change = publish_and_activate if given.activate else publish
    published = change(Registry(given.registry), given.bundle, given.keep)
    print(f"version {published.version} {'published' if published.is_new else 'was published already'}")
    if given.activate:
        print(f"current: {published.version}")
    for version in published.removed:
        print(f"removed: {version}")
    if (given.bundle.absolute().parent / PROFILES).is_dir():
        run = given.bundle.parent
        where = shlex.join(["--profiles", str(run / PROFILES), "--state", str(run / STATE)])
        print(f"profiles stay where they are: serve the registry with {where}")


def _activate(given: argparse.Namespace) -> None:
    from serve.registry.changes import activate
    from serve.registry.versions import Registry

    activate(Registry(given.registry), given.version)
    print(f"current: {given.version}")


def _rollback(given: argparse.Namespace) -> None:
    from serve.registry.changes import rollback
    from serve.registry.versions import Registry

    done = rollback(Registry(given.registry))
    print(f"current: {done.version}, in place of {done.left or 'none that could be read'}")
    for fault in done.skipped:
        print(f"left out: {fault}", file=sys.stderr)


def _list(given: argparse.Namespace) -> None:
    from serve.registry.listing import describe_registry
    from serve.registry.versions import Registry

    print("\n".join(describe_registry(Registry(given.registry))))


def _describe_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    _describe_registry(parser, _publish)
    parser.add_argument("--activate", action="store_true", help="let it be served from now on")
    keep = "the latest versions that stay (default: 3); the current one and the one before it stay anyway"
    parser.add_argument("--keep", type=int, default=3, metavar="N", help=keep)


def _describe_activate(parser: argparse.ArgumentParser) -> None:
    _describe_registry(parser, _activate)
    parser.add_argument("--version", required=True, metavar="V", help="its 12 digits, as `list` shows them")


def _describe_rollback(parser: argparse.ArgumentParser) -> None:
    _describe_registry(parser, _rollback)


def _describe_list(parser: argparse.ArgumentParser) -> None:
    _describe_registry(parser, _list)


def _describe_registry(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    folder = f"folder of the versions (default: {_DEFAULT})"
    parser.add_argument("--registry", type=Path, default=_DEFAULT, metavar="DIR", help=folder)
    parser.set_defaults(run=run)


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "publish": (_PUBLISH, _describe_publish),
    "activate": (_ACTIVATE, _describe_activate),
    "rollback": (_ROLLBACK, _describe_rollback),
    "list": (_LIST, _describe_list),
}
"""Name -> help, and what adds the options to a parser."""
