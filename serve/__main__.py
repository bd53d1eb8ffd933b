"""`python -m serve`: answers in files, on the console and over HTTP, and the versions that give them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serve.command_line import FAULT, make_parser, parse_command
from serve.errors import say
from serve.http.command_words import COMMANDS as HTTP_COMMANDS
from serve.interpreter import SERVING, require_packages
from serve.interruption import ending_on_signals
from serve.registry.command_words import COMMANDS as REGISTRY_COMMANDS
from serve.row_layout import read_layout

_PROGRAM = "python -m serve"
_SUMMARY = """Answer requests from a bundle.

commands:
  recommend   write the best items of many requests to a file
  similar     show the items nearest to an item
  export      write the vectors of users or items to a folder of Parquet files
  verify      check files, space and golden answers
  http        serve a bundle, or what is current in a registry, over HTTP
  forget      erase users from a run, and print a receipt
  publish     copy a bundle into a registry of versions
  activate    let a version be served
  rollback    let the version be served that was current before
  list        show the versions of a registry

`python -m serve COMMAND --help` shows the options of a command, with examples."""
_RECOMMEND = """Write the best items of many requests to a file.

A line of a JSON Lines file of requests; whatever is left out counts as missing:
  {"user_id": "u7", "context": {"device": "phone"}, "history": [{"item_id": 7}, {"item_id": 3}]}
  {"user_id": "u7", "filters": {"where": "price <= 20", "only": [3, 7, 9], "at_most": {"brand": 2}}}

examples:
  python -m serve recommend --bundle runs/grocery/bundle --all-users --out all.parquet
  python -m serve recommend --bundle runs/grocery/bundle --requests some.jsonl --k 20 --out some.csv
  python -m serve recommend --bundle runs/grocery/bundle --all-users --out x.csv \\
    --where "brand = 'Private' and not category in ['EGGS']" --at-most category=2"""
_SIMILAR = """Show the items nearest to an item.

example:
  python -m serve similar --bundle runs/grocery/bundle --item 1029743 --k 5"""
_EXPORT = """Write the vectors of users or items to a folder of Parquet files.

The product of a user vector and an item vector is the item's score, but for what lies in no vector and only
recommend knows: the rest of the score of an item that the user owns, where repeats are allowed, and what the
items of a history add to others, where item_neighbours.npy is not empty.

examples:
  python -m serve export --bundle runs/grocery/bundle --side item --out vectors
  python -m serve export --bundle runs/grocery/bundle --side item --rows new.tsv --columns item_id=sku --out new"""
_VERIFY = """Check files, space and golden answers of a bundle.

example:
  python -m serve verify --bundle runs/grocery/bundle"""

_FORGET = """Erase users from a run: profiles, live events, what was shown to them, rejected records, exports.

A tombstone stays, DIR/forgotten.json: what still arrives of them is not kept, and the next training into the
folder leaves out their rows. The receipt, JSON on stdout, says what was erased and what is out of reach. A server
and a training may be at work meanwhile. A user who is not found gets a tombstone too.

example:
  python -m serve forget --run runs/grocery --user 1042 --exports vectors > receipt.json"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a fault is one line on stderr and exit code 2, SIGTERM is exit code 143."""
    try:
        given = parse_command(make_parser(_PROGRAM, _SUMMARY, f"{_PROGRAM} [-h] COMMAND ..."), _commands(), arguments)
        require_packages(SERVING)
        with ending_on_signals():
            given.run(given)
    except (ValueError, OSError) as error:
        print(f"error: {say(error)}", file=sys.stderr)
        return FAULT
    return 0


def _recommend(given: argparse.Namespace) -> None:
    from serve.commands import check_apart, file_requests, filter_requests, recommend_file, user_requests
    from serve.recommender import Recommender

    check_apart(given.out, [given.requests, given.only])
    recommender = Recommender.load(given.bundle, given.profiles)
    requests = user_requests(recommender) if given.all_users else file_requests(recommender, given.requests)
    requests = filter_requests(recommender, requests, given.where, given.only, given.at_most)
    n_answered, notes = recommend_file(recommender, requests, given.k, given.repeats, given.out)
    print(f"{n_answered} requests answered: {given.out}")
    for note in notes:
        print(note, file=sys.stderr)


def _similar(given: argparse.Namespace) -> None:
    from serve.commands import describe_similar

    print("\n".join(describe_similar(given.bundle, given.item, given.k)))


