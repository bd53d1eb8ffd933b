"""Checkpoints: written whole, verified, and read by their own run alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints import RunCheckpoints, compare, read_checkpoint
from serve.errors import BundleError, SchemaError

ORIGIN = {"model": {"dim": 64, "dropout": 0.2}, "seed": 3, "rows": "abc"}
STATE = {"epoch": 4, "state_dict": {"weight": torch.arange(105.0).reshape(3, 5, 7)}}


def save(path: Path, origin=ORIGIN, epoch: int = 4) -> Path:
    RunCheckpoints(origin).save_checkpoint({**STATE, "epoch": epoch}, path)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> bytes:
    return save(tmp_path_factory.mktemp("written") / "last.ckpt").read_bytes()


def test_what_was_saved_is_loaded(tmp_path):
    path = save(tmp_path / "new" / "folder" / "last.ckpt")
    loaded = RunCheckpoints(ORIGIN).load_checkpoint(path)
    assert loaded["epoch"] == 4
    assert torch.equal(loaded["state_dict"]["weight"], STATE["state_dict"]["weight"])
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({**ORIGIN, "seed": 4}, "seed is 3 there and 4 here"),
        ({**ORIGIN, "model": {"dim": 32, "dropout": 0.2}}, r"model\.dim is 64 there and 32 here"),
        ({**ORIGIN, "rows": "abd"}, 'rows is "abc" there and "abd" here'),
        ({**ORIGIN, "more": None, "rows": "x" * 99}, r'rows is "abc" there and "x{39}\.\.\. here'),
        ({"seed": 3}, r"model\.dim is 64 there and not set here"),
        ({**ORIGIN, "more": 1}, r"more is not set there and 1 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, origin, message):
    path = save(tmp_path / "last.ckpt")
    with pytest.raises(SchemaError, match=rf"last\.ckpt is of another run: {message}; .*--ckpt_path") as error:
        RunCheckpoints(origin).load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_runs_that_are_alike_do_not_differ():
    assert list(compare(ORIGIN, {name: ORIGIN[name] for name in reversed(ORIGIN)})) == []


@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_a_torn_checkpoint_is_named(tmp_path, written, share):
    path = tmp_path / "last.ckpt"
    path.write_bytes(written[: int(share * len(written))])
    with pytest.raises(BundleError, match=r"last\.ckpt is torn or altered: .*leave --ckpt_path out") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_an_altered_byte_is_found(tmp_path_factory, written, place, flip):
    content = bytearray(written)
    content[int(place * len(content))] ^= flip
    path = tmp_path_factory.mktemp("altered") / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"last\.ckpt is torn or altered"):
        read_checkpoint(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call):
    path = save(tmp_path / "last.ckpt", epoch=6)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left on device"):
            save(path, epoch=7)
    assert read_checkpoint(path)["epoch"] == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(save(path, epoch=7))["epoch"] == 7
