"""Checkpoints of a run: written to survive a kill, and read only by the run that wrote them.

DIR/checkpoints/<stage>/last.ckpt    after each epoch: where an interrupted training goes on
DIR/checkpoints/<stage>/best.ckpt    the weights with the best validation NDCG so far
DIR/checkpoints/published.json       version of the bundle that came of them, just before it is published

A checkpoint is the sha256 of what follows, a line end, and what `torch.save` wrote.
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

from serve.durable import write_file
from serve.errors import BundleError, SchemaError

CHECKPOINTS = "checkpoints"
ORIGIN = "origin"
_PUBLISHED = "published.json"
_BLANK = bytes(65)  # room for the hash and a line end
_WAY_OUT = "leave --ckpt_path out to start anew"


class RunCheckpoints(TorchCheckpointIO):
    """Write checkpoints in one durable step, with what the run is made of, and refuse those of another run."""

    def __init__(self, origin: Mapping[str, Any]) -> None:
        """Remember what the run is made of: JSON values by name, nested or not."""
        self.origin = json.loads(json.dumps(origin))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace the file; a kill leaves the old one or the new one.

        Raises:
            OSError: the disk is full or fails; the old file stays.
        """
        content = io.BytesIO(_BLANK)
        content.seek(len(_BLANK))
        torch.save({**checkpoint, ORIGIN: self.origin}, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with content.getbuffer() as view:
            view[: len(_BLANK)] = _head(view[len(_BLANK) :])
            write_file(Path(path), view)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on the CPU.

        Raises:
            BundleError: it is torn or altered.
            SchemaError: it is of another run; names the difference.
        """
        checkpoint = read_checkpoint(Path(path))
        for difference in compare(checkpoint.get(ORIGIN, {}), self.origin):
            raise SchemaError(f"{path} is of another run: {difference}; give the same as then, or {_WAY_OUT}")
        return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; its hash is compared before it is looked into.

    Raises:
        BundleError: it is torn or altered.
    """
    content = memoryview(path.read_bytes())
    head, body = content[: len(_BLANK)], content[len(_BLANK) :]
    if head != _head(body):
        raise BundleError(f"{path} is torn or altered: its content has another hash than it says; {_WAY_OUT}")
    checkpoint: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return checkpoint


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Say in which values two runs differ."""
    old, new = dict(_flatten(there)), dict(_flatten(here))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} is {_show(old, name)} there and {_show(new, name)} here"


def note_published(folder: Path, run: Mapping[str, Any], version: str) -> None:
    """Write down which bundle the checkpoints of a run led to, before it is published."""
    folder = folder / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / _PUBLISHED, json.dumps({"version": version, "run": run}, indent=1).encode())


def read_published(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Read what `note_published` wrote: version and run; None and nothing where it did not.

    Raises:
        BundleError: the file is damaged.
    """
    path = folder / CHECKPOINTS / _PUBLISHED
    try:
        content = json.loads(path.read_bytes())
        return content["version"], dict(content["run"])
    except FileNotFoundError:
        return None, {}
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {error!r}; delete it and train with --overwrite") from error


def forget_published(folder: Path) -> None:
    """Remove what `note_published` wrote."""
    (folder / CHECKPOINTS / _PUBLISHED).unlink(missing_ok=True)


def _head(body: memoryview) -> bytes:
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
