"""A finished run as its own evaluation asked it: the weights of its figures, and profiles that end before its test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluation.holdout import profiles_from_frame
from pipeline.config import parse
from pipeline.run_folder import Work
from pipeline.tables import prepare
from serve.bundle import BUNDLE, CONFIG, MEASURED, Bundle
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.schema import Schema


def recall(run: Path) -> tuple[Work, Recommender]:
    """Return the tables of a run with their split, and the recommender that was measured.

    Args:
        run: its folder; its data is where its `config.yaml` says.
    """
    config, _ = parse(["--config", str(run / CONFIG)])
    with TemporaryDirectory(prefix="bascule-") as beside:
        work = prepare(replace(config, out=Path(beside)), None, Path(beside))
    measured = run / MEASURED / BUNDLE
    bundle = Bundle.load(measured if measured.exists() else run / BUNDLE)
    return work, Recommender(bundle, profile(work, bundle.schema))


def profile(work: Work, schema: Schema) -> Profiles:
    """Return the profiles of all events before the test."""
    return profiles_from_frame(work.split.refit, work.tables.users, schema)
