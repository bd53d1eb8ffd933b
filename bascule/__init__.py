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
from typing import TYPE_CHECKING, Any, Literal, Never

from serve.errors import BundleError as BundleError
from serve.errors import SchemaError as SchemaError
from service.command_line import import_ours

if TYPE_CHECKING:
    __version__: str

    from bascule.forms import Answers as Answers
    from bascule.recommender import Recommender as Recommender
    from datamodules.sources import TableLike as TableLike
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
    "LiveItems": "service.live_items",
    "Profiles": "serve.profiles",
    "Request": "serve.requests",
    "StateStore": "service.state",
    "ask_now": "serve.requests",
    "complete": "service.known_users",
    "forget_users": "service.forget",
    "read_erasure_list": "serve.files",
}


def fit(
    events: TableLike | Mapping[str, Any] | str | Path,
    users: TableLike | Mapping[str, Any] | str | Path | None = None,
    items: TableLike | Mapping[str, Any] | str | Path | None = None,
    features: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    quick: bool = False,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    epochs: int | None = None,
    dim: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    devices: int | None = None,
    repeats: Literal["exclude", "allow"] | None = None,
    ties: Literal["ordered", "simultaneous"] | None = None,
    split: str | Mapping[str, Any] | None = None,
    targets: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    timezone: str | None = None,
    history_length: int | None = None,
    max_reject_rate: float | None = None,
    exclude_users: Sequence[Any] | None = None,
    unlisted: Literal["exclude", "list"] | None = None,
    baselines: Sequence[str] | None = None,
    previous: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **unknown: Never,
) -> Recommender:
    """Train on tables and return the recommender, measured on what was held out.

    A table is the path of a CSV, JSON Lines or Parquet file, or a table in memory: of pandas,
    polars, pyarrow or DuckDB, a list of dicts, a dict of columns; events also a sparse matrix of
    users and items whose values are weights, or pairs in an array or a list. With options, as a
    configuration has them, it is a dict: `{"path": "orders.csv", "encoding": "latin-1"}`,
    `{"table": frame, "time_formats": ["%d.%m.%Y"]}` or `{"query": "SELECT ..."}`. An option of
    `fit` that is None is chosen from the data.

    Args:
        events: user_id, item_id and, where there are any, datetime, position, event and weight.
        users: user_id and features.
        items: item_id and features.
        features: kinds of columns as in a configuration: `{"item": {"category": "categorical"}}`;
            sides are "user", "item" and "context".
        out: folder of the run. Without it the run is deleted with the recommender; `save` keeps it.
        quiet: print nothing.
        quick: hardly train the towers: first lists soon, by item-item weights and content.
        columns: our name -> yours: `{"user_id": "customer", "item_id": "sku"}`.
        seed: decides everything that is drawn.
        epochs: at most so many; validation stops earlier.
        dim: entries of a vector.
        batch_size: training samples per step.
        learning_rate: step size of the optimizer.
        devices: graphics cards to train on, or processes without one. Default: 1.
        repeats: whether an item may be recommended that the user already has; "exclude" by default.
        ties: whether events of a user at one time are in order, or one basket.
        split: "leave_one_out", "none", `{"kind": "time", "at": "2025-03-01"}`, ...
        targets: `{"events": ["purchase"]}` or `{"min_weight": 4}`.
        weights: weights of events as targets: `{"view": 1, "purchase": 5}`.
        timezone: zone of hours and days of the week, such as "Europe/Berlin".
        history_length: latest events of a user that the tower reads.
        max_reject_rate: the share of bad rows that ends the run.
        exclude_users: ids of bots or test accounts, whose events are left out.
        unlisted: whether items without a row in `items` are recommended; "exclude" by default.
        baselines: models to compare with; an empty list is quicker.
        previous: an earlier bundle, whose codes of values are kept.
        overwrite: replace a run in `out`.
        resume: go on with the run in `out` where it was interrupted.
        **unknown: options of another name are refused, with the nearest of these.

    Returns:
        The recommender of the exported bundle.

    Raises:
        SchemaError: a table or an option is wrong; the message is one line.

    Example:
        >>> kinds = {"item": {"category": "categorical"}}
        >>> recommender = bascule.fit(events, items=items, features=kinds, epochs=2, quiet=True)
        >>> recommender.metrics["test"]["bascule"]["novel"]["users"]
        30
    """
    from bascule.options import declare_tables, refuse_unknown

    refuse_unknown("fit", unknown, fit.__annotations__)
    if resume and out is None:
        raise SchemaError("fit: resume is True; give the folder of the run as out")
    tables = {"interactions": events, "users": users, "items": items}
    in_memory, declared = declare_tables(tables, columns or {})
    data = {
        "features": features,
        "split": {"kind": split} if isinstance(split, str) else split,
        "targets": targets,
        "events": weights,
        "repeats": repeats,
        "ties": ties,
        "timezone": timezone,
        "history_length": history_length,
        "max_reject_rate": max_reject_rate,
        "exclude_users": exclude_users,
        "unlisted": unlisted,
    }
    model = {
        "max_epochs": epochs,
        "dim": dim,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    content = {
        "data": declared | _leave_out_none(data),
        "model": _leave_out_none(model),
        "trainer": _leave_out_none({"devices": devices}),
        "evaluation": {"baselines": baselines},
        "quick": quick,
        "seed": seed,
        "previous": previous,
        "overwrite": overwrite,
    }
    if resume:
        content["ckpt_path"] = "last"
    frames = tuple(map(in_memory.get, tables)) if in_memory else None
    with ExitStack() as stack:
        folder = out
        if folder is None:
            folder = stack.enter_context(TemporaryDirectory(prefix="bascule-"))
        _train(content | {"out": str(folder)}, frames, quiet)
        recommender = replace(load(folder), is_temporary=out is None)
        weakref.finalize(recommender, stack.pop_all().close)

    if not quiet:
        _print_calls(recommender, out)
    return recommender


def load(directory: str | Path, trusted: str | Path | None = None) -> Recommender:
    """Load a trained recommender.

    Args:
        directory: folder of a run, one that `save` wrote, a bundle alone, or the URL of a bundle,
            such as `s3://bucket/bundle`.
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

    if "://" in str(directory):
        directory = import_ours("service.remote.storage").fetch_bundle(directory)
    keys = None if trusted is None else Path(trusted)
    for path in (Path(directory, BUNDLE), Path(directory)):
        if (path / MANIFEST).exists():
            return Recommender.load(path.absolute(), keys)

    raise BundleError(
        f"{directory} holds no bundle; give the folder of a run or of a bundle"
    )


def _train(content: Mapping[str, Any], frames: Any, quiet: bool) -> None:
    """Run with the content of a configuration file."""
    from bascule.options import in_python

    try:
        # a mistake in the configuration is found before torch is imported
        words = ["--config", json.dumps(content, default=str)]
        config, text = import_ours("pipeline.config").parse(words)
        _run(config, text, frames, quiet)
    except SchemaError as error:
        error.args = (in_python(str(error), fit.__annotations__),)
        raise


def _run(config: Any, text: str, frames: Any, quiet: bool) -> None:
    from bascule.options import make_folder
    from pipeline.run import run
    from pipeline.run_folder import console

    was_quiet = console.quiet
    console.quiet = quiet
    try:
        trainer = {**config.trainer, "enable_progress_bar": not quiet}
        config = replace(config, trainer=trainer)
        make_folder("fit", config.out)
        run(config, frames, None if frames else text)
    finally:
        console.quiet = was_quiet


def _print_calls(recommender: Recommender, out: str | Path | None) -> None:
    """Print calls to try; a temporary folder is no place to load from."""
    item_ids = recommender.served.catalogue.item_ids.ids[:1].tolist()
    last = "recommender.save('runs/shop')" if out is None else f"bascule.load('{out}')"
    print("\nTry next:")
    print(f"  recommender.recommend([{item_ids}], k=5)")
    print(f"  recommender.similar_items({item_ids}, k=5)")
    print(f"  {last}")


def _leave_out_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