def _export(given: argparse.Namespace) -> None:
    from serve.commands import export_file

    layout = read_layout(given.delimiter, given.columns)
    arguments = (given.bundle, given.profiles, given.side, given.rows, layout, given.out, given.overwrite)
    print("\n".join(export_file(*arguments)))


def _verify(given: argparse.Namespace) -> None:
    from serve.commands import verify_bundle

    print("\n".join(verify_bundle(given.bundle)))


def _forget(given: argparse.Namespace) -> None:
    from serve.state.forgetting import forget_users

    print(json.dumps(forget_users(given.run_folder, given.user, given.exports), indent=1))


def _commands() -> dict[str, argparse.ArgumentParser]:
    """Describe the commands; what they need is imported when one runs, so that help is quick."""
    described = {
        "recommend": (_RECOMMEND, _describe_recommend),
        "similar": (_SIMILAR, _describe_similar),
        "export": (_EXPORT, _describe_export),
        "verify": (_VERIFY, _describe_verify),
        "forget": (_FORGET, _describe_forget),
        **HTTP_COMMANDS,
        **REGISTRY_COMMANDS,
    }
    parsers = {name: make_parser(f"{_PROGRAM} {name}", text) for name, (text, _) in described.items()}
    for name, (_, describe) in described.items():
        describe(parsers[name])
    return parsers


def _describe_recommend(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _recommend)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--requests", type=Path, metavar="FILE", help="JSON Lines, CSV, TSV (also .gz) or Parquet")
    source.add_argument("--all-users", action="store_true", help="one request per user that has a profile")
    parser.add_argument("--k", type=int, default=10, help="items per request (default: 10)")
    repeats = "may items of the history be listed (default: as in the data)"
    parser.add_argument("--repeats", choices=("allow", "exclude"), help=repeats)
    _describe_filters(parser)
    _describe_profiles(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV or Parquet, by suffix")


def _describe_filters(parser: argparse.ArgumentParser) -> None:
    """Add what holds for all requests of a call, beside the filters of their own."""
    where = "what items must be, by their columns: \"category in ['snacks'] and not brand = 'x' and price <= 20\""
    parser.add_argument("--where", metavar="TEXT", help=where)
    only = "the items that may be listed: a file with item_id, as --requests"
    parser.add_argument("--only", type=Path, metavar="FILE", help=only)
    at_most = "how many items of a list may share a value; may be given for many columns"
    parser.add_argument("--at-most", action="append", default=[], metavar="COLUMN=N", help=at_most)


def _describe_similar(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _similar)
    parser.add_argument("--item", required=True, metavar="ID", help="the item's id, as in the data")
    parser.add_argument("--k", type=int, default=10, help="how many (default: 10)")


def _describe_export(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _export)
    parser.add_argument("--side", choices=("user", "item"), required=True, help="whose vectors")
    rows = "requests, or items with item_id and features: JSON Lines, CSV, TSV (also .gz) or Parquet"
    parser.add_argument("--rows", type=Path, metavar="FILE", help=f"{rows} (default: all users, or the catalogue)")
    delimiter = "between the cells of --rows (default: told from the first line)"
    parser.add_argument("--delimiter", metavar="CHARACTER", help=delimiter)
    columns = "columns of --rows that are called otherwise: item_id=sku,price=cost"
    parser.add_argument("--columns", metavar="NAME=COLUMN,...", help=columns)
    _describe_profiles(parser)
    folder = "gets part-00000.parquet and so on, and _SUCCESS at the end; a run that was stopped goes on there"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=folder)
    parser.add_argument("--overwrite", action="store_true", help="replace an export in --out")


def _describe_verify(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _verify)


def _describe_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", dest="run_folder", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--user", nargs="+", required=True, metavar="ID", help="as in the data")
    exports = "folders that `serve export --side user` wrote"
    parser.add_argument("--exports", nargs="+", type=Path, default=[], metavar="DIR", help=exports)
    parser.set_defaults(run=_forget)


def _describe_profiles(parser: argparse.ArgumentParser) -> None:
    profiles = "default: the folder 'profiles' beside the bundle, if there is one"
    parser.add_argument("--profiles", type=Path, metavar="DIR", help=profiles)


def _describe_bundle(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Add what every command has: the bundle, and what runs the command."""
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
