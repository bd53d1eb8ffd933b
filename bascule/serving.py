"""The commands around a service: serve, consume, forget, publish, push and others.

The parent of several workers needs none of what answers requests, so `serve` imports that late.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from resource import (
    RLIM_INFINITY,
    RLIMIT_DATA,
    RUSAGE_SELF,
    getrlimit,
    getrusage,
    setrlimit,
)
from time import time
from typing import TYPE_CHECKING

from serve.errors import SchemaError

if TYPE_CHECKING:
    from socket import socket

    from service.engine import State
    from service.registry import Registry

_RELOAD_VARIABLE = "BASCULE_RELOAD_TOKEN"  # of the environment, as the next
_STREAM_VARIABLE = "BASCULE_STREAM"
_MIN_TOKEN = 16  # characters
_SPARE_BYTES = (
    4_000_000_000  # of memory beside what files explain: libraries reserve 1.4 GB
)
_BYTES_A_BYTE = 30  # of a file, which may be compressed: runs took 3 to 11


def serve(options: Namespace) -> None:
    """Serve a bundle or a registry over HTTP until a signal comes."""
    # the parent of workers takes it up later; without workers there is nothing to renew
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _check_folder(options)
    if options.admin_port == options.port != 0:
        raise SchemaError(
            f"--admin-port is {options.port}, as --port; expected another one"
        )

    if options.workers is not None and options.workers < 1:
        raise SchemaError(f"--workers is {options.workers}; allowed: 1 or more")
    token = _read_token(options)

    # numpy reads this when it is imported; threads cost a single request more than they save
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service.http.logs import set_up_logs
    from service.http.workers import bind, is_worker, supervise

    set_up_logs(options.log_format)
    ports = [options.port]
    if options.admin_port is not None:
        ports.append(options.admin_port)
    with bind(options.host, *ports) as listeners:
        if options.workers is not None and not is_worker():
            raise SystemExit(supervise(options.workers, listeners))
        _serve_here(options, token, listeners)


def _check_folder(options: Namespace) -> None:
    if (options.bundle is None) is (options.registry is None):
        raise SchemaError("give either --bundle or --registry")
    folder = Path(options.bundle or options.registry)
    if not folder.is_dir():
        raise SchemaError(
            f"{folder} is no folder in {Path.cwd()}: give the folder of a bundle or of a registry"
        )


def _read_token(options: Namespace) -> str | None:
    """Return the token that permits a reload, None without one."""
    token = os.environ.get(_RELOAD_VARIABLE)
    if options.reload_token_file is not None:
        token = options.reload_token_file.read_text().strip()
    if token is not None and len(token) < _MIN_TOKEN:
        raise SchemaError(
            f"the reload token has {len(token)} characters; allowed: {_MIN_TOKEN} or more"
        )

    return token


def _serve_here(
    options: Namespace, token: str | None, listeners: Sequence[socket]
) -> None:
    """Serve in this process."""
    from ipaddress import ip_address

    from service.experiment import Experiment
    from service.http.access import Access, KeyFile
    from service.http.app import make_app
    from service.http.server import serve as run_server
    from service.registry import Registry
    from service.service import Service
    from service.sources import BundleSource, RegistrySource, Source

    source: Source
    if options.registry is None:
        home = options.bundle.absolute().parent
        source = BundleSource(options.bundle, options.profiles, options.trusted_keys)
    else:
        home = options.registry
        registry = Registry(options.registry, options.trusted_keys)
        source = RegistrySource(registry, options.profiles)

    _bound_memory(options.bundle or home)
    hosts = frozenset(name.lower() for name in (options.host, *options.allowed_host))
    keys = options.keys and KeyFile(options.keys)
    address = listeners[0].getsockname()[0]
    if keys is None and not (options.insecure or ip_address(address).is_loopback):
        raise SchemaError(
            f"--host is {options.host}: without --keys, whoever reaches it may ask, send events "
            "and erase users; give --keys FILE, or --insecure where nobody else reaches it"
        )

    admin_port = None
    if options.admin_port is not None:
        admin_port = listeners[1].getsockname()[1]
    access = Access(keys, token, hosts, admin_port, options.read_only)

    experiment = options.experiment and Experiment.read(options.experiment)
    service = Service(
        source,
        home,
        options.profiles,
        options.state,
        options.retention_days,
        options.clock,
        experiment,
        options.impression_days,
        options.expire_most,
    )
    run_server(make_app(service, access), listeners)


def _bound_memory(folder: Path) -> None:
    """Let this process take no more memory than it had and the files of a folder explain.

    A constant of a graph or a column of a table may take gigabytes, which no file of a bundle says.
    The live state is not read into memory. A limit that is set already, as by `ulimit -d`, stays.
    """
    from serve.bundle import STATE

    if getrlimit(RLIMIT_DATA) != (RLIM_INFINITY, RLIM_INFINITY):
        return

    most = _SPARE_BYTES + getrusage(RUSAGE_SELF).ru_maxrss * 1024
    for path in folder.rglob("*.*"):
        is_live = STATE in path.relative_to(folder).parts
        with suppress(FileNotFoundError):  # a version went meanwhile
            most += 0 if is_live else _BYTES_A_BYTE * path.stat().st_size
    setrlimit(RLIMIT_DATA, (most, RLIM_INFINITY))


def consume(options: Namespace) -> None:
    """Read events from a stream into the state until a signal comes."""
    from socket import gethostname
    from threading import Event

    from serve.bundle import SCHEMA
    from serve.schema import Schema
    from service.command_line import handling
    from service.registry import Registry
    from service.remote.streams import RedisStream
    from service.remote.streams import consume as consume_stream

    _check_folder(options)
    url = os.environ.get(_STREAM_VARIABLE)
    if url is None:
        raise SchemaError(f"{_STREAM_VARIABLE} is not set; expected redis://HOST:PORT")

    def find_schema() -> Schema:
        folder = options.bundle
        if options.registry is not None:
            registry = Registry(options.registry)
            folder = registry.folder(registry.current())
        return Schema.from_json((folder / SCHEMA).read_text(encoding="utf-8"))

    find_schema()  # a fault ends the command before it reads anything
    home = options.registry or options.bundle.absolute().parent
    state = _open_state(options, home, options.state)
    stream = RedisStream(url, options.stream, options.group, gethostname())
    stopping = Event()
    with closing(state), handling(lambda *_: stopping.set()):
        consume_stream(stream, state, find_schema, stopping)


def expire(options: Namespace) -> None:
    """Remove what is too old from the state of a run, and print how much of each kind."""
    from serve.bundle import STATE

    if not (options.run_folder / STATE).is_dir():
        raise SchemaError(f"{options.run_folder} holds no '{STATE}' of a service")
    removed = Counter(events=0, impressions=0)
    with closing(_open_state(options, options.run_folder)) as state:
        now = int(time())
        if not options.expire_most:
            now = state.date_expiry(now)
        for of_slice in state.expire_slices(now):
            removed.update(of_slice)
    print(json.dumps({"removed": removed}))


def _open_state(options: Namespace, home: Path, named: Path | None = None) -> State:
    """Open the state on the server of the environment, or else in a folder.

    Args:
        options: of the command.
        home: folder of the run or registry.
        named: folder of the state by an option, which comes before a server.
    """
    from serve.bundle import STATE, STATE_FILE
    from service.remote.shared import open_shared
    from service.state import StateStore

    folder = named or home / STATE
    settings = (
        [home, folder.absolute().parent],
        options.retention_days,
        options.impression_days,
    )
    return open_shared(named, *settings) or StateStore(folder / STATE_FILE, *settings)


def rotate(options: Namespace) -> None:
    """Give the users of a run the pseudonyms by the last key."""
    from service.rotate import rotate as rename_all

    rename_all(options.run_folder)
    print("all users have the pseudonyms by the last key; reload the service")


def publish(options: Namespace) -> None:
    """Copy a bundle into a registry."""
    from serve.bundle import PROFILES, STATE
    from service.registry import publish_version

    published = publish_version(
        _open_registry(options), options.bundle, options.keep, options.activate
    )
    verb = "published" if published.is_new else "was published already"
    print(f"version {published.version} {verb}")
    if options.activate:
        print(f"current: {published.version}")
    for version in published.removed:
        print(f"removed: {version}")
    run = options.bundle.parent
    if (run / PROFILES).is_dir():
        print(
            "profiles stay where they are: serve the registry with "
            f"--profiles {run / PROFILES} --state {run / STATE}"
        )


def activate(options: Namespace) -> None:
    """Serve another version from now on."""
    from service.registry import activate as activate_version

    activate_version(_open_registry(options), options.version)
    print(f"current: {options.version}")


def rollback(options: Namespace) -> None:
    """Serve the previous version again."""
    from service.registry import rollback as roll_back

    done = roll_back(_open_registry(options))
    print(f"current: {done.version}, in place of {done.left or 'an unreadable one'}")
    for fault in done.skipped:
        print(f"skipped: {fault}", file=sys.stderr)


def push_version(options: Namespace) -> None:
    """Copy the current version of a registry into object storage."""
    from service.remote.storage import push

    version = push(_open_registry(options), options.storage)
    print(f"current at {options.storage}: {version}")


def pull_version(options: Namespace) -> None:
    """Take up the version that is current in object storage."""
    from service.remote.storage import pull

    registry = _open_registry(options)
    pull(registry, options.storage)
    print(f"current: {registry.current()}")


def list_versions(options: Namespace) -> None:
    """Print the versions of a registry."""
    from service.registry import Registry, describe_registry

    print("\n".join(describe_registry(Registry(options.registry))))


def _open_registry(options: Namespace) -> Registry:
    from service.registry import Registry

    return Registry(options.registry, options.trusted_keys)
