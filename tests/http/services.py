"""Services on linear bundles, for tests that ask them in their own process."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from serve.schema import Schema
from service.http.access import Access
from service.http.app import make_app
from service.service import Service
from service.sources import BundleSource
from tests.linear_bundle import UNTIL, publish_linear
from tests.linear_profiles import known_users, make_profiles, write_profiles
from tests.served import ask

EVER = 36_000.0  # days of retention: what happens in these worlds happened in 2017
TOKEN = "a token of more than 16 characters"
NOW = {"datetime": UNTIL + 86_400}


def publish_served(folder: Path, schema: Schema, seed: int = 3) -> Path:
    """Publish a bundle with the profiles of its users beside it."""
    path = publish_linear(folder, schema, seed)
    write_profiles(folder / "profiles", make_profiles(schema, known_users(schema)))
    return path


def open_bundle(bundle: Path, state: Path | None = None) -> Service:
    return Service(BundleSource(bundle), bundle.parent, None, state, EVER)


@contextmanager
def asking(
    bundle: Path,
    state: Path | None = None,
    token: str | None = None,
    **access: Any,
) -> Iterator[Any]:
    """Give an application to ask."""
    app = make_app(open_bundle(bundle, state), Access(token=token, **access))
    for turns in (app.state.shared.answers.short, app.state.shared.answers.long):
        turns._deadline = 60  # tests share processors
    with closing(app.state.shared):
        yield app


def listed(app: Any, **request: Any) -> list[Any]:
    """Return the items of one list."""
    reply = ask(app, "POST", "/v1/recommend", {**NOW, **request})
    assert reply.status == 200, reply
    return [item["item_id"] for item in reply.json["answers"][0]["items"]]


def a_user(schema: Schema) -> Any:
    return list(known_users(schema))[1]
