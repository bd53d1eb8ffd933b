"""Checkpoints of a training: written in one durable step, and read only by the run that wrote them.

DIR/checkpoints/<stage>/last.ckpt    after each epoch: where an interrupted training resumes
DIR/checkpoints/<stage>/best.ckpt    the weights with the best validation NDCG so far

A file is the sha256 of what follows, a line end, and the bytes of `torch.save`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from serve.errors import BundleError, SchemaError
from serve.files import write_file

CHECKPOINTS = "checkpoints"
ORIGIN = "origin"
HEAD_BYTES = 65  # the hash and a line end


class RunCheckpoints(TorchCheckpointIO):
    """Write checkpoints with the origin of their run, and refuse those of another run."""

    def __init__(self, origin: Mapping[str, Any]) -> None:
        """Remember what the run is made of: JSON values by name, nested or not."""
        self.origin = json.loads(json.dumps(origin))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Replace the file; a kill or a full disk leaves the old one or the new one."""
        content = io.BytesIO()
        torch.save({**checkpoint, ORIGIN: self.origin}, content)
        body = content.getvalue()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), _head(body) + body)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file on the CPU; a file of another run is refused by the first difference."""
        checkpoint = read_checkpoint(Path(path))
        for difference in compare(checkpoint.get(ORIGIN, {}), self.origin):
            raise SchemaError(
                f"{path} is of another run: {difference}; give the same as then, or leave --ckpt_path out to start anew"
            )
        return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; its hash is compared first."""
    content = path.read_bytes()
    if content[:HEAD_BYTES] != _head(content[HEAD_BYTES:]):
        raise BundleError(
            f"{path} is torn or altered: its hash differs; leave --ckpt_path out to start anew"
        )
    checkpoint: dict[str, Any] = torch.load(
        io.BytesIO(content[HEAD_BYTES:]), map_location="cpu", weights_only=True
    )
    return checkpoint


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values in which two runs differ, as text."""
    old = dict(_flatten(there))
    new = dict(_flatten(here))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} is {_show(old, name)} there and {_show(new, name)} here"


def _head(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _show(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "not set"
    return text if len(text) <= 40 else f"{text[:40]}..."
