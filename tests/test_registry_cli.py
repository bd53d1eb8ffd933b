from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from serve.__main__ import main
from serve.profiles import write_profiles
from serve.registry.versions import Registry
from serve.staging import Stage, publish
from tests.linear_bundle import SHOP, write_linear
from tests.linear_profiles import known_users, make_profiles


@pytest.fixture
def say(tmp_path, capsys):
    """Run a command on a registry; return status and the lines of both streams."""

    def run(name: str, *words: object) -> tuple[int, list[str], list[str]]:
        status = main([name, *map(str, words), "--registry", str(tmp_path / "registry")])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return run


def test_a_version_comes_and_goes_by_commands(published, versions, say):
    first, second = versions[1], versions[2]
    assert say("publish", "--bundle", published[1]) == (0, [f"version {first} published"], [])
    assert say("activate", "--version", first) == (0, [f"current: {first}"], [])
    lines = [f"version {second} published", f"current: {second}"]
    assert say("publish", "--bundle", published[2], "--activate") == (0, lines, [])
    assert say("publish", "--bundle", published[2]) == (0, [f"version {second} was published already"], [])
    assert say("rollback") == (0, [f"current: {first}, in place of {second}"], [])


def test_what_makes_room_is_named(published, say):
    first = say("publish", "--bundle", published[1])[1][0].split()[1]
    status, lines, _ = say("publish", "--bundle", published[2], "--keep", 1)
    assert status == 0
    assert lines[1:] in ([f"removed: {first}"], [])
    assert say("publish", "--bundle", published[2], "--keep", 0)[::2] == (2, ["error: keep is 0; allowed: 1 or more"])


def test_profiles_stay_where_they_are_and_it_is_said_how_they_are_served(published, say, tmp_path):
    bundle = Path(shutil.copytree(published[1], tmp_path / "my run" / "bundle"))
    write_profiles(bundle.parent / "profiles", make_profiles(SHOP, known_users(SHOP)))
    _, lines, _ = say("publish", "--bundle", bundle, "--activate")
    said, where = lines[-1].split(" with ")
    assert said == "profiles stay where they are: serve the registry"
    assert shlex.split(where) == [
        "--profiles", f"{bundle.parent}/profiles", "--state", f"{bundle.parent}/state",
    ]  # fmt: skip
    assert [path for path in (tmp_path / "registry").rglob("*") if "profile" in path.name] == []


def test_the_list_shows_what_is_current_when_it_came_and_how_good_it_is(published, say, tmp_path):
    assert say("list")[1] == [f"no versions in {tmp_path}/registry: publish a bundle into it first"]
    first = say("publish", "--bundle", published[1])[1][0].split()[1]
    assert "CURRENT is missing" in say("list")[1][-1]
    say("activate", "--version", first)
    status, (header, line), errors = say("list")
    assert (status, errors) == (0, [])
    assert re.split(r"\s{2,}", header.strip()) == ["version", "published (UTC)", "data until (UTC)", "headline"]
    pattern = rf"\*  {first}  \d{{4}}-\d\d-\d\d \d\d:\d\d  2017-07-14 02:40  not tested"
    assert re.fullmatch(pattern, re.sub(r" {2,}", "  ", line))
    (tmp_path / "registry" / first / "manifest.json").write_bytes(b"{}")
    assert "damaged: manifest.json is not that of a bundle: it names no files" in say("list")[1][1]
    (tmp_path / "registry" / first / "manifest.json").unlink()
    assert re.search(rf"{first} .* damaged: .*manifest\.json", say("list")[1][1])
    say("publish", "--bundle", published[2])
    shutil.rmtree(tmp_path / "registry" / first)
    assert say("list")[1][-1] == f"CURRENT is {first}, which is not in the registry"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"test": {"bascule": {"all": {"NDCG@10": 0.1, "NDCG@20": 0.25}, "novel": {"NDCG@10": 0.2}}}}, "0.2500 (all)"),
        ({"test": {"bascule": {"novel": {"NDCG@10": 0.12345, "NDCG@20": 0.25}}}}, "NDCG@10 0.1235 (novel)"),
        ({"test": {"bascule": {"all": {"NDCG@10": 0.1}, "novel": {"NDCG@10": 0.3}}}}, "NDCG@10 0.3000 (novel)"),
        ({"test": {"bascule": {"all": {"NDCG@10": 0.1}}}}, "not tested"),
        ({"protocol": {"split": "none"}}, "not tested"),
    ],
)
def test_the_headline_is_the_figure_that_runs_are_compared_by(say, tmp_path, metrics, said):
    with Stage.open(tmp_path) as stage:
        bundle = publish(stage.prepare(write_linear(stage, SHOP, 1), metrics)).path
    say("publish", "--bundle", bundle, "--activate")
    assert say("list")[1][1].endswith(said)


def test_data_without_times_has_no_last_day(say, tmp_path):
    with Stage.open(tmp_path) as stage:
        facts = replace(write_linear(stage, SHOP, 1), data_until=0)
        bundle = publish(stage.prepare(facts, {"protocol": {"split": "none"}})).path
    say("publish", "--bundle", bundle, "--activate")
    assert re.search(r"  no times +not tested$", say("list")[1][1])


def test_faults_are_one_line(published, say, tmp_path):
    assert say("rollback") == (2, [], [f"error: no registry at {tmp_path}/registry: publish a bundle into it first"])
    status, _, (line,) = say("publish", "--bundle", tmp_path)
    assert status == 2
    assert line == f"error: no bundle at {tmp_path}: manifest.json is missing"
    status, _, (line,) = say("activate", "--version", "../x")
    assert status == 2
    assert "version is '../x'; expected the 12 digits" in line
    _, _, (line,) = say("activate", "--version", "f" * 500)
    assert f"version is '{'f' * 40}'; expected the 12 digits" in line
    assert Registry(tmp_path / "registry").versions() == []
