"""Checkpoints of a training: written in one durable step, read only by the run that wrote them.

DIR/checkpoints/<stage>/last.ckpt    after each epoch: where an interrupted training resumes
DIR/checkpoints/<stage>/best.ckpt    the weights with the best validation NDCG so far

A file holds the sha256 of its content, a line end, and the content: the bytes of `torch.save`.
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

ORIGIN = "origin"
HEAD_BYTES = 65  # the hash and a line end


class RunCheckpoints(TorchCheckpointIO):
    """Write checkpoints with the origin of their run, and refuse those of another run.

    Args:
        origin: JSON values that the run is made of, by name.
    """

    def __init__(self, origin: Mapping[str, Any]) -> None:
        self.origin = json.loads(json.dumps(origin))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Replace the file; a kill or a full disk leaves the old file or the new one."""
        content = io.BytesIO()
        torch.save({**checkpoint, ORIGIN: self.origin}, content)
        body = content.getvalue()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), _make_head(body) + body)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file on the CPU.

        Raises:
            SchemaError: the file is of another run; the message names the first difference.
        """
        checkpoint = read_checkpoint(Path(path))
        for difference in compare(checkpoint.get(ORIGIN, {}), self.origin):
            raise SchemaError(
                f"{path} is of another run: {difference}; give the same as then, "
                "or leave --ckpt_path out to start anew"
            )

        return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU.

    Raises:
        BundleError: the hash of the content differs.
    """
    content = path.read_bytes()
    body = content[HEAD_BYTES:]
    if content[:HEAD_BYTES] != _make_head(body):
        raise BundleError(
            f"{path} is torn or altered: its hash differs; "
            "leave --ckpt_path out to start anew"
        )

    checkpoint: dict[str, Any] = torch.load(
        io.BytesIO(body), map_location="cpu", weights_only=True
    )

    return checkpoint


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values in which two runs differ, as text."""
    old = dict(_flatten(there))
    new = dict(_flatten(here))
    for name in sorted(old.keys() | new.keys()):
        before = old.get(name, "not set")
        now = new.get(name, "not set")
        if before != now:
            yield f"{name} is {before} there and {now} here"


def _make_head(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
