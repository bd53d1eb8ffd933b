"""`bascule COMMAND`: the names, options and help of all commands.

What a command needs is imported when it runs, so that help is quick.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.command_line import FAULT, import_ours, make_parser, run_command

_REGISTRY = Path("runs") / "registry"
_RUNNING = (
    "serve",
    "consume",
)  # their state lies beside the bundle, which so is a folder

# command -> the module that parses its options, and its help in a line
TRAINING = {
    "train": ("train", "train, evaluate and publish"),
    "evaluate": ("evaluation.__main__", "evaluate a bundle on a holdout"),
    "report": ("evaluation.report", "write the report of a finished run again"),
    "feedback": (
        "evaluation.feedback",
        "show which events followed the lists of a service: tables, figures, a page",
    ),
    "retrain": (
        "pipeline.retrain",
        "train the next version on the log of a service, from the weights of a run",
    ),
    "judge": (
        "evaluation.off_policy",
        "estimate how another version would have done on the log of a service",
    ),
    "gate": (
        "evaluation.gate",
        "activate a new version if it is no worse; gate watch: take it back",
    ),
    "drift": (
        "evaluation.drift",
        "compare the requests of a service with the training data of its bundle",
    ),
}

_RECOMMEND_HELP = """
A file of requests is JSON Lines; what a request leaves out counts as missing:
  {"user_id": "u7", "context": {"device": "phone"}, "history": [7, 12]}
  {"user_id": "u8", "filters": {"at_most": {"brand": 2}}}

example:
  bascule recommend --bundle runs/grocery/bundle --all-users --out all.parquet \\
    --where "brand = 'Private' and not category in ['EGGS']" --at-most category=2"""
_EXPORT_HELP = """
The dot product of a user vector and an item vector is the item's score, without the terms
for owned items and for items that go with the history.

example:
  bascule export --bundle runs/grocery/bundle --side item --out new \\
    --rows new.tsv --columns item_id=sku"""
_SERVE_HELP = """
Stops on SIGTERM or Ctrl-C after answering open requests; exit status 0.
POST /v1/reload needs the token in BASCULE_RELOAD_TOKEN or in a file, or an admin key.
With --workers, SIGHUP to the parent replaces all workers without a pause.
Without --keys the service answers whoever can reach the address. To make a key and the line
of its hash:
  key=$(openssl rand -hex 32); echo "$key"
  echo "shop ask $(printf %s "$key" | sha256sum | cut -d' ' -f1)" >> keys

example:
  bascule serve --registry runs/registry \\
    --profiles runs/demo/profiles --state runs/demo/state"""
_CONSUME_HELP = """
An entry of the stream has a field `body`: JSON as POST /v1/events takes it. It is acknowledged once
the state has its events on disk; what cannot be read is named in the log. BASCULE_STREAM in the
environment is the URL of the server. Stops on SIGTERM or Ctrl-C; exit status 0.

example:
  BASCULE_STREAM=redis://localhost:6379 \\
    bascule consume --stream events --bundle runs/demo/bundle"""
_SIGN_HELP = """
The bundle keeps its version; its Ed25519 signature is the file manifest.sig. To make a key
and trust it (while a key is replaced, the file of trusted keys holds the old and the new one):
  openssl genpkey -algorithm ed25519 -out signing.pem
  openssl pkey -in signing.pem -pubout >> trusted.pem

