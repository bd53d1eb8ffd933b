"""`python -m serve recommend | similar | export | verify`: answers in files and on the console."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serve.interruption import ending_on_signals

_FAILED = 2
_VECTORS = """The product of a user vector and an item vector is the item's score. Where repeats are allowed, that is
the whole score only of items that the user does not own yet: the rest of an owned item's score lies in no vector,
and recommend knows it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a fault is one line on stderr and exit code 2, SIGTERM is exit code 143."""
    given = _parser().parse_args(arguments)
    try:
        with ending_on_signals():
            given.run(given)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return _FAILED
    return 0


def _recommend(given: argparse.Namespace) -> None:
    from serve.commands import file_requests, recommend_file, user_requests
    from serve.recommender import Recommender

    recommender = Recommender.load(given.bundle, given.profiles)
    requests = user_requests(recommender) if given.all_users else file_requests(recommender, given.requests)
    n_answered = recommend_file(recommender, requests, given.k, given.repeats, given.out)
    print(f"{n_answered} requests answered: {given.out}")


def _similar(given: argparse.Namespace) -> None:
    from serve.commands import describe_similar

    print("\n".join(describe_similar(given.bundle, given.item, given.k)))


def _export(given: argparse.Namespace) -> None:
    from serve.commands import export_file

    arguments = (given.bundle, given.profiles, given.side, given.rows, given.out, given.overwrite)
    print("\n".join(export_file(*arguments)))


def _verify(given: argparse.Namespace) -> None:
    from serve.commands import verify_bundle

    print("\n".join(verify_bundle(given.bundle)))


def _parser() -> argparse.ArgumentParser:
    """Describe the commands; what they need is imported when one runs, so that help is quick."""
    parser = argparse.ArgumentParser(prog="python -m serve", description="Answer requests from a bundle.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "write the best items of many requests to a file"
    _describe_recommend(commands.add_parser("recommend", help=text, description=text))
    text = "show the items nearest to an item"
    _describe_similar(commands.add_parser("similar", help=text, description=text))
    text = "write the vectors of users or items to a folder of Parquet files"
    _describe_export(commands.add_parser("export", help=text, description=f"{text[0].upper()}{text[1:]}. {_VECTORS}"))
    text = "check files, space and golden answers"
    _describe_bundle(commands.add_parser("verify", help=text, description=text), _verify)
    return parser


def _describe_recommend(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _recommend)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--requests", type=Path, metavar="FILE", help="JSON Lines, Parquet or CSV")
    source.add_argument("--all-users", action="store_true", help="one request per user that has a profile")
    parser.add_argument("--k", type=int, default=10, help="items per request (default: 10)")
    repeats = "may items of the history be listed (default: as in the data)"
    parser.add_argument("--repeats", choices=("allow", "exclude"), help=repeats)
    _describe_profiles(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV or Parquet, by suffix")


def _describe_similar(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _similar)
    parser.add_argument("--item", required=True, metavar="ID")
    parser.add_argument("--k", type=int, default=10, help="how many (default: 10)")


def _describe_export(parser: argparse.ArgumentParser) -> None:
    _describe_bundle(parser, _export)
    parser.add_argument("--side", choices=("user", "item"), required=True)
    rows = "JSON Lines, Parquet or CSV: requests, or items with item_id and features (default: all users with a "
    parser.add_argument("--rows", type=Path, metavar="FILE", help=rows + "profile, or the catalogue)")
    _describe_profiles(parser)
    folder = "gets part-00000.parquet and so on, and _SUCCESS at the end; a run that was stopped goes on there"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=folder)
    parser.add_argument("--overwrite", action="store_true", help="replace an export in --out")


def _describe_profiles(parser: argparse.ArgumentParser) -> None:
    profiles = "default: the folder 'profiles' beside the bundle, if there is one"
    parser.add_argument("--profiles", type=Path, metavar="DIR", help=profiles)


def _describe_bundle(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Add what every command has: the bundle, and what runs the command."""
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
