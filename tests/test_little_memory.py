from __future__ import annotations

import numpy as np
import pytest
import torch

import train


def exhaust_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")


@pytest.mark.parametrize(
    "fail",
    [lambda *_: torch.empty(1 << 58), lambda *_: np.empty(1 << 58), exhaust_gpu],
    ids=["torch", "numpy", "GPU"],
)
def test_a_run_that_the_memory_does_not_suffice_for_ends_with_one_line(tmp_path, monkeypatch, capsys, fail):
    monkeypatch.setattr(train, "parse", lambda argv: (train.Config(out=tmp_path), "seed: 0"))
    monkeypatch.setattr(train, "prepare", fail)
    assert train.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: the memory does not suffice: nothing is published; lower --model.batch_size")


def test_another_fault_of_torch_is_shown_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "parse", lambda argv: (train.Config(out=tmp_path), "seed: 0"))
    monkeypatch.setattr(train, "prepare", lambda *_: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train.main([])