example:
  bascule sign --bundle runs/demo/bundle --key signing.pem"""
_DEMO_HELP = """
Trains into runs/demo of this folder, with --sample into runs/NAME, which takes about two
minutes, or one with --quick. A run that lies there is served as it is."""
_USER_HELP = """
Of users who opted out nothing is read or kept, and trainings leave them out. DIR/opted_out.json
and DIR/forgotten.json hold keyed hashes. Example: bascule user show --run runs/demo --user 7"""


@dataclass(frozen=True)
class Command:
    """A command of this package."""

    work: str  # function of a module of this package
    summary: str  # its help in a line
    required: str  # its options
    optional: str = ""
    details: str = ""  # more help


_FOLDER = {"type": Path, "metavar": "DIR"}
_FILE = {"type": Path, "metavar": "FILE"}
_FLAG = {"action": "store_true"}
_DAYS = {"type": float, "metavar": "DAYS"}
_NUMBER = {"type": int, "metavar": "N"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "--bundle": {
        "type": lambda text: text if "://" in text else Path(text),
        "metavar": "DIR|URL",
        "help": "folder of the bundle, or its URL, such as s3://BUCKET/PATH",
    },
    "--requests": _FILE
    | {"help": "JSON Lines, CSV, TSV (also .gz) or Parquet; or else --all-users"},
    "--all-users": _FLAG | {"help": "one request per user with a profile"},
    "--k": _NUMBER | {"default": 10, "help": "items per list (default: 10)"},
    "--repeats": {
        "choices": ("allow", "exclude"),
        "help": "whether to list items of the history (default: as in training)",
    },
    "--again": {
        "choices": ("due", "any"),
        "help": "list what a request has just now when it may be due again, or at any time"
        " (default: as the request says, or due)",
    },
    "--variants": {
        "choices": ("few", "any"),
        "help": "list few variants of a thing in the first rows, or any of them",
    },
    "--where": {"metavar": "TEXT", "help": "condition on the columns of items"},
    "--only": _FILE | {"help": "list no other items: a file with item_id"},
    "--at-most": {
        "action": "append",
        "default": [],
        "metavar": "COLUMN=N",
        "help": "list at most N items with the same value of a column",
    },
    "--names": _FLAG | {"help": "also write the names of items"},
    "--profiles": _FOLDER
    | {"help": "folder of profiles (default: beside the bundle, or in the registry)"},
    "--out": {
        "type": Path,
        "metavar": "PATH",
        "help": "CSV or Parquet file, by suffix; for export, a folder; of a user, JSON",
    },
    "--item": {"metavar": "ID", "help": "the item's id, as in the data"},
    "--side": {"choices": ("user", "item"), "help": "whose vectors to write"},
    "--rows": _FILE
    | {"help": "requests, or items with item_id and features (default: all)"},
    "--columns": {
        "metavar": "NAME=COLUMN,...",
        "help": "columns of --rows with other names: item_id=sku",
    },
    "--overwrite": _FLAG | {"help": "replace an export in --out"},
    "--engine": {
        "choices": ("local", "ray"),
        "default": "local",
        "help": "who does the work: this process (default), or the Ray cluster of RAY_ADDRESS"
        " or else a Ray of this machine, which writes a folder",
    },
    "--registry": _FOLDER
    | {"help": f"folder of the versions (default: {_REGISTRY}; serve has no default)"},
    "--state": _FOLDER
    | {
        "help": "folder of live events, must be named 'state' (default: the server of"
        " BASCULE_STATE, or else beside the bundle, or in the registry)"
    },
    "--host": {
        "default": "127.0.0.1",
        "metavar": "ADDRESS",
        "help": "address to listen on (default: 127.0.0.1)",
    },
    "--port": _NUMBER
    | {"default": 8080, "help": "port to listen on (default: 8080; 0: any free port)"},
    "--workers": _NUMBER
    | {"help": "number of worker processes (default: one, without a supervisor)"},
    "--retention-days": _DAYS
    | {"default": 365, "help": "keep events this long (default: 365)"},
    "--impression-days": _DAYS
    | {"help": "keep impressions this long (default: as events)"},
    "--clock": {
        "choices": ("data", "now"),
        "default": "data",
        "help": "default time of a request: now, or the end of the data, if that is long ago"
        " (default: data)",
    },
    "--experiment": _FILE
    | {"help": "JSON file of an experiment: arms with shares, policies, versions"},
    "--reload-token-file": _FILE
    | {
        "help": "file of a token (16 characters or more) that permits a reload from this machine"
    },
    "--keys": _FILE
    | {
        "help": "file of API keys, one per line:"
        " NAME ask|write|admin SHA256 [REQUESTS_PER_SECOND [BURST]]"
    },
    "--allowed-host": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "host name to answer to, beside loopback; may be repeated",
    },
    "--admin-port": _NUMBER | {"help": "serve the admin routes only on this port"},
    "--insecure": _FLAG | {"help": "listen on an address of a network without --keys"},
    "--expire-most": _FLAG | {"help": "remove what is too old, even most of it"},
    "--read-only": _FLAG | {"help": "refuse events, changes of items and erasures"},
    "--log-format": {
        "choices": ("text", "json"),
        "help": "format of the log on stderr (default: text)",
        "default": "text",
    },
    "--trusted-keys": _FILE | {"help": "keys in PEM: refuse what none has signed"},
    "--key": _FILE | {"help": "file of the private key in PEM"},
    "--storage": {
        "metavar": "URL",
        "help": "where versions lie on object storage: s3://BUCKET/PATH",
    },
    "--stream": {"metavar": "NAME", "help": "name of the stream"},
    "--group": {
        "default": "bascule",
        "metavar": "NAME",
        "help": "group of consumers that share the stream (default: bascule)",
    },
    "--sample": {"choices": ("grocery", "library"), "help": "sample to train on"},
    "--quick": _FLAG | {"help": "a first look in half the time, hardly trained"},
    "--no-browser": _FLAG | {"help": "open no browser"},
    "--run": _FOLDER | {"dest": "run_folder", "help": "folder of the run"},
    "action": {"choices": ("show", "export", "opt-out", "opt-in", "forget")},
    "--log": _FILE | {"nargs": "+", "default": [], "help": "logs of the server"},
    "--json": _FLAG | {"help": "show everything as JSON"},
    "--user": {"nargs": "+", "metavar": "ID", "help": "ids of users, as in the data"},
    "--exports": _FOLDER
    | {
        "nargs": "+",
        "default": [],
        "help": "folders written by `bascule export --side user`",
    },
    "--activate": _FLAG | {"help": "serve it from now on"},
    "--keep": _NUMBER
    | {"default": 3, "help": "number of latest versions to keep (default: 3)"},
    "--version": {
        "metavar": "V",
        "help": "its 12 digits, as `bascule list` shows them",
    },
}
_SERVE_OPTIONS = (
    "--bundle --registry --profiles --state --host --port --workers --clock --experiment"
    " --retention-days --impression-days --keys --trusted-keys --reload-token-file --allowed-host"
    " --admin-port --insecure --expire-most --read-only --log-format"
)
COMMANDS = {
    "demo": Command(
        "demo.demo",
        "train on a bundled sample, serve it, and open its page",
        "",
        "--sample --quick --no-browser --host --port",
        _DEMO_HELP,
    ),
    "recommend": Command(
        "answering.recommend",
        "write the best items of each request to a file",
        "--bundle --out",
        "--requests --all-users --k --repeats --again --variants --names"
        " --where --only --at-most --profiles --trusted-keys --engine --overwrite",
        _RECOMMEND_HELP,
    ),
    "similar": Command(
        "answering.similar",
        "show the items nearest to an item",
        "--bundle --item",
        "--k --trusted-keys",
    ),
    "export": Command(
        "answering.export",
        "write vectors to a folder of Parquet files",
        "--bundle --side --out",
        "--rows --columns --profiles --overwrite --trusted-keys --engine",
        _EXPORT_HELP,
    ),
    "verify": Command(
        "answering.verify",
        "check the files and the golden answers of a bundle",
        "--bundle",
        "--trusted-keys",
    ),
    "sign": Command(
        "answering.sign_bundle",
        "sign a bundle, so that others know who made it",
        "--bundle --key",
        details=_SIGN_HELP,
    ),
    "serve": Command(
        "serving.serve",
        "serve a bundle or a registry over HTTP, with a page to try it at /",
        "",
        _SERVE_OPTIONS,
        _SERVE_HELP,
    ),
    "consume": Command(
        "serving.consume",
        "read events from Redis Streams into the state of a service",
        "--stream",
        "--group --bundle --registry --state --retention-days --impression-days",
        _CONSUME_HELP,
    ),
    "user": Command(
        "rights.user",
        "show or export what is held about users, opt them out or in, or erase them",
        "--run --user",
        "action --json --out --log --exports",
        _USER_HELP,
    ),
    "expire": Command(
        "serving.expire",
        "remove what is too old, with a report",
        "--run",
        "--retention-days --impression-days --expire-most",
    ),
    "rotate": Command(
        "serving.rotate", "give pseudonyms the last key of their file", "--run"
    ),
    "publish": Command(
        "serving.publish",
        "copy a bundle into a registry",
        "--bundle",
        "--registry --trusted-keys --activate --keep",
    ),
    "activate": Command(
        "serving.activate",
        "verify a version, and serve it from now on",
        "--version",
        "--registry --trusted-keys",
    ),
    "rollback": Command(
        "serving.rollback",
        "serve the previous version again",
        "",
        "--registry --trusted-keys",
    ),
    "push": Command(
        "serving.push_version",
        "copy the current version into object storage, and make it current there",
        "--storage",
        "--registry --trusted-keys",
    ),
    "pull": Command(
        "serving.pull_version",
        "take up the version that is current in object storage",
        "--storage",
        "--registry --trusted-keys",
    ),
    "list": Command(
        "serving.list_versions",
        "show the versions of a registry; `*` is the current one",
        "",
        "--registry",
    ),
}


def read_version() -> str:
    """Return the version of the package that is installed, or of a checkout that is not."""
    try:
        return version("bascule")
    except PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command's name and its options; by default those of the process.

    Returns:
        The exit status: 0, or 2 after one line on stderr about a fault.

    Raises:
        SystemExit: 143 on SIGTERM, 130 on Ctrl-C, and whatever status `serve` ends with.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    if name in TRAINING:
        return _train(name, words[1:])
    if name == "forget":
        words[:1] = ["user", "forget"]
    return run_command(lambda: _run(words))


def _train(name: str, words: list[str]) -> int:
    """Run a command that parses its own options."""
    try:
        module = import_ours(TRAINING[name][0])
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT

    return int(module.main(words, f"bascule {name}"))


def _run(words: list[str]) -> None:
    """Parse the options of a command of this package, and do its work."""
    options = _make_parser().parse_args(words)
    bundle = getattr(options, "bundle", None)
    if isinstance(bundle, str) and options.command not in _RUNNING:
        options.bundle = import_ours("service.remote.storage").fetch_bundle(bundle)

    module, _, function = COMMANDS[options.command].work.partition(".")
    getattr(import_module(f"bascule.{module}"), function)(options)


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("bascule", "Train, judge and serve a two-tower recommender.")
    parser.add_argument(
        "--version", action="version", version=f"bascule {read_version()}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, summary) in TRAINING.items():
        commands.add_parser(name, help=summary, add_help=False)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary}\n{command.details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for option in command.required.split():
            subparser.add_argument(option, required=True, **_OPTIONS[option])
        for option in command.optional.split():
            subparser.add_argument(option, **_OPTIONS[option])
        if name not in _RUNNING:
            subparser.set_defaults(registry=_REGISTRY)

    return parser
