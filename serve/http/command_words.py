"""`python -m serve http`; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

_HTTP = """Serve a bundle, or what is current in a registry, over HTTP, with a page to try it at /.

SIGTERM or Ctrl-C ends it: what was asked is answered, and the status is 0. Events, changes of items and the log of
what was shown lie in the folder of the state. POST /v1/reload takes up another version; there is such a route only
where a token is set: BASCULE_RELOAD_TOKEN or --reload-token-file.

Answers go to whoever can reach the address: leave it at 127.0.0.1, or put a proxy before it that knows who asks.

examples:
  python -m serve http --bundle runs/demo/bundle
  python -m serve http --registry runs/registry --profiles runs/demo/profiles --state runs/demo/state"""


def _http(given: argparse.Namespace) -> None:
    from serve.interpreter import HTTP, require_packages

    require_packages(HTTP, "http")
    from serve.http.command import places_of_bundle, places_of_registry, serve_http

    elsewhere = (given.profiles, given.state)
    of_bundle = given.registry is None
    places = places_of_bundle(given.bundle, *elsewhere) if of_bundle else places_of_registry(given.registry, *elsewhere)
    serve_http(places, given.reload_token_file, given.retention_days, given.host, given.port)


def _describe_http(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, metavar="DIR", help="folder of the bundle")
    what.add_argument("--registry", type=Path, metavar="DIR", help="folder of a registry")
    where = "beside the bundle, or in the registry"
    parser.add_argument("--profiles", type=Path, metavar="DIR", help=f"called 'profiles'; default: {where}")
    parser.add_argument("--state", type=Path, metavar="DIR", help=f"called 'state'; default: {where}")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="default: 8080; 0: a free one")
    days = "that events and what was shown are kept (default: 365)"
    parser.add_argument("--retention-days", type=float, default=365, metavar="DAYS", help=days)
    file = "whose text, of 16 characters or more, lets a process on this machine ask for a reload"
    parser.add_argument("--reload-token-file", type=Path, metavar="FILE", help=file)
    parser.set_defaults(run=_http)


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {"http": (_HTTP, _describe_http)}
