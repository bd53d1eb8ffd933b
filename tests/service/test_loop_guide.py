"""The page on the loop is followed once around: its commands run as printed, in their order, on a small run."""

import json
import re
import shutil
import subprocess
import time
from dataclasses import replace

import pandas as pd
import pytest
from datamodules.config import SplitConfig
from evaluation.gate import AUDIT
from service.publish import read_version
from service.registry import Registry
from tests.models.tiny_towers import one_thread
from tests.pipeline import small_runs
from tests.pipeline.shop import open_shop
from tests.service.pages import make_environment, read_page
from tests.service.test_operations import find_ports

pytestmark = pytest.mark.service
PAGE = read_page("docs/loop.md")
TOOLS = ("bash", "curl", "jq", "openssl")


def test_the_loop_can_be_followed_once_around(tmp_path, monkeypatch):
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {missing}")
    monkeypatch.setattr(small_runs, "START", int(time.time()) - 302 * small_runs.DAY)
    small_runs.trace_exports(monkeypatch)
    with one_thread():
        config = open_shop(
            tmp_path / "runs", replace(small_runs.BASKETS, split=SplitConfig("none"))
        )
    shutil.copy(config, tmp_path / "my.yaml")
    first = read_version(tmp_path / "runs" / "my" / "bundle")
    script = "set -euo pipefail\ntrap 'kill $(cat pid) 2> /dev/null || true' EXIT\n"
    script += "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace(
        "8080", str(find_ports(1)[0])
    )
    command = [
        "timeout",
        "120",
        "bash",
        "-xc",
        script,
    ]  # ends what the script began, too
    done = subprocess.run(
        command, cwd=tmp_path, env=make_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    registry = Registry(tmp_path / "runs" / "registry")
    assert [registry.current(), *registry.past()] == [
        read_version(tmp_path / "runs" / "my-2" / "bundle"),
        first,
    ]
    steps = [json.loads(line)["step"] for line in (registry.path / AUDIT).read_text().splitlines()]
    assert steps == ["judged", "published", "activated"]
    slots = pd.read_parquet(registry.path / "feedback" / "shown.parquet")
    assert len(slots) == 5 * 60
    assert slots.groupby("list")["conversions"].sum().eq(1).all()
    assert set(slots["arm"]) == {"spring/as_is", "spring/explored"}
    check_figures(tmp_path / "runs" / "my" / "profiles", registry.path / "feedback")
    assert (registry.path / "drift.json").exists()


def check_figures(profiles, feedback):
    """Compare the figures of all with a count in the plain files."""
    (users,) = profiles.glob("users-*.parquet")
    known = {*pd.read_parquet(users)["user_id"]}
    slots = pd.read_parquet(feedback / "shown.parquet")
    events = pd.read_parquet(feedback / "events.parquet")
    of_lists = slots.groupby("list")[["user_id", "datetime", "conversions"]].first()
    unknown = []
    for user, moment in zip(of_lists["user_id"], of_lists["datetime"], strict=True):
        earlier = events[(events["user_id"] == user) & (events["datetime"] < moment)]
        unknown.append(user not in known and not len(earlier))
    figures = json.loads((feedback / "figures.json").read_text())["all"]
    assert figures["unknown_user_share"]["value"] == sum(unknown) / len(of_lists) == 0
    n_followed = (events["slot"] >= 0).sum()
    assert figures["lists"] == figures["users"] == len(of_lists) == n_followed == 60
    assert figures["events_without_list"] == len(events) - n_followed == 59
    assert figures["conversion"]["value"] == 1
    assert figures["click_through"]["value"] == pytest.approx(n_followed / len(slots))
