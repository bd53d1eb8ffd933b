"""`python -m serve`: answers in files, on the console and over HTTP, and the versions that give them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from serve.errors import SchemaError
from service.command_line import align, make_parser, run_command

if (
    TYPE_CHECKING
):  # what a command needs is imported when it runs, so that help is quick
    from socket import socket

    import pyarrow as pa

    from serve.recommender import Recommender
    from serve.requests import Request

_PROGRAM = "python -m serve"
_REGISTRY = Path("runs") / "registry"
_TOKEN = "BASCULE_RELOAD_TOKEN"  # characters  # noqa: S105
_MIN_TOKEN = 16
_REQUESTS_AT_ONCE = (
    4096  # of whose answers a table is made: memory does not grow with the file
)
_MAX_SHOWN = 40  # characters of a cell
_RECOMMEND_HELP = """
A line of a JSON Lines file of requests; whatever is left out counts as missing:
  {"user_id": "u7", "context": {"device": "phone"}, "history": [{"item_id": 7}], "filters": {"at_most": {"brand": 2}}}

example:
  python -m serve recommend --bundle runs/grocery/bundle --all-users --out all.parquet \\
    --where "brand = 'Private' and not category in ['EGGS']" --at-most category=2"""
_EXPORT_HELP = """
The product of a user and an item vector is the item's score, but for owned items and neighbours of a history.

example:
  python -m serve export --bundle runs/grocery/bundle --side item --rows new.tsv --columns item_id=sku --out new"""
_HTTP_HELP = """
SIGTERM or Ctrl-C ends it: what was asked is answered, and the status is 0. BASCULE_RELOAD_TOKEN or a file of a token
admits POST /v1/reload. With --workers a parent keeps N processes answering; SIGHUP to it renews them without a pause.
Without --keys answers go to whoever can reach the address. A key and the line of its hash:
  key=$(openssl rand -hex 32); echo "shop ask $(printf %s "$key" | sha256sum | cut -d' ' -f1)" >> keys; echo "$key"

example:
  python -m serve http --registry runs/registry --profiles runs/demo/profiles --state runs/demo/state"""
_SIGN_HELP = """
The signature, Ed25519, lies in the bundle as manifest.sig and does not change its version. Keys, and who trusts them
(several public keys in one file while an old one is replaced by a new one):
  openssl genpkey -algorithm ed25519 -out signing.pem && openssl pkey -in signing.pem -pubout >> trusted.pem

