"""A two-tower recommender: `fit` it on your tables, ask it, `save` it as one folder, `load` it.

    >>> import bascule
    >>> recommender = bascule.fit(events, epochs=2, quiet=True)
    >>> recommender.recommend([[3, 7]], k=5).to_pandas()["rank"].tolist()
    [1, 2, 3, 4, 5]

What takes long to import is imported when it is needed: a loaded recommender never imports torch.
`LiveItems`, `StateStore`, `complete` and `ask_now` serve live items and events in process.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from service.command_line import import_ours

if TYPE_CHECKING:
    __version__: str
    import pandas as pd

    from bascule.forms import Answers as Answers
    from bascule.recommender import Recommender as Recommender
    from serve.errors import BundleError as BundleError
    from serve.errors import SchemaError as SchemaError
    from serve.files import read_erasure_list as read_erasure_list
    from serve.profiles import Profiles as Profiles
    from serve.requests import Request as Request
    from serve.requests import ask_now as ask_now
    from service.forget import forget_users as forget_users
    from service.known_users import complete as complete
    from service.live_items import LiveItems as LiveItems
    from service.state import StateStore as StateStore
else:

    def __getattr__(name: str) -> Any:
        if name in ("Answers", "Recommender"):
            return getattr(import_module("bascule.recommender"), name)
        if name == "__version__":
            return import_module("bascule.commands").read_version()
        if name in _MODULE_OF_NAME:
            return getattr(import_ours(_MODULE_OF_NAME[name]), name)
        raise AttributeError(f"module 'bascule' has no attribute '{name}'")


_MODULE_OF_NAME = {
    "BundleError": "serve.errors",
    "LiveItems": "service.live_items",
    "Profiles": "serve.profiles",
    "Request": "serve.requests",
    "SchemaError": "serve.errors",
    "StateStore": "service.state",
    "ask_now": "serve.requests",
    "complete": "service.known_users",
    "forget_users": "service.forget",
    "read_erasure_list": "serve.files",
}

# option of `fit` -> key of a configuration; any other option stands at the top by its name
_KEYS = {
    "repeats": "data.repeats",
    "ties": "data.ties",
    "split": "data.split",
    "targets": "data.targets",
    "weights": "data.events",
    "timezone": "data.timezone",
    "history_length": "data.history_length",
    "max_reject_rate": "data.max_reject_rate",
    "epochs": "model.max_epochs",
    "dim": "model.dim",
    "batch_size": "model.batch_size",
    "learning_rate": "model.learning_rate",
    "baselines": "evaluation.baselines",
}


class Options(TypedDict, total=False):
    """Options of `fit`; what is left out is chosen from the data.

    Attributes:
        columns: our name -> yours: `{"user_id": "customer", "item_id": "sku"}`.
        seed: decides everything that is drawn.
        epochs: at most so many; validation stops earlier.
        dim: entries of a vector.
        batch_size: training samples per step.
        learning_rate: step size of the optimizer.
        repeats: whether an item may be recommended that the user already has.
        ties: whether events of a user at one time are in order, or one basket.
        split: "leave_one_out", "none", `{"kind": "time", "at": "2025-03-01"}`, ...
        targets: `{"events": ["purchase"]}` or `{"min_weight": 4}`.
        weights: weights of events as targets: `{"view": 1, "purchase": 5}`.
        timezone: zone of hours and days of the week, such as "Europe/Berlin".
        history_length: latest events of a user that the tower reads.
        max_reject_rate: the share of bad rows that ends the run.
        baselines: models to compare with; an empty list is quicker.
        previous: an earlier bundle, whose codes of values are kept.
        overwrite: replace a run in `out`.
    """

    columns: Mapping[str, str]
    seed: int
    epochs: int
    dim: int
    batch_size: int
    learning_rate: float
    repeats: Literal["exclude", "allow"]
    ties: Literal["ordered", "simultaneous"]
    split: str | Mapping[str, Any]
    targets: Mapping[str, Any]
    weights: Mapping[str, float]
    timezone: str
    history_length: int
    max_reject_rate: float
    baselines: Sequence[str]
    previous: str | Path
    overwrite: bool


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

    Args:
        events: a DataFrame, or the path of a CSV, JSON Lines or Parquet file, with user_id, item_id
            and, where there are any, datetime, position, event and weight.
        users: a table of the same kind with user_id and features.
        items: a table of the same kind with item_id and features.
        features: kinds of columns as in a configuration: `{"item": {"category": "categorical"}}`;
            sides are "user", "item" and "context".
        out: folder of the run. Without it the run is deleted with the recommender; `save` keeps it.
        quiet: print nothing.
        **options: see `Options`.

    Returns:
        The recommender of the exported bundle.

    Raises:
        SchemaError: a table or an option is wrong; the message is one line.

    Example:
        >>> kinds = {"item": {"category": "categorical"}}
        >>> options = {"epochs": 2, "baselines": ["popularity"], "quiet": True}
        >>> recommender = bascule.fit(events, items=items, features=kinds, **options)
        >>> sorted(recommender.metrics["test"])
        ['bascule', 'popularity']
    """
    tables = {"interactions": events, "users": users, "items": items}
    given_tables = {name: table for name, table in tables.items() if table is not None}
    content = _configure(given_tables, features or {}, options)
    frames = None if isinstance(events, (str, Path)) else (events, users, items)
    with ExitStack() as stack:
        if out is None:
            out = stack.enter_context(TemporaryDirectory(prefix="bascule-"))
        _train(content | {"out": str(out)}, frames, quiet)
        recommender = load(out)
        weakref.finalize(recommender, stack.pop_all().close)

    return recommender


