"""Train, export, evaluate and publish a two-tower recommender: one run, read from top to bottom."""

from __future__ import annotations

if __name__ == "__main__":  # before anything that may be missing is imported
    from serve.command_line import TRAINING, require_packages

    require_packages(TRAINING)

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from rich.console import Console

from datamodules.clean import check_joins, clean, only_evidence, only_targets, order_tables, weigh_targets
from datamodules.fingerprint import fingerprint_rows
from datamodules.leaks import find_leaks, stop_on_leaks
from datamodules.profiles import make_profiles
from datamodules.report import print_report, report_data
from datamodules.splits import Split, check_files, check_targets, split_interactions
from datamodules.tables import Rejects, Tables, check_reject_rates, read_tables, tables_from_frames, write_rejects
from evaluation.console import print_summary
from evaluation.evaluate import Parts, evaluate, headline_metric
from evaluation.model_card import render_card
from evaluation.report import write_report
from models.bundle_export import export_bundle
from models.checkpoints import note_published
from models.defaults import Choice
from run_config import Config, complete_text, parse
from run_finishing import Trained, place_newcomers
from run_state import declare_finished, is_finished, refuse_replacing
from run_training import print_choices, settle, train
from serve.bundle import (
    CONFIG,
    GOLDEN,
    METRICS,
    MODEL_CARD,
    PROFILES,
    REJECTS,
    Bundle,
    Facts,
    draw_requests,
    write_golden,
)
from serve.command_line import ENDED, ending_on_signals, name_interpreter, undisturbed
from serve.durable import name_file, write_file
from serve.errors import BundleError, SchemaError, say
from serve.index import measure_recall
from serve.profiles import stage_profiles
from serve.recommender import Recommender, golden_answer
from serve.staging import Stage, publish
from serve.state.forgetting import erase_forgotten
from serve.state.tombstones import inherit_tombstones
from serve.tower import count_cores

LIBRARIES = ("torch", "onnx", "onnxruntime", "faiss-cpu", "numpy")
N_GOLDEN, RECALL_USERS = 32, 256
LITTLE_MEMORY = (
    "the memory does not suffice: nothing is published; lower --model.batch_size, --model.dim or --model.negatives"
)
console = Console(log_path=False)
Frames = tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]
"""Interactions, users and items at hand."""


