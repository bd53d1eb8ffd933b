"""Checkpoints: written whole, verified, and read by their own run alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.checkpoints import RunCheckpoints, read_checkpoint
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
        ({"seed": 3}, r"model\.dim is 64 there and not set here"),
        ({**ORIGIN, "more": 1}, r"more is not set there and 1 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, origin, message):
    path = save(tmp_path / "last.ckpt")
    with pytest.raises(
        SchemaError, match=rf"last\.ckpt is of another run: {message}; .*--ckpt_path"
    ) as error:
        RunCheckpoints(origin).load_checkpoint(path)
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