def load(directory: str | Path, trusted: str | Path | None = None) -> Recommender:
    """Load a trained recommender.

    Args:
        directory: folder of a run, one that `save` wrote, or a bundle alone.
        trusted: a file of public keys; a bundle that none of them has signed is refused.

    Returns:
        The recommender, with the profiles beside the bundle.

    Raises:
        BundleError: there is no bundle, or it is damaged.

    Example:
        >>> bascule.load("runs/shop")
        <Recommender of 23 items and 5 users, repeats allowed>
    """
    from bascule.recommender import Recommender
    from serve.bundle import BUNDLE, MANIFEST
    from serve.errors import BundleError
    from serve.recommender import Recommender as Served

    keys = None if trusted is None else Path(trusted)
    for path in (Path(directory, BUNDLE), Path(directory)):
        if (path / MANIFEST).exists():
            return Recommender(Served.load(path, trusted=keys), path.absolute())

    raise BundleError(
        f"{directory} holds no bundle; give the folder of a run or of a bundle"
    )


def _train(content: Mapping[str, Any], frames: Any, quiet: bool) -> None:
    """Run with the content of a configuration file."""
    # a mistake in the configuration is found before torch is imported
    words = ["--config", json.dumps(content, default=str)]
    config, text = import_ours("pipeline.config").parse(words)
    from pipeline.run import run
    from pipeline.run_folder import console

    was_quiet = console.quiet
    console.quiet = quiet
    try:
        config = replace(config, trainer={"enable_progress_bar": not quiet})
        run(config, frames, None if frames else text)
    finally:
        console.quiet = was_quiet


def _configure(
    tables: Mapping[str, Any], features: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of a configuration file for these tables and options."""
    from serve.errors import SchemaError, name_nearest

    if len({isinstance(table, (str, Path)) for table in tables.values()}) > 1:
        raise SchemaError("fit: give all tables as paths, or all as DataFrames")
    columns = options.get("columns", {})
    columns_of_table = {
        "interactions": columns.keys(),
        "users": {"user_id"},
        "items": {"item_id"},
    }
    data: dict[str, Any] = {"features": features}
    for name, table in tables.items():
        renamed = columns_of_table[name] & columns.keys()
        data[name] = {"columns": {ours: columns[ours] for ours in renamed}}
        if isinstance(table, (str, Path)):
            data[name]["path"] = str(table)

    content: dict[str, Any] = {"data": data, "model": {}, "evaluation": {}}
    for name, value in options.items():
        if name not in Options.__annotations__:
            nearest = name_nearest(name, Options.__annotations__)
            raise SchemaError(f"fit: unknown option '{name}'; {nearest}")
        if name == "split" and isinstance(value, str):
            value = {"kind": value}
        section, _, key = _KEYS.get(name, name).partition(".")
        if key:
            content[section][key] = value
        elif name != "columns":
            content[name] = value

    return content
