"""The page on operations is followed: its commands run in their order, and it has an answer to every alert."""

import re
import shutil
import socket
import sqlite3
import subprocess
from contextlib import ExitStack, closing

import pytest
import yaml
from serve.files import read_erasure_list
from serve.profiles import Profiles
from tests.http.services import publish_served
from tests.linear_bundle import SHOP, publish_linear
from tests.served import ROOT
from tests.service.pages import make_environment

pytestmark = pytest.mark.service
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TOOLS = ("bash", "curl", "jq", "openssl", "sha256sum", "sqlite3")


def find_ports(number):
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [one.getsockname()[1] for one in sockets]


def test_the_page_on_operations_can_be_followed(tmp_path):
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {missing}")
    publish_served(tmp_path / "runs" / "demo", SHOP)
    publish_linear(tmp_path / "runs" / "next", SHOP, seed=8)
    script = "set -euo pipefail\ntrap 'kill $(cat ops/pid) 2> /dev/null || true' EXIT\n"
    script += "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    for port, free in zip(("8080", "8081"), find_ports(2), strict=True):
        script = script.replace(port, str(free))
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
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "runs" / "demo"
    assert all(read_erasure_list(run).holds(user) for user in ("u1", "u2"))
    assert not {"u1", "u2"} & set(Profiles.load(run / "profiles").user_ids.tolist())
    assert "u1" in Profiles.load(tmp_path / "backup" / "profiles").user_ids.tolist()
    with closing(sqlite3.connect(run / "state" / "state.db")) as state:
        assert state.execute(
            "SELECT count(*) FROM events WHERE user_id IN ('u1', 'u2')"
        ).fetchone() == (0,)


def test_every_alert_has_a_line_that_says_what_to_do():
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert alerts == set(re.findall(r"^\| (Bascule\w+) \|", PAGE, re.MULTILINE))


QUIET = {
    'up{job="bascule", instance="a"}': "1x120",
    'bascule_requests_total{instance="a", route="recommend", status="200"}': "0+6000x120",
    'bascule_requests_total{instance="a", route="recommend", status="500"}': "0x120",
    'bascule_request_seconds_bucket{instance="a", route="recommend", le="0.2"}': "0+6000x120",
    'bascule_request_seconds_bucket{instance="a", route="recommend", le="+Inf"}': "0+6000x120",
    'bascule_shed_total{instance="a"}': "0x120",
    'bascule_degraded{instance="a", fault="disk"}': "0x120",
    'bascule_last_reload_success{instance="a"}': "1x120",
    'bascule_impressions_lost_total{instance="a"}': "0x120",
    'bascule_impressions_waiting{instance="a"}': "100x120",
    'bascule_events_total{instance="a"}': "0+10x120",
    'bascule_recommendations_total{instance="a"}': "0+6000x120",
    'bascule_state_bytes{instance="a"}': "1e9x120",
    'bascule_state_free_bytes{instance="a"}': "1e11x120",
    'bascule_drift_status{instance="a", name="item price"}': "1x120",
    'bascule_figures_timestamp_seconds{instance="a", file="use"}': "0x120",
    'process_resident_memory_bytes{job="bascule", instance="a", pid="7"}': "5e9x120",
}
LOUD = QUIET | {
    'up{job="bascule", instance="a"}': "0x120",
    'bascule_requests_total{instance="a", route="recommend", status="500"}': "0+100x120",
    'bascule_request_seconds_bucket{instance="a", route="recommend", le="0.2"}': "0+5000x120",
    'bascule_request_seconds_bucket{instance="a", route="recommend", le="0.5"}': "0+6000x120",
    'bascule_shed_total{instance="a"}': "0+600x120",
    'bascule_degraded{instance="a", fault="disk"}': "1x120",
    'bascule_last_reload_success{instance="a"}': "0x120",
    'bascule_impressions_lost_total{instance="a"}': "0+1x120",
    'bascule_impressions_waiting{instance="a"}': "15000x120",
    'bascule_events_total{instance="a"}': "5x120",
    'bascule_state_bytes{instance="a"}': "3e10x120",
    'bascule_state_free_bytes{instance="a"}': "1e11-1e9x120",
    'bascule_drift_status{instance="a", name="item price"}': "2x120",
    'bascule_figures_timestamp_seconds{instance="a", file="use"}': "-180000x120",
    'process_resident_memory_bytes{job="bascule", instance="a", pid="8"}': "5e9x120",
}


@pytest.mark.parametrize(("series", "fire"), [(QUIET, False), (LOUD, True)])
def test_all_alerts_fire_in_trouble_and_none_in_quiet(tmp_path, series, fire):
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool")
    rules = ROOT / "deploy" / "alerts.yml"
    names = [
        rule["alert"]
        for group in yaml.safe_load(rules.read_text())["groups"]
        for rule in group["rules"]
    ]
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    wanted = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names if fire]
    given = [{"series": name, "values": values} for name, values in series.items()]
    checked = [{"expr": firing, "eval_time": "2h", "exp_samples": wanted}]
    test = {
        "rule_files": [str(rules)],
        "tests": [{"input_series": given, "promql_expr_test": checked}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
