"""One run, read from top to bottom: prepare, train, export, evaluate, publish."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from datamodules.clean import only_evidence, only_targets
from datamodules.data_report import print_report, report_data
from datamodules.leaks import find_leaks, stop_on_leaks
from datamodules.splits import check_targets
from evaluation.console import print_summary
from evaluation.drift import LATENCY, SNAPSHOT, take_snapshot, time_answers
from evaluation.evaluate import Parts, evaluate, headline_metric
from evaluation.model_card import render
from evaluation.report import write_report
from pipeline.config import Config, complete_text
from pipeline.run_folder import (
    Work,
    declare_finished,
    is_finished,
    note_published,
    refuse_replacing,
)
from pipeline.stages import (
    Frames,
    console,
    fit_first,
    prepare,
    print_choices,
    print_previous,
    stage_bundle,
    train,
)
from serve.bundle import CONFIG, METRICS, MODEL_CARD, PROFILES, Bundle, Facts
from serve.errors import SchemaError, say
from serve.files import write_file
from serve.profiles import stage_profiles
from serve.recommender import Recommender
from service.command_line import undisturbed
from service.forget import erase_forgotten
from service.publish import Stage, publish

LITTLE_MEMORY = "the memory does not suffice: nothing is published; lower --model.batch_size, --model.dim or --model.negatives"


@dataclass(frozen=True)
class Run:
    """The outcome of a run."""

    bundle: Path
    metrics: dict[str, Any]
    work: Work  # its tables and their split


@dataclass(frozen=True)
class Product:
    """A bundle in its stage, evaluated."""

    facts: Facts
    recommender: Recommender
    metrics: dict[str, Any]
    report: dict[str, Any]  # what `metrics.json` holds beside the metrics
    test: pd.DataFrame


def run(config: Config, tables: Frames | None = None, text: str | None = None) -> Run:
    """Run everything: tables -> towers -> bundle -> metrics; keep `text` as `config.yaml`.

    `tables` stand for the files that `config.data` names; their users and items may be None. SchemaError, BundleError
    and FloatingPointError (the training diverged) publish nothing.
    """
    if config.tune.trials is not None:
        raise SchemaError(
            f"tune.trials is {config.tune.trials} and this is a run; leave it out, or call `search`"
        )
    refuse_replacing(config)
    with Stage.open(config.out) as stage:
        work = prepare(config, tables, stage.beside)
        if is_finished(work.config, work.rows):
            console.print(
                f"{config.out} holds this run, finished: nothing is left to do",
                markup=False,
            )
            return Run(
                stage.target, json.loads((config.out / METRICS).read_bytes()), work
            )
        if text is not None:
            write_file(stage.beside / CONFIG, complete_text(text, work.config).encode())
        return release(work, stage, produce(work, stage))


def search(config: Config, text: str) -> None:
    """Search for a better recipe in place of a run; the test is set apart and not looked at."""
    from pipeline.tuning import tune  # optuna is optional

    with Stage.open(config.out) as stage:
        work = prepare(config, None, stage.beside)
        print_choices(work.choices)
        tune(config, work, text, lambda tried: fit_first(tried).epochs)


def run_or_search(config: Config, text: str) -> Run | None:
    """Run or search; what the training itself cannot do is a fault of the configuration."""
    try:
        if config.tune.trials is None:
            return run(config, text=text)
        search(config, text)
    except (FloatingPointError, MisconfigurationException) as error:
        raise SchemaError(say(error)) from error
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # on a CPU torch raises a plain RuntimeError
        if not isinstance(
            error, (MemoryError, torch.OutOfMemoryError)
        ) and "can't allocate memory" not in str(error):
            raise
        raise SchemaError(f"{LITTLE_MEMORY}: {say(error)}") from error
    return None


def produce(work: Work, stage: Stage) -> Product:
    """Check the split, look for leaks, train, export into the stage and evaluate."""
    started = time.monotonic()
    config = work.config
    tables = work.tables
    split = work.split
    check_targets(split, config.data.repeats)
    leaks = find_leaks(tables, split, config.data)
    rejects = work.report["rejects"]
    cleaning = work.report["cleaning"]
    data = report_data(tables, rejects, cleaning, split, config.data, leaks)
    print_report(data, console)
    print_choices(work.choices)
    print_previous(config.previous, config.warm_start)
    if config.data.leaks == "stop":
        stop_on_leaks(leaks)
    trained, seconds = train(work)
    facts, recommender = stage_bundle(work, trained, stage)
    begun = time.monotonic()
    metrics, durations = measure(recommender, work)
    seconds |= durations | {
        "evaluation": time.monotonic() - begun,
        "total": time.monotonic() - started,
    }
    training = {
        "epochs": trained.epochs,
        "continued_epochs": trained.continued,
        "temperature": trained.temperature,
        "chosen": {
            choice.name: {"value": choice.value, "reason": choice.reason}
            for choice in work.choices
        },
        "warm_start": None
        if work.previous is None
        else work.previous.bundle.manifest.version,
        "refinement": None
        if trained.refinement is None
        else asdict(trained.refinement),
    }
    timing = {name: round(value, 2) for name, value in seconds.items()} | trained.pace
    card = render(MODEL_CARD, metrics, data, trained.data.schema, facts=facts)
    write_file(stage.path / MODEL_CARD, card.encode())
    report = {
        "data": data,
        "timing": timing,
        "training": training,
        SNAPSHOT: take_snapshot(recommender),
    }
    if (segments := recommender.bundle.segments) is not None:
        report["segments"] = {
            "stability": segments.stability,
            "found": segments.describe(),
        }
    return Product(facts, recommender, metrics, report, only_targets(split.test))


def measure(
    recommender: Recommender, work: Work
) -> tuple[dict[str, Any], dict[str, float]]:
    """Evaluate the staged bundle; durations come apart, since metrics are the same for the same seed."""
    config = work.config
    parts = set_apart(work)
    if not len(parts.test):
        return {
            "protocol": {
                "split": work.split.kind,
                "note": "everything trains: nothing is left to test on",
            }
        }, {}
    console.rule("evaluation of the bundle")
    metrics = evaluate(
        recommender, parts, config.seed, config.evaluation.baselines, console.log
    )
    durations = {
        name: record.pop("seconds")
        for name, record in metrics["baselines"].items()
        if "seconds" in record
    }
    return metrics, {
        f"baseline_{name}": duration for name, duration in durations.items()
    }


def set_apart(work: Work) -> Parts:
    """Return what a run is tested on; groups are single-valued features of users and what is declared for audits."""
    split = work.split
    data = work.config.data
    features = data.features.of("user").values()
    groups = [
        str(feature.column)
        for feature in features
        if feature.kind in ("categorical", "numeric")
    ]
    return Parts(
        test=only_targets(split.test),
        train=split.train,
        validation=only_targets(split.validation),
        users=work.tables.users,
        group_columns=[*groups, *data.audit_only],
        at=split.test_at,
        evidence=only_evidence(split.validation),
    )


def release(work: Work, stage: Stage, product: Product) -> Run:
    """Publish the bundle together with its profiles, its metrics and what else lies beside it in the stage."""
    config = work.config
    metrics = product.metrics
    profiles = product.recommender.profiles
    published = {
        name: value for name, value in metrics.items() if name != "slices"
    }  # groups may be a few people
    ready = stage.prepare(product.facts, published)
    product.report["timing"][LATENCY] = time_answers(
        Recommender(Bundle.load(stage.path), profiles)
    )  # in one thread
    content = {"version": ready.version, **metrics, **product.report}
    write_file(
        stage.beside / METRICS,
        (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
    )
    write_report(stage.beside, config.out, content, product.recommender, product.test)
    stage_profiles(config.out / PROFILES, profiles, ready.version)
    erase_forgotten(config.out, profiles)
    note_published(config.out, declare_finished(config, work.rows), ready.version)
    with undisturbed():  # a signal ends the run before this, with nothing published, or after it, finished
        bundle = publish(ready, config.overwrite)
        item_id = bundle.items.column("item_id")[0].as_py()
        print_summary(
            console, config.out, metrics, headline_metric(config.data.repeats), item_id
        )
    return Run(bundle.path, metrics, work)
