"""What an operator sees: logs that know their request, an audit log, readiness that names faults, metrics, alerts."""

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from shutil import which

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from serve.files import hash_id, read_opt_outs
from service.http import metrics as metrics_module
from tests.http.services import NOW, TOKEN, asking, listed, publish_served
from tests.linear_bundle import SHOP, UNTIL, item_ids
from tests.served import JSON, ROOT, ask, serving

AUTHORISED = JSON | {"authorization": f"Bearer {TOKEN}"}
PERSON = "Qx9person9xQ"
EVENT = {"user_id": PERSON, "item_id": item_ids(SHOP)[0]}
FAILING = """
import service.service

def similar(self, item_id, *_):
    raise KeyError(item_id)

service.service.Service.similar = similar
"""


@pytest.fixture
def bundle(tmp_path):
    return publish_served(tmp_path / "run", SHOP)


@pytest.fixture(autouse=True)
def metrics_are_always_new(monkeypatch):
    monkeypatch.setattr(metrics_module, "_KEPT_SECONDS", 0)


KEPT = metrics_module._KEPT_SECONDS + 0.1  # each worker keeps its text for a while


def read_metrics(ask_it):
    families = text_string_to_metric_families(ask_it("GET", "/metrics").content.decode())
    return {one.name: one for one in families}


def value_of(metrics, name, **labels):
    return sum(
        one.value
        for one in metrics[name].samples
        if one.name in (name, f"{name}_total") and labels.items() <= one.labels.items()
    )


def run_failing(bundle, tmp_path, *arguments):
    """Serve with a fault in `similar`, meet it, forget somebody, be refused a reload; return the answers and lines."""
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "BASCULE_RELOAD_TOKEN": TOKEN}
    with serving("--bundle", bundle, *arguments, variables=variables) as server:
        replies = {
            "similar": server.ask("POST", "/v1/similar", {"item_id": PERSON}),
            "forget": server.ask("POST", "/v1/users/forget", {"user_id": PERSON}),
            "profiling": server.ask(
                "POST", "/v1/users/profiling", {"user_id": PERSON, "profile": False}
            ),
            "PUT items": server.ask("PUT", f"/v1/items/{PERSON}", {"columns": {"brand": "x"}}),
            "DELETE items": server.ask("DELETE", f"/v1/items/{PERSON}"),
            "reload": server.ask("POST", "/v1/reload"),
        }
        assert server.ask("GET", "/v1/items?search=a").status == 200  # changes nothing
        assert server.end() == 0
        lines = server.process.stderr.read()
    assert [one.status for one in replies.values()] == [500, 200, 200, 200, 200, 401]
    assert PERSON not in lines
    return replies, lines.splitlines()


def test_a_failure_is_in_the_log_with_its_request_and_place_and_changes_are_audited(
    bundle, tmp_path
):
    replies, lines = run_failing(bundle, tmp_path)
    failed = next(
        place for place, line in enumerate(lines) if replies["similar"].json["request_id"] in line
    )
    assert any("in similar" in line for line in lines[failed:])
    audited = [line for line in lines if " serve.audit: " in line]
    for (route, reply), line in zip([*replies.items()][1:], audited, strict=True):
        assert route in line
        assert f"request_id={reply.json['request_id']}" in line
    assert replies["forget"].json["receipts"][0]["forgotten"][0] in audited[0]
    assert replies["profiling"].json["request_id"] in audited[1]
    keys = [hash_id(salt, PERSON).hex() for salt, _ in read_opt_outs(bundle.parent).sets]
    assert any(key in audited[1] for key in keys)
    assert not any("serve.access" in line for line in lines)


def test_json_logs_are_an_object_a_line_with_a_line_for_each_answer(bundle, tmp_path):
    replies, lines = run_failing(bundle, tmp_path, "--log-format", "json")
    logged = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= one.keys() for one in logged)
    by_logger = {
        name: [one for one in logged if one["logger"] == name]
        for name in ("serve.access", "serve.audit")
    }
    statuses = {(one["request_id"], one["status"]) for one in by_logger["serve.access"]}
    expected = {(reply.json["request_id"], reply.status) for reply in replies.values()}
    (search,) = statuses - expected
    assert (statuses > expected, search[1]) == (True, 200)
    assert {one["route"] for one in by_logger["serve.access"]} == {
        "similar",
        "forget",
        "items",
        "profiling",
        "reload",
    }
    (failed,) = [one for one in logged if "error" in one]
    assert (failed["request_id"], "in similar" in failed["error"]) == (
        replies["similar"].json["request_id"],
        True,
    )
    forgotten, *_, refused = by_logger["serve.audit"]
    assert forgotten["users"] == replies["forget"].json["receipts"][0]["forgotten"]
    assert (refused["status"], refused["message"].split()[-1]) == (401, "refused")


