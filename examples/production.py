"""Production in five steps, which are plain commands: train, judge, publish, serve, retrain."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import bascule

PORT = int(os.environ.get("PORT", "8080"))
TOKEN = secrets.token_hex(16)  # admits a reload from this machine
CONFIG = """
data:
  interactions: {path: events.csv}
model: {max_epochs: 3}            # leave this out for tables of your own
evaluation: {baselines: [popularity]}
"""


def run(*words: str) -> None:
    """Run a command of Bascule; a fault ends it with status 2, and this script too."""
    print("$ bascule", *words)
    subprocess.run([sys.executable, "-m", "bascule", *words], check=True)


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the service."""
    data = None if body is None else json.dumps(body).encode()
    head = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, head)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def train(name: str) -> None:
    """Step 1: train, with the last event of each user held out for the figures alone."""
    run("train", "--config", "shop.yaml", "--out", f"runs/{name}")


def judge(name: str) -> bool:
    """Step 2: a version is good enough if it is better than listing what is popular."""
    figures = bascule.load(f"runs/{name}").metrics["test"]
    better = (
        figures["bascule"]["novel"]["NDCG@10"]
        > figures["popularity"]["novel"]["NDCG@10"]
    )
    print(f"{name}: {'good enough' if better else 'no better than what is popular'}")
    return bool(better)


def publish(name: str) -> None:
    """Step 3: put the bundle into the registry, and let it be served from now on."""
    run(
        "publish",
        "--bundle",
        f"runs/{name}/bundle",
        "--registry",
        "registry",
        "--activate",
    )


def collect() -> pd.DataFrame:
    """Return the events that the service took in; its database is a contract."""
    with sqlite3.connect("state/state.db") as database:
        rows = database.execute(
            "SELECT user_id, item_id, datetime FROM events"
        ).fetchall()
    return pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])


def main() -> None:
    """Go once around."""
    rng = np.random.default_rng(0)
    events = pd.DataFrame(
        {"user_id": np.repeat(np.arange(60), 10), "item_id": rng.integers(12, size=600)}
    )
    events["item_id"] = events["item_id"] * 3 + events["user_id"] % 3
    events["datetime"] = (
        int(time.time()) - 10_000_000 + np.sort(rng.integers(9_000_000, size=600))
    )
    events.to_csv("events.csv", index=False)
    Path("shop.yaml").write_text(CONFIG, encoding="utf-8")
    train("first")
    if not judge("first"):
        sys.exit(1)
    publish("first")
    # Step 4: serve the registry; what users do counts in the next answer, and is kept in `state`
    place = [
        "--registry",
        "registry",
        "--profiles",
        "runs/first/profiles",
        "--state",
        "state",
        "--port",
        str(PORT),
    ]
    variables = os.environ | {"BASCULE_RELOAD_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-m", "bascule", "serve", *place], env=variables
    ) as service:
        try:
            wait()
            shown = ask("/v1/recommend", {"user_id": 7, "k": 3})
            print(shown)
            ask("/v1/shown", {"request_id": shown["request_id"]})
            ask(
                "/v1/events",
                {"user_id": 7, "item_id": shown["answers"][0]["items"][0]["item_id"]},
            )
            # Step 5: retrain on everything up to now; the service takes it over without a pause
            pd.concat([events, collect()]).to_csv("events.csv", index=False)
            train("second")
            if judge("second"):
                publish("second")
                ask("/v1/reload", {})
                print(ask("/v1/status")["version"])
        finally:
            service.send_signal(signal.SIGTERM)
    run("list", "--registry", "registry")


def wait() -> None:
    """Wait until the service answers."""
    for _ in range(300):
        try:
            ask("/ready")
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("the service did not start")


if __name__ == "__main__":
    main()
