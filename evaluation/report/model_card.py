"""`MODEL_CARD.md`: what a bundle was made of, what it is for, how good it is and for whom.

It is a file of the bundle, so it holds nothing that differs between two runs of one seed, and no person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.report import plain_words
from evaluation.report.data_facts import COLD, describe_data, list_leaks
from evaluation.report.figures import find_skipped, read_views
from evaluation.report.groups import FEWEST_USERS, find_gaps, read_slices
from evaluation.report.rendering import render
from evaluation.report.wording import METRICS, VIEWS
from serve.manifest import Facts
from serve.schema import Schema

SIDES = {"user": "User", "item": "Item", "context": "Request context"}


def render_card(
    metrics: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any], schema: Schema, facts: Facts
) -> str:
    """Write the card of a bundle that is about to be published.

    Args:
        metrics: as `evaluate` returns them, without durations; without `test` where nothing was held out.
        data: the data report.
        training: how it was trained, as `metrics.json` holds it.
        schema: of the bundle.
        facts: of the bundle's manifest; its `config` has `data` as declared, `model` and `seed`.

    Returns:
        Markdown, the same for the same arguments.
    """
    views, slices = read_views(metrics), read_slices(metrics)
    config = facts.config
    return render(
        "MODEL_CARD.md",
        views=views,
        slices=slices,
        gaps=find_gaps(slices),
        headline=views[0].metric if views else "",
        view_titles=VIEWS,
        words=plain_words,
        data=data,
        data_facts=describe_data(data, schema),
        cold_names=COLD,
        leaks=list_leaks(data),
        features=[(title, schema.features(side)) for side, title in SIDES.items()],
        audit_only=list(config.get("data", {}).get("audit_only", [])),
        skipped=sorted(find_skipped(metrics)),
        metric_meanings=METRICS,
        fewest_users=FEWEST_USERS,
        schema=schema,
        facts=facts,
        model=config.get("model", {}),
        neighbours=plain_words.say_neighbours(training, schema),
    )
