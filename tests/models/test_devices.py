"""Several processes train together: what they do is what one does, and none is left behind."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datamodules import batch, requests
from models.devices import run_in_processes
from serve.errors import SchemaError
from tests.models.joined import (
    CASES,
    SIZES,
    KillAt,
    compare_gradients,
    fit_tiny,
)
from tests.models.waiting import fail
from tests.tiny_data import BASKETS, DAY, ORDERED, make_data, make_world

ROOT = Path(__file__).parents[2]


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "select" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_have_the_loss_and_the_gradients_of_one():
    """Weights differ between their shares, one of which has an example more."""
    found = run_in_processes(compare_gradients, 2)
    assert len(found) == len(CASES) * len(SIZES)
    for case, (difference, largest) in found.items():
        assert largest > 1e-3, case
        assert difference <= 1e-6 * max(1.0, largest), case


@pytest.mark.parametrize("n_processes", [2, 3, 12])
@pytest.mark.parametrize("config", [ORDERED, BASKETS], ids=["ordered", "baskets"])
def test_shares_partition_the_examples_of_each_batch(config, n_processes, monkeypatch):
    examples = make_data(make_world(config), batch_size=7, horizon=8 * DAY).examples
    whole = examples.plan(0, 0)
    shares = []
    for rank in range(n_processes):
        place = (rank, n_processes)
        monkeypatch.setattr(batch, "find_place", lambda place=place: place)
        monkeypatch.setattr(requests, "find_place", lambda place=place: place)
        shares.append(examples.plan(0, 0))
    for plan, *parts in zip(whole, *shares, strict=True):
        assert len({part.seed for part in parts}) == n_processes
        assert parts[0].seed == plan.seed
        lengths = [len(part.users) for part in parts]
        if len(plan.users) < n_processes:
            assert lengths == [len(plan.users)] * n_processes
        else:
            users = np.concatenate([part.users for part in parts])
            np.testing.assert_array_equal(np.sort(users), np.sort(plan.users))
            assert max(lengths) - min(lengths) <= 1
    assert whole


@pytest.mark.slow
def test_two_processes_train_to_the_figures_of_one(tmp_path):
    fit_tiny(tmp_path / "one", has_dropout=False)
    fit_tiny(tmp_path / "two", has_dropout=False, devices=2)
    alone, joint = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [row["step"] for row in joint] == [row["step"] for row in alone]
    for name in ("train_loss", "val_ndcg", "val_ndcg_recent"):
        left, right = ([float(row[name]) for row in rows] for rows in (alone, joint))
        np.testing.assert_allclose(left, right, rtol=1e-4)


@pytest.mark.slow
def test_a_training_of_which_a_process_was_killed_goes_on_to_the_same_bytes(tmp_path):
    whole = fit_tiny(tmp_path / "whole", devices=2)
    with pytest.raises(SchemaError, match="a training process was ended"):
        fit_tiny(tmp_path / "here", devices=2, callbacks=KillAt(0, epoch=2))
    resumed = fit_tiny(tmp_path / "here", devices=2)
    assert curve(tmp_path / "here") == curve(tmp_path / "whole")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_a_fault_of_one_process_ends_the_others_and_is_raised(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        run_in_processes(partial(fail, tmp_path), 2)
    assert is_ended(tmp_path / "0")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(tmp_path, number):
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from models.devices import run_in_processes\n"
        "from service.command_line import ending_on_signals; from tests.models.waiting import wait\n"
        "with ending_on_signals(): run_in_processes(partial(wait, Path(sys.argv[1])), 2)"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=variables) as waiting:
        until(lambda: all((tmp_path / rank).exists() for rank in "01"))
        waiting.send_signal(number)
    until(lambda: is_ended(tmp_path / "0") and is_ended(tmp_path / "1"))
    assert waiting.returncode != 0


def is_ended(path: Path) -> bool:
    """Return whether the process that a file names is gone."""
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def until(holds) -> None:
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never held")
