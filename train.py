"""Train, export, evaluate and publish a two-tower recommender: one run, read from top to bottom.

python train.py                                    the bundled grocery sample, into runs/grocery
python train.py --config configs/template.yaml     your own tables
python train.py --help                             every option
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from rich.console import Console

from datamodules.catalogue import Catalogue, build_catalogue
from datamodules.cleaning import clean
from datamodules.data_report import print_report, report_data
from datamodules.fingerprint import fingerprint
from datamodules.interactions import InteractionsDataModule
from datamodules.leaks.find import find_leaks, stop_on_leaks
from datamodules.ordering import order_tables
from datamodules.reading.rejects import Rejects, check_reject_rates, write_rejects
from datamodules.schema_fitting import fit_schema
from datamodules.splits import Split, split_interactions
from datamodules.tables import Tables, read_tables, tables_from_frames
from datamodules.targets import only_evidence, only_targets, weigh_targets
from datamodules.user_profiles import make_profiles
from evaluation.evaluate import evaluate
from evaluation.examination import headline_metric
from evaluation.progress import Watched
from evaluation.report.model_card import render_card
from evaluation.report.page import write_report
from evaluation.summary import print_summary
from models.assembly import EncodedItems, PastOfAll, build_towers
from models.bundle_export import export_bundle
from models.checkpoints import note_published
from models.fitting import fit
from models.towers import Towers
from models.two_tower import TwoTower
from models.warm_start import STARTED_TABLES
from run_config import Config, parse
from run_state import declare, is_finished
from serve.bundle import Bundle
from serve.durable import name_file, write_file
from serve.errors import BundleError, SchemaError
from serve.golden import write_golden
from serve.golden_requests import draw_requests
from serve.index import measure_recall
from serve.interruption import ENDED, ending_on_signals, undisturbed
from serve.layout import GOLDEN, MODEL_CARD, PROFILES
from serve.manifest import Facts
from serve.profiles import stage_profiles
from serve.recommender import Recommender, golden_answer
from serve.schema import Schema
from serve.staging import Stage, publish
from serve.threads import count_cores

LIBRARIES = ("torch", "onnx", "onnxruntime", "faiss-cpu", "numpy")
N_GOLDEN, RECALL_USERS = 32, 256
METRICS, REJECTS = "metrics.json", "rejects.parquet"
console = Console(log_path=False)


@dataclass(frozen=True)
class Run:
    """What a run leaves."""

    bundle: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """Towers with everything they were trained on."""

    towers: Towers
    schema: Schema
    catalogue: Catalogue
    data: InteractionsDataModule
    epochs: int
    temperature: float


def run(
    config: Config, tables: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame] | None = None, text: str | None = None
) -> Run:
    """Run everything: tables -> towers -> bundle -> metrics.

    Args:
        config: of the run.
        tables: interactions, users and items at hand, instead of the files that `config.data` names.
        text: the configuration as YAML, to be kept as `config.yaml`.

    Raises:
        SchemaError: the tables do not fit what is declared, or the checkpoints are of another run.
        BundleError: the export differs from the towers, or a file is damaged; nothing is published.
        FloatingPointError: the training diverged; nothing is published.
    """
    with Stage.open(config.out) as stage:
        if is_finished(config):
            console.print(f"{config.out} holds this run, finished: nothing is left to do")
            return Run(stage.target, json.loads((config.out / METRICS).read_bytes()))
        if text is not None:
            write_file(stage.beside / "config.yaml", text.encode())
        return release(config, stage, *produce(config, tables, stage))


def produce(
    config: Config, frames: tuple[pd.DataFrame, ...] | None, stage: Stage
) -> tuple[Facts, Recommender, dict[str, Any], dict[str, Any], pd.DataFrame]:
    """Read, train, export and evaluate.

    Returns:
        Facts of the bundle in the stage, what answers with it, its metrics, what else is to be reported, and the test.
    """
    started = time.monotonic()
    cleaned, report = read(config, frames, stage.beside)
    split = split_interactions(cleaned.interactions, config.data, config.seed)
    leaks = find_leaks(cleaned, split, config.data)
    report["data"] = report_data(cleaned, report.pop("rejects"), report.pop("cleaning"), split, config.data, leaks)
    print_report(report["data"], console)
    if config.data.leaks == "stop":
        stop_on_leaks(leaks)
    trained, seconds = train(config, cleaned, split)
    facts, recommender = stage_bundle(config, trained, cleaned, split, stage)
    begun = time.monotonic()
    metrics, durations = measure(config, recommender, cleaned, split)
    seconds |= durations | {"evaluation": time.monotonic() - begun, "total": time.monotonic() - started}
    report["timing"] = {name: round(value, 2) for name, value in seconds.items()}
    report["training"] = {"epochs": trained.epochs, "temperature": trained.temperature}
    card = render_card(metrics, report["data"], trained.schema, facts)
    write_file(stage.path / MODEL_CARD, card.encode())
    return facts, recommender, metrics, report, only_targets(split.test)


def release(
    config: Config,
    stage: Stage,
    facts: Facts,
    recommender: Recommender,
    metrics: dict[str, Any],
    report: dict[str, Any],
    test: pd.DataFrame,
) -> Run:
    """Publish the bundle together with its profiles, its metrics and what else lies beside it in the stage."""
    published = {name: value for name, value in metrics.items() if name != "slices"}  # groups may be a few people
    ready = stage.prepare(facts, published)
    content = {"version": ready.version, **metrics, **report}
    write_file(stage.beside / METRICS, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_report(stage.beside, config.out, content, recommender, test)
    stage_profiles(config.out / PROFILES, recommender.profiles, ready.version)
    note_published(config.out, declare(config), ready.version)
    with undisturbed():  # what was told to stop is stopped before, with nothing published, or it is finished
        bundle = publish(ready, config.overwrite)
        item_id = bundle.items.column("item_id")[0].as_py()
        print_summary(console, config.out, metrics, headline_metric(config.data.repeats), item_id)
    return Run(bundle.path, metrics)


def read(config: Config, frames: tuple[pd.DataFrame, ...] | None, beside: Path) -> tuple[Tables, dict[str, Any]]:
    """Read and clean the tables; the list of the rows that do not fit is left with the bundle."""
    tables, rejects = read_tables(config.data) if frames is None else tables_from_frames(config.data, *frames)
    keep_rejects(rejects, config, beside)
    tables, cleaning = clean(tables)
    if not len(tables.interactions):
        raise SchemaError(
            f"no interaction is left: {len(rejects.frame):,} records are rejected, {cleaning.negative_weights:,} have "
            "a weight below 0"
        )
    tables = order_tables(tables, config.data.ties)
    tables = replace(tables, interactions=weigh_targets(tables.interactions, config.data))
    return tables, {"rejects": rejects, "cleaning": cleaning}


def keep_rejects(rejects: Rejects, config: Config, beside: Path) -> None:
    """Leave the list of rejects with the bundle, or at once where it stops the run."""
    try:
        check_reject_rates(rejects, config.data.max_reject_rate)
    except SchemaError:
        write_rejects(rejects, config.out / REJECTS)
        raise
    with name_file(beside / REJECTS):
        write_rejects(rejects, beside / REJECTS)


def train(config: Config, tables: Tables, split: Split) -> tuple[Trained, dict[str, float]]:
    """Train with early stopping, then again on everything before the test for as many epochs."""
    begun = time.monotonic()
    console.rule("training")
    first = fit_towers(config, tables, split, None)
    seconds = {"training": time.monotonic() - begun}
    if config.data.split.strict or not len(split.validation):
        return first, seconds
    begun = time.monotonic()
    console.rule(f"training again on all but the test, {first.epochs} epochs")
    last = fit_towers(config, tables, split, first.epochs)
    return last, seconds | {"training_again": time.monotonic() - begun}


def fit_towers(config: Config, tables: Tables, split: Split, epochs: int | None) -> Trained:
    """Fit schema and towers.

    Args:
        config: of the run.
        tables: users and items.
        split: of the interactions.
        epochs: None: learn from the training rows and stop by the validation rows. A number: learn from both, and
            stop there on the same schedule.
    """
    if epochs is None:
        rows, validation, at = split.train, split.validation, split.validation_at
    else:
        rows, validation, at = split.refit, split.validation.iloc[:0], split.test_at
    pl.seed_everything(config.seed, workers=True, verbose=False)
    previous = None if config.previous is None else Bundle.load(config.previous).schema
    schema = fit_schema(tables, rows, config.data, previous)
    catalogue = build_catalogue(tables.items, rows, schema)
    settings = config.model
    data = InteractionsDataModule(
        rows, validation, tables.users, catalogue, schema, settings.batch_size, config.seed, split.horizon, at
    )
    model = make_model(config, schema, catalogue, data)
    read = fingerprint(schema, data.sequences, catalogue.item_ids, catalogue.features, data.validation_batches)
    trained_for = fit(
        model,
        data,
        config.out,
        "select" if epochs is None else "final",
        settings.max_epochs if epochs is None else epochs,
        settings.patience if len(validation) else None,
        config.trainer,
        {**declare(config), "training data": read},
    )
    return Trained(model.towers, schema, catalogue, data, trained_for, float(model.temperature.detach()))


def make_model(config: Config, schema: Schema, catalogue: Catalogue, data: InteractionsDataModule) -> TwoTower:
    """Build the towers and what trains them."""
    settings, features = config.model, catalogue.features
    towers = build_towers(
        schema,
        EncodedItems(*map(torch.from_numpy, (features.codes, features.values, catalogue.categories))),
        PastOfAll(data.final_requests(), data.early_pairs()),
        settings.dim,
        settings.affinity_dim,
        settings.n_blocks,
        settings.n_heads,
        settings.dropout,
        settings.id_dropout,
        settings.similarity,
        settings.temperature,
        config.seed,
    )
    return TwoTower(
        towers,
        settings.learning_rate,
        settings.memory_learning_rate,
        settings.weight_decay,
        settings.warmup_steps,
        settings.temperature,
        config.seed,
        STARTED_TABLES if schema.repeats == "allow" else (),
        settings.max_epochs,
    )


def stage_bundle(
    config: Config, trained: Trained, tables: Tables, split: Split, stage: Stage
) -> tuple[Facts, Recommender]:
    """Write the bundle's files out of sight and open them as serving does."""
    console.rule("export")
    schema, trends = trained.schema, trained.data.trends
    items = trained.catalogue.to_arrow()
    if schema.repeats == "allow":
        items = items.append_column("repeat_rate", pa.array(trends.repeat_rate[-1]))
    export_bundle(trained.towers, schema, items, trends.popularity[-1], stage, config.seed)
    facts = Facts(
        similarity=config.model.similarity,
        popularity_dims=len(schema.popularity_days),
        index_recall=1.0,
        counts={"items": len(items), "users": len(trained.data.sequences.user_ids), "epochs": trained.epochs},
        libraries={name: version(name) for name in LIBRARIES},
        data_until=schema.data_until,
        config={"data": config.data.declared(), "model": asdict(config.model), "seed": config.seed},
    )
    stage.seal(facts, {})
    bundle = Bundle.load_staged(stage.path, n_threads=count_cores())
    profiles = make_profiles(split.refit, tables.users, schema)
    recommender = Recommender(bundle, profiles)
    requests = draw_requests(schema, bundle.items.column("item_id").to_pylist(), N_GOLDEN, np.random.default_rng(0))
    write_golden(stage.path / GOLDEN, requests, golden_answer(recommender), k=10)
    users = recommender.encode_users([{"user_id": user} for user in profiles.user_ids[:RECALL_USERS].tolist()])
    return replace(facts, index_recall=measure_recall(bundle.index, users, 100)), recommender


