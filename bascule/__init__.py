"""A two-tower recommender: `fit` it on your tables, ask it, `save` it as one folder, `load` it where you serve.

    >>> import bascule
    >>> recommender = bascule.fit(events, epochs=2, quiet=True)
    >>> recommender.recommend([[3, 7]], k=5).to_pandas()["rank"].tolist()
    [1, 2, 3, 4, 5]

What takes long to import is imported when it is needed: a recommender that was loaded never imports torch.
"""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

if TYPE_CHECKING:
    import pandas as pd

    from bascule.recommender import Answers as Answers
    from bascule.recommender import Recommender as Recommender
    from serve.errors import BundleError as BundleError
    from serve.errors import SchemaError as SchemaError
    from serve.requests import Request as Request
else:

    def __getattr__(name: str) -> Any:
        if name in ("BundleError", "SchemaError"):
            from serve import errors as module
        elif name == "Request":
            from serve import requests as module
        elif name in __all__:
            from bascule import recommender as module
        else:
            raise AttributeError(f"module 'bascule' has no attribute '{name}'")
        return getattr(module, name)


__all__ = [
    "Answers",
    "BundleError",
    "Recommender",
    "Request",
    "SchemaError",
    "fit",
    "load",
]

_SECTIONS = {
    "data": (
        "repeats",
        "ties",
        "split",
        "targets",
        "events",
        "timezone",
        "history_length",
        "max_reject_rate",
    ),
    "model": ("max_epochs", "dim", "batch_size", "learning_rate"),
    "evaluation": ("baselines",),
}  # of a configuration, and the options that stand there
_KEYS = {
    "epochs": "max_epochs",
    "weights": "events",
}  # option -> its key, where that is another


class Options(TypedDict, total=False):
    """Options of `fit`; what is left out is chosen from the data."""

    columns: Mapping[
        str, str
    ]  # our name -> yours: {"user_id": "customer", "item_id": "sku"}
    seed: int
    epochs: int  # at most; validation stops earlier
    dim: int  # entries of a vector
    batch_size: int
    learning_rate: float
    repeats: Literal[
        "exclude", "allow"
    ]  # may an item be recommended that the user already has?
    ties: Literal[
        "ordered", "simultaneous"
    ]  # events of a user at one time: in their order, or one basket
    split: (
        str | Mapping[str, Any]
    )  # "leave_one_out", "none", {"kind": "time", "at": "2025-03-01"}, ...
    targets: Mapping[str, Any]  # {"events": ["purchase"]} or {"min_weight": 4}
    weights: Mapping[str, float]  # of events as targets: {"view": 1, "purchase": 5}
    timezone: str
    history_length: int
    max_reject_rate: float
    baselines: Sequence[str]  # to compare with; []: none, which is quicker
    previous: str | Path  # an earlier bundle, whose codes of values are kept
    overwrite: bool  # replace a run in `out`


def fit(
    events: pd.DataFrame | str | Path,
    users: pd.DataFrame | str | Path | None = None,
    items: pd.DataFrame | str | Path | None = None,
    features: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    **options: Unpack[Options],
) -> Recommender:
    """Train on tables and return the recommender, measured on what was held out.

    >>> kinds = {"item": {"category": "categorical"}}
    >>> recommender = bascule.fit(events, items=items, features=kinds, epochs=2, baselines=["popularity"], quiet=True)
    >>> sorted(recommender.metrics["test"])
    ['bascule', 'popularity']

    Tables are DataFrames, or paths of CSV, JSON Lines or Parquet files, with user_id, item_id, and of events what there
    is of datetime, position, event and weight. `features` are those of a configuration, {"user": {name: kind}, "item":
    ..., "context": ...}. Without `out` the folder of the run goes when the recommender does, unless it is saved. A
    mistake is a SchemaError of one line.
    """
    given = {"interactions": events, "users": users, "items": items}
    content = _configure(
        {name: table for name, table in given.items() if table is not None},
        features or {},
        options,
    )
    folder = Path(mkdtemp(prefix="bascule-") if out is None else out)
    with ExitStack() as undone:
        if out is None:
            undone.callback(shutil.rmtree, folder)
        frames = None if isinstance(events, (str, Path)) else (events, users, items)
        _train(content | {"out": str(folder)}, frames, quiet)
        recommender = load(folder)
        undone.pop_all()
    if out is None:
        weakref.finalize(recommender, shutil.rmtree, folder, ignore_errors=True)
    return recommender


def load(directory: str | Path, trusted: str | Path | None = None) -> Recommender:
    """Load the folder of a run, one that `save` wrote, or a bundle alone; `trusted` is a file of public keys.

    >>> bascule.load("runs/shop")
    <Recommender of 23 items and 5 users, repeats allowed>
    """
    from bascule.recommender import Recommender
    from serve.bundle import BUNDLE, MANIFEST
    from serve.errors import BundleError
    from serve.recommender import Recommender as Served

    for path in (Path(directory, BUNDLE), Path(directory)):
        if (path / MANIFEST).exists():
            served = Served.load(
                path, trusted=None if trusted is None else Path(trusted)
            )
            return Recommender(served, path.absolute())
    raise BundleError(
        f"{directory} holds no bundle; give the folder of a run or of a bundle"
    )


def _train(content: Mapping[str, Any], frames: Any, quiet: bool) -> None:
    """Run with the content of a configuration file."""
    try:
        from pipeline.config import parse
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; this install only answers: install bascule with dependencies"
        ) from error

    config, text = parse(
        ["--config", json.dumps(content, default=str)]
    )  # before torch is imported
    from pipeline.run import run
    from pipeline.stages import console

    console.quiet, before = quiet, console.quiet
    try:
        run(
            replace(config, trainer={"enable_progress_bar": not quiet}),
            frames,
            None if frames else text,
        )
    finally:
        console.quiet = before


def _configure(
    given: Mapping[str, Any], features: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content that a configuration file of these tables and options has."""
    from serve.errors import SchemaError, name_nearest

    paths = {
        name: str(table)
        for name, table in given.items()
        if isinstance(table, (str, Path))
    }
    if paths and len(paths) < len(given):
        raise SchemaError(
            f"fit: {', '.join(paths)} by path, the others not; give all as paths or all as DataFrames"
        )
    columns = options.get("columns", {})
    of_table = {
        "interactions": columns.keys(),
        "users": {"user_id"},
        "items": {"item_id"},
    }
    data: dict[str, Any] = {"features": features}
    for name in given:
        data[name] = {
            "columns": {ours: columns[ours] for ours in of_table[name] & columns.keys()}
        }
        data[name] |= {"path": paths[name]} if name in paths else {}
    content: dict[str, Any] = {"data": data, "model": {}, "evaluation": {}}
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise SchemaError(
                f"fit: unknown option '{name}'; {name_nearest(name, Options.__annotations__)}"
            )
        key = _KEYS.get(name, name)
        section = next(
            (content[one] for one, keys in _SECTIONS.items() if key in keys), content
        )
        if name != "columns":
            section[key] = (
                {"kind": value} if name == "split" and isinstance(value, str) else value
            )
    return content
