"""What `python -m serve http` does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serve.http.app import make_parts
from serve.http.limits import Limits
from serve.http.listening import listen
from serve.http.reloading import make_reloading
from serve.http.server import serve
from serve.layout import PROFILES, STATE
from serve.registry.sources import BundleSource, RegistrySource, Source
from serve.registry.versions import Registry
from serve.service import Service
from serve.state.store import check_retention

TOKEN = "BASCULE_RELOAD_TOKEN"  # noqa: S105 - the name of a variable
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Places:
    """Where a service finds and keeps what it serves; by `places_of_bundle` or `places_of_registry`."""

    source: Source
    state: Path
    runs: tuple[Path, ...]
    """Folders with profiles or state, out of which users are forgotten."""


def serve_http(places: Places, token_file: Path | None, retention_days: float, host: str, port: int) -> None:
    """Serve until a signal.

    Raises:
        ValueError: the address cannot be had, no version be loaded, the token is too short, or nothing would be kept.
        OSError: the state cannot be written, or another service has it.
    """
    token = read_token(token_file)
    check_retention(retention_days, "--retention-days")
    with listen(host, port) as listener:
        parts = make_parts(Service(places.source, places.state, places.runs, retention_days), Limits())
        serve(parts, listener, [] if token is None else [make_reloading(parts, token)])


def places_of_bundle(bundle: Path, profiles: Path | None, state: Path | None) -> Places:
    """Serve one bundle; profiles and state lie beside it, unless they are named.

    Raises:
        ValueError: a folder is named that is called otherwise.
    """
    return _find_places(BundleSource(bundle, profiles), _parent(bundle), profiles, state)


def places_of_registry(registry: Path, profiles: Path | None, state: Path | None) -> Places:
    """Serve what is current in a registry; see `places_of_bundle`."""
    return _find_places(RegistrySource(Registry(registry), profiles), registry, profiles, state)


def _find_places(source: Source, home: Path, profiles: Path | None, state: Path | None) -> Places:
    known = {STATE: state or home / STATE, PROFILES: profiles or home / PROFILES}
    for name, folder in known.items():
        if folder.absolute().name != name:
            raise ValueError(f"--{name} is {folder}; expected a folder called '{name}', in which forgetting looks")
    runs = {folder.absolute().parent: _parent(folder) for folder in known.values()}
    return Places(source, known[STATE], tuple(runs.values()))


def _parent(folder: Path) -> Path:
    """Return what holds a folder, relative where the folder is: a receipt names it to whoever asks over HTTP."""
    return folder.parent if folder.name else folder.absolute().parent


def read_token(path: Path | None) -> str | None:
    """Return the token of reloads, from a file or the environment; None if there is none.

    Raises:
        ValueError: it is too short to be a secret.
        OSError: the file cannot be read.
    """
    token = os.environ.get(TOKEN) if path is None else path.read_text(encoding="utf-8").strip()
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise ValueError(f"the reload token has {len(token)} characters; allowed: {_SHORTEST_TOKEN} or more")
    return token