example:
  python -m serve sign --bundle runs/demo/bundle --key signing.pem"""
_FORGET_HELP = "DIR/forgotten.json keeps a keyed hash of each, so that later events and trainings leave them out."


def _recommend(given: argparse.Namespace) -> None:
    from serve.recommender import Recommender
    from serve.requests import Request
    from service.request_files import add_filters, read_filters, read_requests

    if (given.requests is None) is not given.all_users:
        raise SchemaError("give either --requests or --all-users")
    for source in (given.requests, given.only):
        if (
            source is not None
            and given.out.exists()
            and source.exists()
            and given.out.samefile(source)
        ):
            raise SchemaError(
                f"--out {given.out} is a file that is read, and the answers would replace it"
            )
    recommender = Recommender.load(given.bundle, given.profiles, given.trusted_keys)
    schema = recommender.bundle.schema
    admission = recommender.admission
    if given.requests is not None:
        requests = read_requests(
            given.requests,
            schema,
            check=lambda request: admission.check(request.filters),
        )
    elif not len(recommender.profiles):
        raise SchemaError(
            "there are no profiles: give their folder with --profiles, or requests with --requests"
        )
    else:
        requests = (
            Request(user_id=user_id)
            for user_id in recommender.profiles.user_ids.tolist()
        )
    filters = read_filters(given.where, given.only, given.at_most, schema.item_id_type)
    if filters is not None:
        admission.check(filters)
        requests = add_filters(requests, filters)
    _recommend_file(recommender, requests, given)


def _recommend_file(
    recommender: Recommender, requests: Iterable[Request], given: argparse.Namespace
) -> None:
    """Answer requests into a file, which is as it was until all answers are in it."""
    from service.answers import find_unknown
    from service.export import write_tables

    n_requests = 0
    counts = Counter[str]()
    reasons: list[str] = []
    filter_viewed = None if given.repeats is None else given.repeats == "exclude"

    def answer() -> Iterator[pa.Table]:
        nonlocal n_requests
        remaining = iter(requests)
        while some := list(islice(remaining, _REQUESTS_AT_ONCE)):
            lists = recommender.recommend(some, given.k, filter_viewed)
            reasons.extend(
                reason for reason in lists.reason.tolist() if reason is not None
            )
            counts.update(
                name
                for request in some
                for name in find_unknown(recommender.bundle.schema, request)
            )
            counts["history"] += int(lists.unknown_items.sum())
            n_requests += len(some)
            yield lists.to_table()

    schema = recommender.recommend([], given.k, filter_viewed).to_table().schema
    write_tables(answer(), schema, given.out)
    print(f"{n_requests} requests answered: {given.out}")
    if unknown := ", ".join(
        f"{name} ({count} times)" for name, count in sorted(counts.items()) if count
    ):
        print(
            f"note: values and items that training has not seen, taken as missing: {unknown}",
            file=sys.stderr,
        )
    if reasons:
        share = (
            f"{len(reasons)} of {n_requests} requests got fewer than {given.k} items"
        )
        print(f"note: {share}; the first since {reasons[0]}", file=sys.stderr)


def _similar(given: argparse.Namespace) -> None:
    from serve.bundle import Bundle
    from serve.recommender import Recommender
    from service.answers import show_items

    recommender = Recommender(Bundle.load(given.bundle, trusted=given.trusted_keys))
    ids, cosines = recommender.similar_items(given.item, given.k)
    rows = recommender.catalogue.item_ids.require([given.item, *ids.tolist()])
    shown = show_items(recommender.bundle.items, rows)
    heads = [
        ["", given.item],
        *(
            [f"{cosine:.3f}", item_id]
            for cosine, item_id in zip(cosines, ids, strict=True)
        ),
    ]
    lines = ([*head, *item.values()] for head, item in zip(heads, shown, strict=True))
    cells = [
        ["" if one is None else " ".join(str(one).split())[:_MAX_SHOWN] for one in line]
        for line in lines
    ]
    print("\n".join(align([["cosine", "item_id", *shown[0]], *cells])))


def _export(given: argparse.Namespace) -> None:
    from datamodules.read import read_columns
    from serve.recommender import Recommender
    from service.export import export_items, export_users

    columns = read_columns(given.columns)
    if given.rows is None and columns:
        raise SchemaError("columns describe a file of rows: give the file with --rows")
    recommender = Recommender.load(given.bundle, given.profiles, given.trusted_keys)
    export = export_users if given.side == "user" else export_items
    print(
        "\n".join(export(recommender, given.rows, given.out, given.overwrite, columns))
    )


def _verify(given: argparse.Namespace) -> None:
    print("\n".join(verify_bundle(given.bundle, given.trusted_keys)))


def verify_bundle(path: Path, trusted: Path | None = None) -> list[str]:
    """Load a bundle, replay its golden requests and return lines to print.

    Raises:
        BundleError: the bundle is damaged, not signed by a trusted key, or answers differently.
    """
    from serve.bundle import MANIFEST, Bundle
    from serve.golden import replay
    from serve.recommender import Recommender, golden_answer

    bundle = Bundle.load(path, trusted=trusted)
    manifest = bundle.manifest
    sizes = [entry.size for entry in manifest.files.values()]
    n_requests = replay(bundle.golden, golden_answer(Recommender(bundle)))
    lines = [
        f"files: {len(sizes)} with {sum(sizes)} bytes as {MANIFEST} says",
        f"space_id: {manifest.space_id} in towers, index and schema",
        f"golden: {n_requests} requests answered as when exported",
        f"version: {manifest.version}",
    ]
    if trusted is not None:
        lines.append(f"signature: by a key of {trusted}")
    return lines


def _sign(given: argparse.Namespace) -> None:
    from serve.bundle import sign

    print(f"signed by the key {sign(given.bundle, given.key)}")


def _http(given: argparse.Namespace) -> None:
    for place in (given.bundle, given.registry):
        if place is not None and not place.is_dir():
            raise SchemaError(
                f"{place} is no folder, seen from {Path.cwd()}: give that of a bundle or of a registry"
            )
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # before numpy is imported: of a request, threads cost more
    from service.http.logs import set_up_logs
    from service.http.workers import bind, is_worker, supervise

    if (given.bundle is None) is (given.registry is None):
        raise SchemaError("give either --bundle or --registry")
    token = (
        os.environ.get(_TOKEN)
        if given.reload_token_file is None
        else given.reload_token_file.read_text().strip()
    )
    if token is not None and len(token) < _MIN_TOKEN:
        raise SchemaError(
            f"the reload token has {len(token)} characters; allowed: {_MIN_TOKEN} or more"
        )
    if given.admin_port == given.port != 0:
        raise SchemaError(
            f"--admin-port is {given.port}, as --port; expected another one"
        )
    if given.workers is not None and given.workers < 1:
        raise SchemaError(f"--workers is {given.workers}; allowed: 1 or more")
    ports = [port for port in (given.port, given.admin_port) if port is not None]
    with bind(given.host, *ports) as listeners:
        if given.workers is not None and not is_worker():
            set_up_logs(given.log_format)
            raise SystemExit(supervise(given.workers, listeners))
        _serve(given, token, listeners)


def _serve(
    given: argparse.Namespace, token: str | None, listeners: Sequence[socket]
) -> None:
    """Serve in this process."""
    from service.experiment import Experiment
    from service.http.access import Access, KeyFile
    from service.http.app import make_app
    from service.http.logs import set_up_logs
    from service.http.server import serve
    from service.registry import BundleSource, Registry, RegistrySource, Source
    from service.service import Service

    set_up_logs(given.log_format)
    admin_port = None if given.admin_port is None else listeners[1].getsockname()[1]
    hosts = frozenset(name.lower() for name in (given.host, *given.allowed_host))
    access = Access(
        given.keys and KeyFile(given.keys), token, hosts, admin_port, given.read_only
    )
    source: Source = BundleSource(given.bundle, given.profiles, given.trusted_keys)
    home = (
        given.bundle
        and (given.bundle if given.bundle.name else given.bundle.absolute()).parent
    )
    if given.registry is not None:
        source = RegistrySource(
            Registry(given.registry, given.trusted_keys), given.profiles
        )
        home = given.registry
    experiment = given.experiment and Experiment.read(given.experiment)
    service = Service(
        source,
        home,
        given.profiles,
        given.state,
        given.retention_days,
        given.clock,
        experiment,
    )
    serve(make_app(service, access), listeners)


def _forget(given: argparse.Namespace) -> None:
    from service.forget import forget_users

    receipt = forget_users(given.run_folder, given.user, given.exports)
    print(json.dumps(receipt, indent=1))
    pairs = zip(given.user, receipt["forgotten"], strict=True)
    if unknown := [user for user, hashed in pairs if hashed in receipt["unknown"]]:
        print(
            f"note: there was no profile and no live state of {', '.join(unknown)}",
            file=sys.stderr,
        )


def _publish(given: argparse.Namespace) -> None:
    from serve.bundle import PROFILES, STATE
    from service.registry import KEPT_VERSIONS, Registry, publish_version

    keep = KEPT_VERSIONS if given.keep is None else given.keep
    registry = Registry(given.registry or _REGISTRY, given.trusted_keys)
    published = publish_version(registry, given.bundle, keep, given.activate)
    print(
        f"version {published.version} {'published' if published.is_new else 'was published already'}"
    )
    if given.activate:
        print(f"current: {published.version}")
    for version in published.removed:
        print(f"removed: {version}")
    if (given.bundle.absolute().parent / PROFILES).is_dir():
        run = given.bundle.parent
        where = shlex.join(
            ["--profiles", str(run / PROFILES), "--state", str(run / STATE)]
        )
        print(f"profiles stay where they are: serve the registry with {where}")


def _activate(given: argparse.Namespace) -> None:
    from service.registry import Registry, activate

    activate(Registry(given.registry or _REGISTRY, given.trusted_keys), given.version)
    print(f"current: {given.version}")


def _rollback(given: argparse.Namespace) -> None:
    from service.registry import Registry, rollback

    done = rollback(Registry(given.registry or _REGISTRY, given.trusted_keys))
    print(
        f"current: {done.version}, in place of {done.left or 'none that could be read'}"
    )
    for fault in done.skipped:
        print(f"left out: {fault}", file=sys.stderr)


def _list(given: argparse.Namespace) -> None:
    from service.registry import Registry, describe_registry

    print("\n".join(describe_registry(Registry(given.registry or _REGISTRY))))


_FOLDER = {"type": Path, "metavar": "DIR"}
_FILE = {"type": Path, "metavar": "FILE"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "--bundle": _FOLDER | {"help": "folder of the bundle"},
    "--requests": _FILE
    | {"help": "JSON Lines, CSV, TSV (also .gz) or Parquet; or else --all-users"},
    "--all-users": {
        "action": "store_true",
        "help": "one request per user that has a profile",
    },
    "--k": {
        "type": int,
        "default": 10,
        "metavar": "N",
        "help": "items of a list (default: 10)",
    },
    "--repeats": {
        "choices": ("allow", "exclude"),
        "help": "list items of the history (default: as in the data)",
    },
    "--where": {"metavar": "TEXT", "help": "condition on the columns of items"},
    "--only": _FILE | {"help": "items that may be listed: a file with item_id"},
    "--at-most": {
        "action": "append",
        "default": [],
        "metavar": "COLUMN=N",
        "help": "items of one value in a list",
    },
    "--profiles": _FOLDER
    | {"help": "default: the folder 'profiles' beside the bundle, or in the registry"},
    "--out": {
        "type": Path,
        "metavar": "PATH",
        "help": "CSV or Parquet file, by suffix; of export, a folder",
    },
    "--item": {"metavar": "ID", "help": "the item's id, as in the data"},
    "--side": {"choices": ("user", "item"), "help": "whose vectors"},
    "--rows": _FILE
    | {
        "help": "requests, or items with item_id and features (default: all users, or the catalogue)"
    },
    "--columns": {
        "metavar": "NAME=COLUMN,...",
        "help": "columns of --rows that are called otherwise: item_id=sku",
    },
    "--overwrite": {"action": "store_true", "help": "replace an export in --out"},
    "--registry": _FOLDER
    | {"help": f"folder of the versions (default, but of http: {_REGISTRY})"},
    "--state": _FOLDER
    | {"help": "called 'state'; default: beside the bundle, or in the registry"},
    "--host": {
        "default": "127.0.0.1",
        "metavar": "ADDRESS",
        "help": "to listen at (default: 127.0.0.1)",
    },
    "--port": {
        "type": int,
        "default": 8080,
        "metavar": "N",
        "help": "default: 8080; 0: a free one",
    },
    "--workers": {
        "type": int,
        "metavar": "N",
        "help": "processes that answer (default: this one, which none renews)",
    },
    "--retention-days": {
        "type": float,
        "default": 365,
        "metavar": "DAYS",
        "help": "of events and impressions (365)",
    },
    "--clock": {
        "choices": ("data", "now"),
        "default": "data",
        "help": "data that ended long ago is asked at its end",
    },
    "--experiment": _FILE
    | {"help": "of arms with shares of the users, policies and versions, in JSON"},
    "--reload-token-file": _FILE
    | {
        "help": "whose text, of 16 characters or more, admits a reload from this machine"
    },
    "--keys": _FILE
    | {"help": "of lines NAME ask|write|admin SHA256 [REQUESTS_PER_SECOND [BURST]]"},
    "--allowed-host": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "to answer to, beside loopback",
    },
    "--admin-port": {
        "type": int,
        "metavar": "N",
        "help": "where alone items, forget, reload, metrics and status are",
    },
    "--read-only": {
        "action": "store_true",
        "help": "take no events, items or erasures",
    },
    "--log-format": {
        "choices": ("text", "json"),
        "default": "text",
        "help": "of lines on stderr (default: text)",
    },
    "--trusted-keys": _FILE
    | {"help": "of public keys in PEM: a bundle that none of them signed is refused"},
    "--key": _FILE | {"help": "of the private key in PEM"},
    "--run": _FOLDER | {"dest": "run_folder", "help": "folder of the run"},
    "--user": {"nargs": "+", "metavar": "ID", "help": "as in the data"},
    "--exports": _FOLDER
    | {
        "nargs": "+",
        "default": [],
        "help": "folders that `serve export --side user` wrote",
    },
    "--activate": {"action": "store_true", "help": "let it be served from now on"},
    "--keep": {
        "type": int,
        "metavar": "N",
        "help": "latest versions that stay (default: 3)",
    },
    "--version": {"metavar": "V", "help": "its 12 digits, as `list` shows them"},
}
_ASK = "--requests --all-users --k --repeats --where --only --at-most --profiles --trusted-keys"
_ROWS = "--rows --columns --profiles --overwrite --trusted-keys"
_PLACE = "--bundle --registry --profiles --state --host --port --retention-days --reload-token-file --keys"
_PLACE += " --allowed-host --clock --experiment --workers --trusted-keys --admin-port --read-only --log-format"
_AMONG = "--registry --trusted-keys"
# name -> what it runs, its help in a line, options that it needs, options that it takes, and more help
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str, str, str, str]] = {
    "recommend": (
        _recommend,
        "write the best items of requests to a file",
        "--bundle --out",
        _ASK,
        _RECOMMEND_HELP,
    ),
    "similar": (
        _similar,
        "show the items nearest to an item",
        "--bundle --item",
        "--k --trusted-keys",
        "",
    ),
    "export": (
        _export,
        "write vectors to a folder of Parquet files",
        "--bundle --side --out",
        _ROWS,
        _EXPORT_HELP,
    ),
    "verify": (
        _verify,
        "check files, space and golden answers of a bundle",
        "--bundle",
        "--trusted-keys",
        "",
    ),
    "sign": (
        _sign,
        "sign a bundle, so that others know who made it",
        "--bundle --key",
        "",
        _SIGN_HELP,
    ),
    "http": (
        _http,
        "serve a bundle or a registry over HTTP, with a page to try it at /",
        "",
        _PLACE,
        _HTTP_HELP,
    ),
    "forget": (
        _forget,
        "erase users from a run, and print a receipt",
        "--run --user",
        "--exports",
        _FORGET_HELP,
    ),
    "publish": (
        _publish,
        "copy a bundle into a registry",
        "--bundle",
        f"{_AMONG} --activate --keep",
        "",
    ),
    "activate": (
        _activate,
        "let a version be served, after it was verified",
        "--version",
        _AMONG,
        "",
    ),
    "rollback": (
        _rollback,
        "let the version be served that was current before",
        "",
        _AMONG,
        "",
    ),
    "list": (
        _list,
        "show the versions of a registry; `*` is the current one",
        "",
        "--registry",
        "",
    ),
}


def main(
    arguments: Sequence[str] | None = None,
    program: str = _PROGRAM,
    known: Mapping[str, Any] = COMMANDS,
    others: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run one command; a fault is one line on stderr and exit status 2, SIGTERM is exit status 143.

    `others` are commands that the program runs itself: the help lists them.
    """
    parser = make_parser(
        program,
        "Train, judge and serve." if others else "Answer requests from a bundle.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    for name, text in others.items():
        commands.add_parser(name, help=text, add_help=False)
    for name, (run, text, needed, taken, more) in known.items():
        about = f"{text}\n{more}"
        command = commands.add_parser(
            name, help=text, description=about, formatter_class=raw, allow_abbrev=False
        )
        command.set_defaults(run=run)
        for option in needed.split():
            command.add_argument(option, required=True, **_OPTIONS[option])
        for option in taken.split():
            command.add_argument(option, **_OPTIONS[option])
    return run_command(lambda: (given := parser.parse_args(arguments)).run(given))
