"""Services on linear bundles, for tests that ask them in their own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from serve.http.app import make_app, make_parts
from serve.http.command import places_of_bundle
from serve.http.limits import Limits
from serve.http.parts import Parts
from serve.profiles import write_profiles
from serve.schema import Schema
from serve.service import Service
from tests.linear_bundle import publish_linear
from tests.linear_profiles import known_users, make_profiles

EVER = 36_000.0  # days of retention: what happens in these worlds happened in 2017


def publish_served(folder: Path, schema: Schema, seed: int = 3) -> Path:
    """Publish a bundle with the profiles of its users beside it."""
    path = publish_linear(folder, schema, seed)
    write_profiles(folder / "profiles", make_profiles(schema, known_users(schema)))
    return path


@contextmanager
def sharing(bundle: Path, state: Path | None = None, limits: Limits | None = None) -> Iterator[Parts]:
    """Give what the routes of a service share, and close it."""
    places = places_of_bundle(bundle, None, state)
    service = Service(places.source, places.state, places.runs, EVER)
    parts = make_parts(service, limits or Limits())
    try:
        yield parts
    finally:
        parts.close()


@contextmanager
def asking(bundle: Path, state: Path | None = None, more: Sequence[APIRouter] = ()) -> Iterator[Any]:
    """Give an application to ask."""
    with sharing(bundle, state) as parts:
        yield make_app(parts, more)