def measure(
    config: Config, recommender: Recommender, tables: Tables, split: Split
) -> tuple[dict[str, Any], dict[str, float]]:
    """Evaluate the staged bundle; durations come apart, since metrics are the same for the same seed."""
    test, validation = only_targets(split.test), only_targets(split.validation)
    if not len(test):
        return {"protocol": {"split": split.kind, "note": "everything trains: nothing is left to test on"}}, {}
    console.rule("evaluation of the bundle")
    user_features = config.data.features.of("user").values()
    groups = [str(feature.column) for feature in user_features if feature.kind in ("categorical", "numeric")]
    with Watched(console, config.trainer.get("enable_progress_bar", True)) as progress:
        metrics = evaluate(
            recommender,
            test,
            pd.concat([split.train, only_evidence(split.validation)]),
            validation,
            tables.users,
            split.test_at,
            [*groups, *config.data.audit_only],
            config.seed,
            progress,
        )
    durations = {name: record.pop("seconds") for name, record in metrics["baselines"].items() if "seconds" in record}
    return metrics, {f"baseline_{name}": duration for name, duration in durations.items()}


def main(argv: Sequence[str]) -> int:
    try:
        with ending_on_signals():
            config, text = parse(argv)
            run(config, text=text)
    except (SchemaError, BundleError, OSError, FloatingPointError, MisconfigurationException) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:
        if end.code in ENDED:
            print("train.py: told to stop: nothing is published; --ckpt_path last goes on", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
