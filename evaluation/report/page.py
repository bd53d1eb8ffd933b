"""`report.html`: one page on a run that needs nothing beside it, for people who did not train the model."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.evaluate import DEPTH, MODEL
from evaluation.intervals import FEWEST_TO_TELL
from evaluation.report import pictures, plain_words, wording
from evaluation.report.asked import PLACES, Asked, ask_known_users, ask_test_users, rank
from evaluation.report.data_facts import describe_data, list_leaks, say_period
from evaluation.report.examples import Example, Names, describe_examples, draw_examples
from evaluation.report.exposure import Exposure
from evaluation.report.figures import Content, find_skipped, read_all_metrics, read_contextual, read_views
from evaluation.report.groups import FEWEST_USERS, find_gaps, read_slices
from evaluation.report.item_names import name_items
from evaluation.report.rendering import render
from evaluation.report.training_log import read_logs
from evaluation.report.wording import BEYOND, EXPLAINED_MODELS, METRICS, PRODUCT, VIEWS, name_model
from evaluation.targets import Ints
from serve.durable import write_file
from serve.layout import CONFIG, REPORT
from serve.recommender import Recommender
from serve.schema import Schema

PROTOCOL = {
    "n_requests": "Number of requests",
    "n_users": "Number of users",
    "n_items": "Size of the catalogue",
    "k": "Length of a list",
    "repeats": "Items the user had",
    "with_context": "With the context of the request",
}


@dataclass(frozen=True)
class Served:
    """What the recommender itself adds to the figures."""

    examples: list[Example]
    exposure: Exposure | None
    """None where there is no user to ask for."""
    n_asked: int
    is_test: bool
    """Whether those asked for are the users of the test."""


def write_report(
    folder: Path, run: Path, content: Content, recommender: Recommender, holdout: pd.DataFrame | None
) -> None:
    """Write `report.html`; until it is complete, an older one stays.

    Args:
        folder: where the page goes: that of the run, or one whose files will come there.
        run: folder of the run, with its `logs`.
        content: what `metrics.json` holds.
        recommender: the bundle, staged or published, with the profiles of the run.
        holdout: the interactions that were to be predicted, to mark what was right; None or empty where there are
            none at hand.

    Raises:
        OSError: the file cannot be written.
    """
    has_config = any((place / CONFIG).is_file() for place in (folder, run))
    command = f"python train.py --config {shlex.quote(str(run / CONFIG))} --out runs/again" if has_config else None
    write_file(folder / REPORT, render_report(run, content, recommender, holdout, command).encode())


def render_report(
    run: Path, content: Content, recommender: Recommender, holdout: pd.DataFrame | None, command: str | None
) -> str:
    """Return the page; `command` repeats the run, the other arguments are those of `write_report`."""
    bundle = recommender.bundle
    seed = int(bundle.manifest.facts.config.get("seed", 0))
    event_count = _count_events(recommender)
    served = _ask(recommender, content, holdout, event_count, seed)
    return render(
        "report.html",
        product=PRODUCT,
        words=wording,
        content=content,
        manifest=bundle.manifest,
        schema=bundle.schema,
        period=say_period(content["data"], bundle.schema),
        served=served,
        places=PLACES,
        map=pictures.picture_map(recommender, event_count),
        command=command,
        python=platform.python_version(),
        **_describe_figures(run, content, bundle.schema),
        tail=None if served.exposure is None else pictures.picture_tail(served.exposure),
    )


def _describe_figures(run: Path, content: Content, schema: Schema) -> dict[str, Any]:
    """Lay out what `metrics.json` and the logs say."""
    views, slices = read_views(content), read_slices(content)
    beyond = content.get("beyond_accuracy", {})
    coverage = beyond.get(MODEL, {}).get(f"coverage@{DEPTH}")
    return {
        "views": [(view, pictures.picture_view(view), read_all_metrics(content, view.name)) for view in views],
        "contextual": read_contextual(content),
        "skipped": find_skipped(content),
        "metric_meanings": METRICS,
        "model_meanings": _explain_models(content),
        "tiles": plain_words.make_tiles(views, coverage),
        "sentences": _summarise(content, views, schema),
        "curves": pictures.picture_training(read_logs(run), content.get("training", {}).get("epochs")),
        "slices": [(one, pictures.picture_slice(one, views[0].metric)) for one in slices],
        "headline": views[0].metric if views else "",
        "view_titles": VIEWS,
        "gaps": [plain_words.say_gap(gap, views[0].metric) for gap in find_gaps(slices)],
        "fewest_users": FEWEST_USERS,
        "fewest_to_tell": FEWEST_TO_TELL,
        "beyond": [(name_model(name), row) for name, row in beyond.items()],
        "beyond_meanings": {f"{name}@{DEPTH}": meaning for name, meaning in BEYOND.items()},
        "protocol": _describe_protocol(content["protocol"]),
        "data_facts": describe_data(content["data"], schema),
        "leaks": list_leaks(content["data"]),
    }


def _describe_protocol(protocol: Content) -> list[tuple[str, str]]:
    """Return what `metrics.json` says of the method, as labels and texts; the views are said where they are shown."""
    single = {name: value for name, value in protocol.items() if not isinstance(value, dict)}
    return [(PROTOCOL.get(name, name.replace("_", " ").capitalize()), f"{value}") for name, value in single.items()]


def _summarise(content: Content, views: list[Any], schema: Schema) -> list[str]:
    data = content["data"]
    sentences = [f"{plain_words.say_training(data, schema)} {plain_words.say_test(data, views, schema)}"]
    if views and views[0].rows:
        sentences[0] += f" {plain_words.say_hits(views[0])}"
    return sentences + [f"{view.title}: {plain_words.say_comparison(view)}" for view in views if view.name != "repeat"]


def _explain_models(content: Content) -> dict[str, str]:
    names = [name for name in content.get("test", {}) if name in EXPLAINED_MODELS]
    return {name_model(name): EXPLAINED_MODELS[name] for name in names}


def _ask(
    recommender: Recommender, content: Content, holdout: pd.DataFrame | None, event_count: Ints, seed: int
) -> Served:
    """Ask for the users of the test, else for known ones."""
    is_test = holdout is not None and len(holdout) > 0
    asked = _choose_users(recommender, content, holdout if is_test else None, seed)
    is_novel = recommender.bundle.schema.repeats == "exclude"
    names = Names(_item_ids(recommender), name_items(recommender.bundle.items, recommender.bundle.schema))
    examples = describe_examples(recommender, draw_examples(asked, seed), names)
    exposure = Exposure.measure(event_count, rank(recommender, asked, is_novel)) if len(asked) else None
    return Served(examples, exposure, len(asked), is_test)


def _choose_users(recommender: Recommender, content: Content, holdout: pd.DataFrame | None, seed: int) -> Asked:
    if holdout is None:
        return ask_known_users(recommender, seed)
    return ask_test_users(recommender, holdout, content["data"]["split"].get("test_at"), seed)


def _item_ids(recommender: Recommender) -> pd.Index[Any]:
    ids: pd.Index[Any] = pd.Index(recommender.bundle.items.column("item_id").to_pylist())
    return ids


def _count_events(recommender: Recommender) -> Ints:
    """Count the events of each item in the profiles, (N,)."""
    rows = _item_ids(recommender).get_indexer(pd.Index(recommender.profiles.history.item_id))
    return np.bincount(rows[rows >= 0], minlength=recommender.bundle.items.num_rows)
