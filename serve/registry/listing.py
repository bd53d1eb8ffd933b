"""What a registry holds, as the lines of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve.bundle import CURRENT, MANIFEST, Manifest
from serve.command_line import align
from serve.errors import BundleError
from serve.registry.pointer import read_current
from serve.registry.versions import Registry, published_at

_HEADLINES = (("all", "NDCG@20"), ("novel", "NDCG@10"))
"""What runs are compared by, with repeats and without them."""


def describe_registry(registry: Registry) -> list[str]:
    """Return a line for each version, the latest first, then what is wrong with `CURRENT`."""
    versions = registry.versions()
    if not versions:
        return [f"no versions in {registry.path}: publish a bundle into it first"]
    current, fault = _look_up(registry)
    rows = [["", "version", "published (UTC)", "data until (UTC)", "headline"]]
    for version in versions:
        folder = registry.folder(version)
        rows.append(["*" if version == current else "", version, _day(published_at(folder)), *_describe(folder)])
    if fault is None and current not in versions:
        fault = f"{CURRENT} is {current}, which is not in the registry"
    return [*align(rows), *([fault] if fault else [])]


def _look_up(registry: Registry) -> tuple[str | None, str | None]:
    try:
        return read_current(registry.path), None
    except BundleError as error:
        return None, str(error)


def _describe(folder: Path) -> list[str]:
    """Say until when a version's data goes, and how good it was found."""
    try:
        manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
    except (BundleError, OSError) as error:
        return ["", f"damaged: {error}"]
    until = manifest.facts.data_until  # 0 of data without times
    return [_day(until) if until else "no times", _headline(manifest.metrics)]


def _headline(metrics: Mapping[str, Any]) -> str:
    views = metrics.get("test", {}).get("bascule", {})
    for view, metric in _HEADLINES:
        if metric in views.get(view, {}):
            return f"{metric} {views[view][metric]:.4f} ({view})"
    return "not tested"


def _day(seconds: float) -> str:
    return str(np.datetime_as_string(np.datetime64(int(seconds), "s"), unit="m")).replace("T", " ")
