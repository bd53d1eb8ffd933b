import argparse

import pytest

from serve.command_line import make_parser, parse_command, parse_options
from serve.errors import SchemaError


def make_commands() -> dict[str, argparse.ArgumentParser]:
    walk, swim = make_parser("go walk", "Walk.\n\nexample:\n  go walk --to sea"), make_parser("go swim", "Swim.")
    walk.add_argument("--to", choices=("sea", "hill"), required=True)
    walk.add_argument("--steps", type=int, default=5)
    swim.add_argument("--deep-water", action="store_true")
    return {"walk": walk, "swim": swim}


def parse(line: str) -> argparse.Namespace:
    return parse_command(make_parser("go", "Go."), make_commands(), line.split())


def test_a_command_gets_its_options():
    assert parse("walk --to sea --steps=7") == argparse.Namespace(to="sea", steps=7)
    assert parse("swim --deep-water") == argparse.Namespace(deep_water=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"no command is given; allowed: swim, walk; see go --help"),
        ("--to sea", r"no command is given; allowed: swim, walk"),
        ("wlak", r"unknown command 'wlak'; did you mean 'walk'\? see go --help"),
        ("walk --too sea", r"unknown option '--too'; did you mean '--to'\? see go walk --help"),
        ("walk --to sea --step=3", r"unknown option '--step'; did you mean '--steps'\?"),
        ("walk", r"the following arguments are required: --to; see go walk --help"),
        ("walk --to lake", r"argument --to: invalid choice: 'lake' \(choose from "),
        ("walk --to sea --steps many", r"argument --steps: invalid int value: 'many'; see"),
        ("swim far", r"unrecognized arguments: far; see go swim --help"),
    ],
)
def test_a_fault_is_one_line_that_names_the_nearest(line, message, capsys):
    with pytest.raises(SchemaError, match=f"^{message}") as error:
        parse(line)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_help_keeps_the_lines_of_examples(capsys):
    for line, shown in (("walk --help", "\nexample:\n  go walk --to sea\n"), ("-h", "usage: go"), ("swim -h", "Swim.")):
        with pytest.raises(SystemExit) as end:
            parse(line)
        assert end.value.code == 0
        assert shown in capsys.readouterr().out


def test_options_alone(capsys):
    assert parse_options(make_commands()["walk"], ["--to", "hill"]).to == "hill"
