"""The examples run as they are, in an empty folder."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml
from bascule.commands import main
from serve.bundle import Bundle
from tests.http.services import publish_served
from tests.linear_bundle import SHOP
from tests.served import ROOT, read_reply, serving, write_request
from tests.service.test_access import NAME, proxying

EXAMPLES = ROOT / "examples"
COMPOSE = EXAMPLES / "compose"


def run_example(name, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PORT": port,
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["from_dataframe.py", "from_shop_csvs.py", "from_rectools_implicit.py"]
)
def test_tables_of_every_origin_lead_to_recommendations(tmp_path, name):
    printed = run_example(name, tmp_path)
    assert re.search(r"^request  user_id  rank  name +item_id  score$", printed, re.MULTILINE)


@pytest.mark.slow
def test_production_goes_once_around(tmp_path):
    printed = run_example("production.py", tmp_path)
    versions = [
        Bundle.load(tmp_path / "runs" / name / "bundle").manifest.version
        for name in ("first", "second")
    ]
    assert versions[0] != versions[1]
    assert all(version in printed for version in versions)
    events = (tmp_path / "events.csv").read_text().splitlines()
    assert (
        len(events) == 1 + 600 + 1
    )  # what was bought while it was served is in the second training


@pytest.mark.slow
def test_a_logger_of_lightning_gets_the_losses_of_both_trainings(tmp_path):
    run_example("lightning_logger.py", tmp_path)
    (path,) = tmp_path.glob("lightning/shop/*/metrics.csv")
    with path.open() as file:
        losses = [row["train_loss"] for row in csv.DictReader(file) if row["train_loss"]]
    epochs = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["epochs"]
    assert len(losses) >= 3 + epochs  # the first has three epochs


@pytest.mark.slow
def test_a_second_stage_that_knows_more_ranks_better_for_people_it_never_saw(tmp_path):
    printed = run_example("second_stage.py", tmp_path)
    first, second = map(float, re.findall(r"NDCG@10.* (\d\.\d+)$", printed, re.MULTILINE))
    assert second > first
    assert pq.read_metadata(tmp_path / "candidates.parquet").num_rows > 0


@pytest.mark.slow
def test_a_search_by_vectors_alone_finds_less_than_is_served(tmp_path):
    printed = run_example("vector_database.py", tmp_path)
    assert 0 < float(re.findall(r"([\d.]+)%", printed)[0]) < 100
    served, by_vectors = map(float, re.findall(r"HR@10.* (\d\.\d+)$", printed, re.MULTILINE))
    assert served > by_vectors > 0


@pytest.mark.slow
def test_a_search_ends_with_a_figure_of_the_test(tmp_path):
    printed = run_example("search.py", tmp_path)
    best, tested = map(float, re.findall(r"NDCG@10 (\d\.\d+)$", printed, re.MULTILINE))
    assert 0 < best <= 1
    assert 0 < tested <= 1


def test_every_example_is_run():
    there = {path.name for path in EXAMPLES.glob("*.py")}
    assert there == {
        "from_dataframe.py",
        "from_shop_csvs.py",
        "from_rectools_implicit.py",
        "production.py",
        "kafka_events.py",  # in tests/http/test_streams.py
        "lightning_logger.py",
        "search.py",
        "second_stage.py",
        "vector_database.py",
    }


def test_the_compose_file_fits_the_image(tmp_path):
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    bascule, proxy = services["bascule"], services["proxy"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    (folder,) = re.findall(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE)
    assert [volume.rpartition(":")[2] for volume in bascule["volumes"]] == [folder]
    assert "HEALTHCHECK" in dockerfile  # what the proxy waits for
    assert proxy["depends_on"]["bascule"]["condition"] == "service_healthy"
    assert "ports" not in bascule  # nobody reaches it but by the proxy
    assert (ROOT / "examples" / "compose" / bascule["build"]).resolve() == ROOT
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    assert f"http://bascule:{port}/" in (COMPOSE / "nginx.conf").read_text()
    command = [word.replace(folder, str(tmp_path)) for word in bascule["command"]]
    assert main(["serve", *command]) == 2  # its options are known; there is no bundle


@pytest.mark.service
def test_the_proxy_asks_for_a_password_and_passes_on_nothing_that_operates_the_service(
    tmp_path,
):
    if missing := [tool for tool in ("openssl", "sh") if shutil.which(tool) is None]:
        pytest.skip(f"needs {missing}")
    made = subprocess.run(
        ["sh", COMPOSE / "prepare.sh", "alice"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    (line,) = made.stdout.splitlines()
    basic = base64.b64encode(":".join(line.split()).encode()).decode()
    bundle = publish_served(tmp_path / "run", SHOP)

    def place(folder, port, own_port):
        shutil.copytree(tmp_path / "secrets", folder / "secrets")
        (folder / "secrets" / "key.pem").chmod(0o644)
        secrets = {
            "/etc/nginx/secrets": f"{folder}/secrets",
            "/secrets/cert.pem": "/cert",
            "/secrets/key.pem": "/key",
        }
        return {
            "http://bascule:8080": f"http://127.0.0.1:{port}",
            "listen 443": f"listen {own_port}",
            **secrets,
        }

    def ask(proxy, *call, **headers):
        with proxy.connect() as connection:
            call = write_request(
                *call,
                headers={
                    "content-type": "application/json",
                    "connection": "close",
                    **headers,
                },
            )
            connection.sendall(call.replace(b"host: localhost", f"host: {NAME}".encode()))
            return read_reply(connection)

    known, asked = (
        {"authorization": f"Basic {basic}"},
        ("POST", "/v1/recommend", {"user_id": "u1", "k": 2}),
    )
    with (
        serving("--bundle", bundle) as server,
        proxying(server.port, COMPOSE / "nginx.conf", place) as proxy,
    ):
        assert ask(proxy, *asked).status == 401
        assert ask(proxy, *asked, authorization="Basic YWxpY2U6d3Jvbmc=").status == 401
        assert len(ask(proxy, *asked, **known).json["answers"][0]["items"]) == 2
        for path in ("/", "/page.js", "/v1/items?search=i1&k=2", "/v1/page"):
            assert ask(proxy, "GET", path, **known).status == 200, path
        for method, path in [
            ("POST", "/v1/reload"),
            ("POST", "/v1/users/forget"),
            ("PUT", "/v1/items/i1"),
        ]:
            assert ask(proxy, method, path, {}, **known).status == 404, path
        assert ask(proxy, "GET", "/metrics", **known).status == 404
        assert server.end() == 0