@contextmanager
def full_disk(server):
    """Let no file of the service grow: each write to the disk fails."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    yield
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_full_disk_degrades_a_service_that_answers_on_until_there_is_room(bundle):
    def ready():
        return server.ask("GET", "/ready")

    with serving("--bundle", bundle) as server:
        assert ready().json == {"status": "ready"}
        with full_disk(server):
            assert server.ask("POST", "/v1/events", EVENT).status == 503
            wait_for(
                lambda: server.ask("POST", "/v1/recommend", {"user_id": PERSON}).status == 200
            )  # shared processors
            assert (
                ready().status,
                ready().json["status"],
                [*ready().json["faults"]],
            ) == (200, "degraded", ["disk"])
            wait_for(lambda: value_of(read_metrics(server.ask), "bascule_impressions_lost") >= 1)
            assert value_of(read_metrics(server.ask), "bascule_degraded", fault="disk") == 1
        assert server.ask("POST", "/v1/events", EVENT).json["kept"] == 1
        assert ready().json == {"status": "ready"}
        time.sleep(KEPT)
        assert value_of(read_metrics(server.ask), "bascule_degraded") == 0
        assert server.end() == 0


def test_a_small_disk_that_is_full_is_named_and_loses_nothing_that_was_acknowledged(
    bundle, tmp_path
):
    state = tmp_path / "disk" / "state"
    state.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(state)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        kept, status = 0, 200
        with asking(bundle, state) as app:
            while status == 200:
                events = [{**EVENT, "datetime": UNTIL + n} for n in range(kept, kept + 200)]
                status = ask(app, "POST", "/v1/events", {"events": events}).status
                kept += 200 * (status == 200)
            assert (kept > 0, status) == (True, 503)
            with app.state.shared.service._state._writing():
                pass  # what writes nothing does not show that there is room
            assert [*ask(app, "GET", "/ready").json["faults"]] == ["disk"]
            assert listed(app)
            metrics = read_metrics(lambda *given: ask(app, *given))
            assert value_of(metrics, "bascule_state_free_bytes") < 1 << 20
        with closing(sqlite3.connect(state / "state.db")) as database:
            assert database.execute("SELECT count(*) FROM events").fetchone() == (kept,)
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_a_refused_version_degrades_until_another_one_is_loaded(bundle):
    with asking(bundle, token=TOKEN) as app:
        tower = (bundle / "user_tower.onnx").read_bytes()
        for content, status, ready in (
            (b"no tower", 409, "degraded"),
            (tower, 200, "ready"),
        ):
            (bundle / "user_tower.onnx").write_bytes(content)
            assert ask(app, "POST", "/v1/reload", headers=AUTHORISED).status == status
            reply = ask(app, "GET", "/ready")
            assert (reply.status, reply.json["status"]) == (200, ready)
            metrics = read_metrics(lambda *given: ask(app, *given))
            assert value_of(metrics, "bascule_last_reload_success") == (ready == "ready")
            assert (
                0 <= time.time() - value_of(metrics, "bascule_last_reload_timestamp_seconds") < 60
            )


def test_a_list_of_forgotten_users_that_cannot_be_read_takes_the_service_out_of_rotation(
    bundle,
):
    with asking(bundle) as app:
        forgotten = bundle.parent / "forgotten.json"
        forgotten.write_text("{", encoding="utf-8")
        reply = ask(app, "GET", "/ready")
        assert (reply.status, [*reply.json["faults"]]) == (503, ["erasure"])
        assert str(bundle.parent) not in reply.content.decode()
        forgotten.unlink()
        assert ask(app, "GET", "/ready").status == 200


def measure_files(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_metrics_have_the_process_sizes_items_and_long_times(bundle):
    with asking(bundle) as app:
        ask(app, "PUT", "/v1/items/i107", {"columns": {"in_stock": False}})
        listed(app)
        sizes = [measure_files(bundle.parent / "state")]
        metrics = read_metrics(lambda *given: ask(app, *given))
        sizes.append(
            measure_files(bundle.parent / "state")
        )  # SQLite may have cut its log meanwhile
    assert value_of(metrics, "process_resident_memory_bytes") > 1e7
    assert value_of(metrics, "process_start_time_seconds") <= time.time()
    assert 0 < value_of(metrics, "bascule_state_bytes") <= max(sizes)
    assert (
        value_of(metrics, "bascule_items"),
        value_of(metrics, "bascule_live_items"),
    ) == (23, 1)
    assert (
        metrics["bascule_impressions_lost"].type,
        metrics["bascule_impressions_waiting"].type,
    ) == (
        "counter",
        "gauge",
    )
    bounds = {
        float(one.labels["le"])
        for one in metrics["bascule_request_seconds"].samples
        if "le" in one.labels
    }
    assert 60 in bounds


# ---- figures that others measured

RATES = {
    "users": 50,
    "conversion": {"value": 0.25, "low": 0.2, "high": 0.3},
    "click_through": None,
}
USE = {
    "all": RATES | {"lists": 90, "coverage": 0.5},
    "groups": {
        "arm": {
            name: RATES | {"lists": 40 + place, "users": place} for place, name in enumerate("ab")
        },
        "version": {f"v{number}": RATES | {"lists": number} for number in range(30)},
        "position": {"1": RATES | {"lists": 90}},
    },
    "arms": {"control": "a"},
}
DRIFT = {
    "rows": [
        {
            "name": "item price",
            "status": "red",
            "index": 0.3,
            "users": 90,
            "moved": "cheap: 0.1 to 0.4",
        },
        {
            "name": "latency",
            "status": "watch",
            "index": 1.6,
            "users": 0,
            "moved": "1 to 1.6 ms",
        },
        {
            "name": "event",
            "status": "ok",
            "index": 0,
            "users": 90,
            "moved": "buy: 0.1 to 0.1",
        },
        {"name": "new user", "status": "few", "index": None, "users": 3, "moved": ""},
    ]
}


def write_figures(folder, use=USE, drift=DRIFT, at=1_700_000_000.5):
    """Write what other commands measured, as texts or values, at some time."""
    (folder / "feedback").mkdir(exist_ok=True)
    for path, content in (
        (folder / "feedback" / "figures.json", use),
        (folder / "drift.json", drift),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        os.utime(path, (at, at))


def read_labels(metrics, name):
    return {tuple(one.labels.values()): one.value for one in metrics[name].samples}


def test_figures_of_use_and_drift_are_gauges_and_in_the_status(bundle):
    write_figures(bundle.parent)
    with asking(bundle) as app:
        metrics, status = (
            read_metrics(lambda *given: ask(app, *given)),
            ask(app, "GET", "/v1/status").json,
        )
    use = read_labels(metrics, "bascule_use")
    assert {name: use[name] for name in use if name[1] in ("all", "arm")} == {
        ("users", "all", ""): 50,
        ("conversion", "all", ""): 0.25,
        ("lists", "all", ""): 90,
        ("coverage", "all", ""): 0.5,
        **{("conversion", "arm", name): 0.25 for name in "ab"},
        **{("users", "arm", name): place for place, name in enumerate("ab")},
        **{("lists", "arm", name): 40 + place for place, name in enumerate("ab")},
    }
    assert {value for _, group, value in use if group == "version"} == {
        f"v{number}" for number in range(10, 30)
    }
    assert {group for _, group, _ in use} == {"all", "arm", "version"}
    assert read_labels(metrics, "bascule_drift_index") == {
        ("item price",): 0.3,
        ("latency",): 1.6,
        ("event",): 0,
    }
    assert read_labels(metrics, "bascule_drift_status") == {
        ("item price",): 2,
        ("latency",): 1,
        ("event",): 0,
    }
    times = read_labels(metrics, "bascule_figures_timestamp_seconds")
    assert times == {("use",): 1_700_000_000.5, ("drift",): 1_700_000_000.5}
    assert status["measured"] == {
        "use": {
            "time": times["use",],
            "figures": {"users": 50, "conversion": 0.25, "lists": 90, "coverage": 0.5},
        },
        "drift": {
            "time": times["drift",],
            "moved": {"item price": "red", "latency": "watch"},
        },
    }


def test_figures_follow_their_files(bundle):
    with asking(bundle) as app:

        def count():
            return len(
                read_labels(
                    read_metrics(lambda *given: ask(app, *given)),
                    "bascule_drift_status",
                )
            )

        assert (count(), ask(app, "GET", "/v1/status").json["measured"]) == (
            0,
            {"use": None, "drift": None},
        )
        write_figures(bundle.parent)
        assert count() == 3
        write_figures(bundle.parent, drift={"rows": DRIFT["rows"][:1]})
        assert count() == 1
        (bundle.parent / "drift.json").unlink()
        assert count() == 0


def change(row):
    return {"rows": [DRIFT["rows"][0] | row]}


@pytest.mark.parametrize(
    ("use", "drift"),
    [
        ("", "{"),
        ("[]", "null"),
        ({"all": {"lists": "many"}, "groups": {}}, change({"index": "0.3"})),
        ({"all": {"lists": [1]}, "groups": []}, change({"status": "purple"})),
        ({"all": {"a": {"low": 1}}, "groups": {}}, {"rows": [1]}),
        ({"all": {}, "groups": {"arm": {"a": {"lists": None}}}}, {"rows": 3}),
    ],
)
def test_a_file_that_is_damaged_or_of_another_form_is_left_out(bundle, use, drift):
    write_figures(bundle.parent, use, drift)
    with asking(bundle) as app:
        metrics = read_metrics(lambda *given: ask(app, *given))
        assert ask(app, "GET", "/v1/status").json["measured"] == {
            "use": None,
            "drift": None,
        }
    names = ("use", "drift_index", "drift_status", "figures_timestamp_seconds")
    assert [sample for name in names for sample in metrics[f"bascule_{name}"].samples] == []
    assert value_of(metrics, "bascule_items") == 23


def test_any_worker_shows_the_counts_of_all_that_live_or_lived(bundle):
    def list_workers():
        samples = read_metrics(server.ask)["process_start_time_seconds"].samples
        return {int(one.labels["pid"]) for one in samples}

    def count():
        return value_of(read_metrics(server.ask), "bascule_requests", route="recommend")

    write_figures(bundle.parent)
    with serving(
        "--bundle", bundle, "--workers", "2", variables={"BASCULE_RELOAD_TOKEN": TOKEN}
    ) as server:
        wait_for(lambda: len(list_workers()) == 2)
        time.sleep(KEPT)
        assert {value_of(read_metrics(server.ask), "bascule_drift_status") for _ in range(10)} == {
            3
        }
        for _ in range(20):
            server.ask("POST", "/v1/recommend", {})
        wait_for(lambda: count() == 20)  # an answer is counted after it was sent
        time.sleep(KEPT)
        assert {count() for _ in range(10)} == {20}
        (bundle / "user_tower.onnx").rename(bundle / "aside")
        assert server.ask("POST", "/v1/reload", headers=AUTHORISED).status == 409  # of one of them
        wait_for(
            lambda: (
                {value_of(read_metrics(server.ask), "bascule_last_reload_success") for _ in "0123"}
                == {0}
            )
        )
        (bundle / "aside").rename(bundle / "user_tower.onnx")
        killed = list_workers().pop()
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(list_workers() - {killed}) == 2)
        time.sleep(KEPT)
        assert {count() for _ in range(10)} == {20}
        assert server.end() == 0


def read_expressions():
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text(encoding="utf-8"))
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def test_alerts_and_the_dashboard_name_metrics_that_there_are(bundle):
    write_figures(bundle.parent)
    with asking(bundle, token=TOKEN) as app:
        listed(app, **NOW)
        ask(app, "POST", "/v1/reload", headers=AUTHORISED)
        metrics = read_metrics(lambda *given: ask(app, *given))
    there = {sample.name for family in metrics.values() for sample in family.samples}
    named = {
        name for one in read_expressions() for name in re.findall(r"\b(?:bascule|process)_\w+", one)
    }
    assert len(named) > 20
    assert named <= there
    if which("promtool") is not None:
        subprocess.run(
            ["promtool", "check", "rules", str(ROOT / "deploy" / "alerts.yml")],
            check=True,
        )
