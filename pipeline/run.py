"""One run, read from top to bottom: prepare, train, export, evaluate, publish.

A `Stage` (`service/publish.py`) is the hidden folder in which a bundle is made. Nothing that
readers see changes before `publish` gives it its name; profiles and files beside the bundle follow.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from datamodules.clean import only_evidence, only_targets
from datamodules.data_report import print_heavy_users, print_report, report_data
from datamodules.leaks import find_leaks, stop_on_leaks
from datamodules.on_disk import FOLDER
from datamodules.splits import check_targets
from evaluation.audit import find_failures
from evaluation.console import print_commands, print_results
from evaluation.drift import LATENCY, SNAPSHOT, take_snapshot, time_answers
from evaluation.evaluate import Parts, evaluate
from evaluation.holdout import profiles_from_frame, sample_users
from evaluation.metrics import headline_metric
from evaluation.model_card import render
from evaluation.signal import find_signal
from pipeline.config import Config, complete_text
from pipeline.run_folder import (
    Work,
    console,
    declare_finished,
    is_finished,
    note_published,
    refuse_replacing,
)
from pipeline.tables import Frames, prepare, print_choices
from serve.bundle import (
    BUNDLE,
    CONFIG,
    MEASURED,
    METRICS,
    MODEL_CARD,
    PROFILES,
    Bundle,
    Facts,
)
from serve.clock import to_iso
from serve.errors import SchemaError, say
from serve.files import write_file, write_json
from serve.profiles import Profiles, stage_profiles
from serve.recommender import Recommender
from serve.schema import Schema
from service.command_line import undisturbed
from service.forget import erase_forgotten
from service.publish import Stage, publish

if TYPE_CHECKING:
    from pipeline.stages import Trained

LITTLE_MEMORY = (
    "the memory does not suffice: nothing is published; "
    "lower --model.batch_size, --model.dim or --model.negatives"
)


QUICK_NOTE = (
    "\nquick: towers were trained for {epochs} epochs, and figures are of at most 1,024 users; "
    "a whole run ranked 0 to 22 % better on public sets"
)
QUICK_USERS = 1024
MAX_TESTED_SCORES = 2**32  # of test users and all items: else users are drawn
QUICK_BASELINES = {
    "exclude": ["popularity"],
    "allow": ["popularity", "personal-decayed"],
}


@dataclass(frozen=True)
class Run:
    """The outcome of a run."""

    bundle: Path
    metrics: dict[str, Any]
    work: Work  # its tables and their split


@dataclass(frozen=True)
class Product:
    """A bundle in its stage, after an evaluation without what it learned of the test."""

    facts: Facts
    measured: Recommender
    published: Recommender
    metrics: dict[str, Any]
    report: dict[str, Any]  # the rest of `metrics.json`


def run(config: Config, tables: Frames | None = None, text: str | None = None) -> Run:
    """Run everything: tables -> towers -> bundle -> metrics.

    An error publishes nothing.

    Args:
        config: what to run.
        tables: interactions, users and items in place of the files that `config.data` names; the
            last two may be None.
        text: the YAML of `config`, kept as `config.yaml`.

    Returns:
        the published bundle, its metrics, and the tables with their split.

    Raises:
        SchemaError: the tables or the configuration do not fit.
        BundleError: an earlier bundle cannot be read.
        FloatingPointError: the training diverged.
    """
    refuse_replacing(config)
    with Stage.open(config.out) as stage, ExitStack() as at_end:
        at_end.callback(shutil.rmtree, config.out / FOLDER, ignore_errors=True)
        work = prepare(config, tables, stage.beside)
        if is_finished(work.config, work.rows):
            done = f"{config.out} holds this run, finished: nothing is left to do"
            console.print(done, markup=False)
            metrics = json.loads((config.out / METRICS).read_bytes())
            return Run(stage.target, metrics, work)
        if text is not None:
            write_file(stage.beside / CONFIG, complete_text(text, work.config).encode())
        return release(work, stage, produce(work, stage))


def check(config: Config) -> None:
    """Read and check the tables, print the report and what the data decides, and write nothing.

    Raises:
        SchemaError: the tables or the configuration do not fit.
    """
    with TemporaryDirectory(prefix="bascule-") as folder:
        out = Path(folder)
        work = prepare(replace(config, out=out), None, out)
        examine(work)
    print_choices(work.choices)
    console.print("checked: a run would train on this; nothing is written")


def run_command(config: Config, text: str) -> Run:
    """Run, and print the commands that follow.

    Raises:
        SchemaError: also of what the training itself cannot do.
    """
    try:
        done = run(config, text=text)
    except FloatingPointError as error:
        raise SchemaError(say(error)) from error
    except MemoryError as error:
        raise SchemaError(f"{LITTLE_MEMORY}: {say(error)}") from error

    item_id = done.work.split.refit["item_id"].iloc[0]
    content = json.loads((config.out / METRICS).read_bytes())
    print_commands(console, config.out, item_id, content.get("seen", {}))
    return done


def produce(work: Work, stage: Stage) -> Product:
    """Check the data, train, export into the stage and evaluate."""
    started = time.monotonic()
    data = examine(work)
    print_choices(work.choices)
    # Only now is torch imported: a mistake in the data was told long before.
    from pipeline.pack import stage_bundle
    from pipeline.private import release as release_privately
    from pipeline.stages import refits, train, train_released, train_with_test

    exported = work
    private: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    # The many small steps of a quick run wait for threads longer than these save.
    with threadpool_limits(1 if work.config.quick else None):
        if work.config.privacy.epsilon is None:
            trained = train(work, seconds)
        else:
            drawn, statistics, private["privacy"] = release_privately(work)
            trained = train_released(drawn, statistics)
            exported = replace(work, config=drawn.config)
        console.rule("export")
        facts, measured = stage_bundle(
            exported, trained.towers, trained.data, trained.epochs, stage
        )
        begun = time.monotonic()
        metrics = measure(measured, work, seconds)
        seconds["evaluation"] = time.monotonic() - begun

        everything = exported.with_test()
        # Figures and counts of real people are not noised: a private bundle has none.
        told = ({}, {}) if private else (metrics, data)
        seen = {
            "figures": count_events(work),
            "weights": count_events(work),
            "profiles": count_events(everything),
        }
        if refits(work, trained):
            begun = time.monotonic()
            schema = measured.bundle.schema
            facts = describe(stage, facts, schema, {"seen": seen}, told)
            keep_measured(stage, facts)
            last = train_with_test(everything, trained, measured.bundle)
            facts, published = stage_bundle(
                everything, last.towers, last.data, trained.epochs, stage
            )
            seen = {**seen, "weights": seen["profiles"]}
            seconds["refit"] = time.monotonic() - begun
        else:
            published = know_everything(measured, everything)

    seconds["total"] = time.monotonic() - started
    schema = published.bundle.schema
    facts = describe(stage, facts, schema, private or {"seen": seen}, told)
    timing = {name: round(value, 2) for name, value in seconds.items()}
    report = {
        "data": data,
        "timing": timing | trained.pace,
        "training": describe_training(work, trained),
        "seen": seen,
        SNAPSHOT: take_snapshot(published),
        **private,
    }
    segments = published.bundle.segments
    if segments is not None:
        found = segments.describe()
        report["segments"] = {"stability": segments.stability, "found": found}

    return Product(facts, measured, published, metrics, report)


def describe(
    stage: Stage,
    facts: Facts,
    schema: Schema,
    more: Mapping[str, Any],
    told: tuple[Any, Any],
) -> Facts:
    """Write the model card into a stage, and return the facts with those of the run.

    Args:
        stage: a bundle that lacks its card alone.
        facts: of the bundle.
        schema: of the bundle.
        more: what the manifest says of the run besides.
        told: the metrics and the report on the data, empty where they are of private data.
    """
    facts = replace(facts, config={**facts.config, **more})
    card = render(MODEL_CARD, *told, schema, facts=facts)
    write_file(stage.path / MODEL_CARD, card.encode())
    return facts


def keep_measured(stage: Stage, facts: Facts) -> None:
    """Move the bundle of the figures beside the stage, which is empty then."""
    folder = stage.beside / MEASURED / BUNDLE
    folder.parent.mkdir()
    stage.path.rename(folder)
    stage.path.mkdir()
    replace(stage, path=folder).prepare(facts, {})


def know_everything(measured: Recommender, everything: Work) -> Recommender:
    """Return the recommender with the profiles of all events, the tested ones too."""
    events = everything.split.refit
    users = everything.tables.users
    profiles = profiles_from_frame(events, users, measured.bundle.schema)
    return Recommender(measured.bundle, profiles)


def count_events(work: Work) -> dict[str, Any]:
    """Return how many events are not held out, and the time of the latest one."""
    if work.on_disk is not None:
        return {"events": int(work.on_disk.counts["refit"].sum()), "until": None}
    events = work.split.refit
    has_times = "datetime" in events and len(events)
    until = to_iso(int(events["datetime"].max())) if has_times else None
    return {"events": len(events), "until": until}


def examine(work: Work) -> dict[str, Any]:
    """Check the split, look for leaks, and print and return the data report."""
    data = work.config.data
    check_targets(work.split, data.repeats)
    leaks = find_leaks(work.tables, work.split, data)
    report = report_data(
        work.tables, split=work.split, config=data, leaks=leaks, **work.report
    )
    if work.on_disk is not None:
        report["counts"] |= work.on_disk.count()
    print_report(report, console)
    print_heavy_users(work.tables.interactions, console)
    if data.leaks == "stop":
        stop_on_leaks(leaks)
    return report


def describe_training(work: Work, trained: Trained) -> dict[str, Any]:
    """Return what `metrics.json` says of the training."""
    chosen = {
        choice.name: {"value": choice.value, "reason": choice.reason}
        for choice in work.choices
    }
    previous = work.previous and work.previous.bundle.manifest.version
    return {
        "epochs": trained.epochs,
        "continued_epochs": trained.continued,
        "temperature": trained.temperature,
        "chosen": chosen,
        "warm_start": previous,
        "refinement": trained.refinement and asdict(trained.refinement),
    }


def measure(
    recommender: Recommender, work: Work, seconds: dict[str, float]
) -> dict[str, Any]:
    """Evaluate the staged bundle.

    Args:
        recommender: of the staged bundle.
        work: gives the test.
        seconds: receives those of the baselines.

    Returns:
        the metrics, which are the same for the same seed.

    Raises:
        SchemaError: the lists leave a group worse off than the configuration allows.
    """
    config = work.config
    parts = set_apart(work)
    if not len(parts.test):
        note = "everything trains: nothing is left to test on"
        return {"protocol": {"split": work.split.kind, "note": note}}

    console.rule("evaluation of the bundle")
    baselines = config.evaluation.baselines
    if config.quick and baselines is None:
        baselines = QUICK_BASELINES[config.data.repeats]
    metrics = evaluate(recommender, parts, config.seed, baselines, console.log)
    failures = find_failures(
        metrics["audit"], config.evaluation.audit_users, config.evaluation.audit_items
    )
    if failures:
        raise SchemaError(
            f"the audit fails: {'; '.join(failures)}; nothing is published: change the data, or "
            "lower evaluation.audit_users or .audit_items and resume"
        )

    metrics["protocol"]["test_users"] = int(work.split.test["user_id"].nunique())
    headline = headline_metric(config.data.repeats)
    metrics["signal"] = find_signal(metrics, headline)

    for name, record in metrics["baselines"].items():
        if "seconds" in record:
            seconds[f"baseline_{name}"] = record.pop("seconds")

    return metrics


def set_apart(work: Work) -> Parts:
    """Return what a run is tested on; audited columns and features of users make the groups."""
    split = work.split
    data = work.config.data
    groups = [
        str(feature.column)
        for feature in data.features.of("user").values()
        if feature.traits.role in ("category", "number")
    ]
    test = only_targets(split.test)
    fitting = MAX_TESTED_SCORES // max(len(work.tables.items), 1)
    is_brief = work.config.quick or work.on_disk is not None
    max_users = QUICK_USERS if is_brief else fitting
    test = sample_users(test, work.config.seed, max_users)
    validation = only_targets(split.validation)
    evidence = only_evidence(split.validation)

    return Parts(
        test,
        split.train,
        validation,
        work.tables.users,
        group_columns=[*groups, *data.audit_only],
        at=split.test_at,
        evidence=evidence,
    )


def release(work: Work, stage: Stage, product: Product) -> Run:
    """Publish the bundle with its profiles, its metrics and the files beside it."""
    from evaluation.report import write_report  # matplotlib takes a second
    from pipeline.pack import list_profiles

    config = work.config
    out = config.out
    metrics = product.metrics
    profiles = product.published.profiles
    # Groups may be a few people.
    hidden = ("slices", "audit")
    published = {name: part for name, part in metrics.items() if name not in hidden}
    if config.privacy.epsilon is not None:
        published = {}
    ready = stage.prepare(product.facts, published)
    if not (stage.beside / MEASURED).exists():
        shutil.rmtree(out / MEASURED, ignore_errors=True)  # of an earlier run

    single_threaded = Recommender(Bundle.load(stage.path), profiles)
    product.report["timing"][LATENCY] = time_answers(single_threaded)
    content = {"version": ready.version, "quick": config.quick}
    content |= {**metrics, **product.report}
    write_json(stage.beside / METRICS, content)
    test = only_targets(work.split.test)
    write_report(stage.beside, out, content, product.measured, test)
    parts: Iterable[Profiles] = [profiles]
    on_disk = work.with_test().on_disk
    if on_disk is not None:
        parts = list_profiles(on_disk, product.published.bundle.schema)
        profiles = replace(profiles, user_ids=on_disk.user_ids)
    schema = product.published.bundle.schema
    if schema.repeats == "allow" and schema.has_datetime:
        item_ids = product.published.catalogue.item_ids
        hold = product.published.just_taken.hold_last_day
        parts = (hold(part, item_ids) for part in parts)
    stage_profiles(out / PROFILES, parts, ready.version)
    erase_forgotten(out, profiles)
    note_published(out, declare_finished(config, work.rows), ready.version)

    # A signal ends the run before this, with nothing published, or after it, finished.
    with undisturbed():
        bundle = publish(ready, config.overwrite)
        print_results(console, content, headline_metric(config.data.repeats))
        if config.quick:
            note = QUICK_NOTE.format(epochs=product.report["training"]["epochs"])
            console.print(note, highlight=False, soft_wrap=True)

    return Run(bundle.path, metrics, work)