@dataclass(frozen=True)
class Run:
    """What a run leaves."""

    bundle: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Clean tables, and a configuration in which nothing is left open."""

    config: Config
    tables: Tables
    report: dict[str, Any]
    """What reading and cleaning say of the tables."""
    choices: list[Choice]
    """What the data decided."""
    rows: str
    """Fingerprint of the tables."""


def run(config: Config, tables: Frames | None = None, text: str | None = None) -> Run:
    """Run everything: tables -> towers -> bundle -> metrics.

    Args:
        config: of the run.
        tables: instead of the files that `config.data` names; users and items may be None.
        text: the configuration as YAML, to be kept as `config.yaml`.

    Raises:
        SchemaError: the tables do not fit what is declared, or the checkpoints are of another run.
        BundleError: the export differs from the towers, or a file is damaged; nothing is published.
        FloatingPointError: the training diverged; nothing is published.
    """
    if config.tune.trials is not None:
        raise SchemaError(f"tune.trials is {config.tune.trials} and this is a run; leave it out, or call `search`")
    refuse_replacing(config)
    with Stage.open(config.out) as stage:
        work = prepare(config, tables, stage)
        if is_finished(work.config, work.rows):
            console.print(f"{config.out} holds this run, finished: nothing is left to do", markup=False)
            return Run(stage.target, json.loads((config.out / METRICS).read_bytes()))
        if text is not None:
            write_file(stage.beside / CONFIG, complete_text(text, work.config).encode())
        return release(work, stage, *produce(work, stage))


def search(config: Config, text: str) -> None:
    """Search for a better recipe in place of a run; the test is set apart and not looked at.

    Raises:
        SchemaError: the tables do not fit what is declared, or there is nothing to search or to judge by.
    """
    if find_spec("optuna") is None:
        raise SchemaError(f"--tune.trials needs optuna: {name_interpreter()} -m pip install -e '.[tune]'")
    from run_tuning import tune  # optuna is no part of what a run needs

    with Stage.open(config.out) as stage:
        work = prepare(config, None, stage)
        split = split_interactions(work.tables.interactions, config.data, config.seed)
        print_choices(work.choices, console)
        tune(config, work.config, work.tables, split, text)


def prepare(config: Config, frames: Frames | None, stage: Stage) -> Work:
    """Read the tables and decide what the configuration leaves open."""
    tables, report = read(config, frames, stage.beside)
    config, choices = settle(config, tables)
    rows = fingerprint_rows(tables.interactions, tables.users, tables.items)
    return Work(config, tables, report, choices, rows)


def produce(work: Work, stage: Stage) -> tuple[Facts, Recommender, dict[str, Any], dict[str, Any], pd.DataFrame]:
    """Train, export and evaluate.

    Returns:
        Facts of the bundle in the stage, what answers with it, its metrics, what else is to be reported, and the test.
    """
    started = time.monotonic()
    config, cleaned, report = work.config, work.tables, dict(work.report)
    split = split_interactions(cleaned.interactions, config.data, config.seed)
    check_targets(split, config.data.repeats)
    check_files(split, config.data.split, cleaned.items)
    leaks = find_leaks(cleaned, split, config.data)
    report["data"] = report_data(cleaned, report.pop("rejects"), report.pop("cleaning"), split, config.data, leaks)
    print_report(report["data"], console)
    print_choices(work.choices, console)
    if config.data.leaks == "stop":
        stop_on_leaks(leaks)
    trained, seconds = train(config, cleaned, split)
    facts, recommender = stage_bundle(config, trained, cleaned, split, stage)
    begun = time.monotonic()
    metrics, durations = measure(config, recommender, cleaned, split)
    seconds |= durations | {"evaluation": time.monotonic() - begun, "total": time.monotonic() - started}
    report["timing"] = {name: round(value, 2) for name, value in seconds.items()} | trained.pace
    chosen = {choice.name: {"value": choice.value, "reason": choice.reason} for choice in work.choices}
    epochs = {"epochs": trained.epochs, "continued_epochs": trained.continued}
    report["training"] = {**epochs, "temperature": trained.temperature, "chosen": chosen}
    after = {
        "shrinkage": trained.shrunk,
        "correlations": trained.judged,
        "low_pass": trained.low_pass,
        "pair_filter": trained.pair_filter,
        "popularity": trained.popular,
    }
    report["training"] |= {name: asdict(done) for name, done in after.items() if done is not None}
    card = render_card(metrics, report["data"], trained.schema, facts)
    write_file(stage.path / MODEL_CARD, card.encode())
    return facts, recommender, metrics, report, only_targets(split.test)


def release(
    work: Work,
    stage: Stage,
    facts: Facts,
    recommender: Recommender,
    metrics: dict[str, Any],
    report: dict[str, Any],
    test: pd.DataFrame,
) -> Run:
    """Publish the bundle together with its profiles, its metrics and what else lies beside it in the stage."""
    config = work.config
    published = {name: value for name, value in metrics.items() if name != "slices"}  # groups may be a few people
    ready = stage.prepare(facts, published)
    content = {"version": ready.version, **metrics, **report}
    write_file(stage.beside / METRICS, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_report(stage.beside, config.out, content, recommender, test)
    stage_profiles(config.out / PROFILES, recommender.profiles, ready.version)
    erase_forgotten(config.out, recommender.profiles)
    note_published(config.out, declare_finished(config, work.rows), ready.version)
    with undisturbed():  # what was told to stop is stopped before, with nothing published, or it is finished
        bundle = publish(ready, config.overwrite)
        item_id = bundle.items.column("item_id")[0].as_py()
        print_summary(console, config.out, metrics, headline_metric(config.data.repeats), item_id)
    return Run(bundle.path, metrics)


def read(config: Config, frames: Frames | None, beside: Path) -> tuple[Tables, dict[str, Any]]:
    """Read and clean the tables; the list of the rows that do not fit is left with the bundle."""
    tombstones = inherit_tombstones(config.out, config.previous)
    if frames is None:
        tables, rejects = read_tables(config.data, tombstones)
    elif isinstance(frames, (tuple, list)):
        tables, rejects = tables_from_frames(config.data, *frames, tombstones=tombstones)
    else:
        raise SchemaError(f"tables is a {type(frames).__name__}; allowed: a tuple of interactions, users and items")
    keep_rejects(rejects, config, beside)
    tables, cleaning = clean(tables)
    if not len(tables.interactions):
        raise SchemaError(
            f"no interaction is left: {len(rejects.frame):,} records are rejected, {cleaning.negative_weights:,} have "
            "a weight below 0"
        )
    check_joins(tables, rejects.records)
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


def stage_bundle(
    config: Config, trained: Trained, tables: Tables, split: Split, stage: Stage
) -> tuple[Facts, Recommender]:
    """Write the bundle's files out of sight and open them as serving does."""
    console.rule("export")
    schema = trained.schema
    items = trained.catalogue.to_arrow()
    if schema.repeats == "allow":
        items = items.append_column("repeat_rate", pa.array(trained.data.trends.repeat_rate[-1]))
    newcomers = place_newcomers(trained, config.seed)
    export_bundle(trained.towers, newcomers, schema, items, trained.popularity, stage, config.seed)
    facts = Facts(
        similarity=trained.towers.item_tower.similarity,
        popularity_dims=len(schema.popularity_days),
        index_recall=1.0,
        counts={"items": len(items), "users": len(trained.data.sequences.user_ids), "epochs": trained.epochs},
        libraries={name: version(name) for name in LIBRARIES},
        data_until=schema.data_until,
        config={"data": config.data.declared(), "model": asdict(config.model), "seed": config.seed},
        neighbour_decay=trained.towers.neighbours.decay,
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
    parts = Parts(
        test=test,
        train=split.train,
        validation=validation,
        users=tables.users,
        group_columns=[*groups, *config.data.audit_only],
        at=split.test_at,
        evidence=only_evidence(split.validation),
    )
    metrics = evaluate(recommender, parts, config.seed, config.evaluation.baselines, console.log)
    durations = {name: record.pop("seconds") for name, record in metrics["baselines"].items() if "seconds" in record}
    return metrics, {f"baseline_{name}": duration for name, duration in durations.items()}


def lacks_memory(error: BaseException) -> bool:
    """Say whether an error is one of memory; of a CPU, torch raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def main(argv: Sequence[str]) -> int:
    goes_on = "--ckpt_path last"
    try:
        with ending_on_signals():
            config, text = parse(argv)
            if config.tune.trials is None:
                run(config, text=text)
            else:
                goes_on = "the same command"
                search(config, text)
    except (SchemaError, BundleError, OSError, FloatingPointError, MisconfigurationException) as error:
        print(f"train.py: {say(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        print(f"train.py: {LITTLE_MEMORY}: {say(error)}", file=sys.stderr)
        return 2
    except SystemExit as end:
        if end.code in ENDED:
            print(f"train.py: told to stop: nothing is published; {goes_on} goes on", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
