"""The export: pack trained towers into a bundle, and open it as serving does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from datamodules.datamodule import InteractionsDataModule
from datamodules.on_disk import OnDisk
from evaluation.holdout import profile_features, profiles_from_frame
from models.cold_items import fit_cold_items
from models.export import export_bundle
from models.segments import MAX_USERS, find_segments, find_traits
from models.towers import Towers
from pipeline.coarse_index import fit_coarse
from pipeline.config import Config
from pipeline.golden import draw_requests, write_golden
from pipeline.run_folder import Work, declare
from serve.arrays import Flags
from serve.bundle import ANSWERING, COARSE, GOLDEN, SEGMENTS, Bundle, Facts
from serve.catalogue import name_items
from serve.clock import DAY
from serve.events import Events
from serve.files import write_file
from serve.kinds import IS_UNLISTED
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.requests import History
from serve.rerank import IS_NEW, NEW_DAYS
from serve.schema import Schema
from serve.tower import count_cores
from service.publish import Stage

LIBRARIES = ("torch", "onnx", "onnxruntime", "faiss-cpu", "numpy")
N_GOLDEN = 32
MAX_COLD_USERS = 512  # users to whom cold items are made visible


def stage_bundle(
    work: Work, towers: Towers, data: InteractionsDataModule, epochs: int, stage: Stage
) -> tuple[Facts, Recommender]:
    """Write the bundle's files out of sight and open them as serving does.

    Args:
        work: gives the configuration and the tables of the profiles.
        towers: trained and refined.
        data: what they were trained on.
        epochs: of the training.
        stage: the folder to write into, in place of the files that are in it.

    Returns:
        the facts of the manifest, and a recommender with the profiles of all before the test.
    """
    for path in stage.path.iterdir():
        path.unlink()
    write_towers(work, towers.eval(), data, stage)
    facts = make_facts(work.config, towers, data, epochs)
    stage.seal(facts, {})
    bundle = Bundle.load(stage.path, count_cores(), required=ANSWERING)
    profiles = profiles_from_frame(work.split.refit, work.tables.users, data.schema)
    recommender = Recommender(bundle, profiles)

    is_private = work.config.privacy.epsilon is not None
    # A coarse index is tuned on what people ask, and segments are of people.
    target = 1.0 if is_private else work.config.index.recall
    fitted = fit_coarse(recommender, target)
    if fitted is not None:
        index_facts, coarse = fitted
        write_file(stage.path / COARSE, coarse.content.data)
        facts = replace(facts, index=index_facts)
        stage.seal(facts, {})
        bundle = Bundle.load(stage.path, count_cores(), required=ANSWERING)
        recommender = Recommender(bundle, profiles)

    item_ids = bundle.items.column("item_id").to_pylist()
    golden = draw_requests(data.schema, item_ids, N_GOLDEN, np.random.default_rng(0))
    write_golden(stage.path / GOLDEN, golden, recommender.recommend, k=10)
    # Segments take longer than all else of a quick run.
    if work.config.quick or is_private:
        return facts, recommender

    return facts, write_segments(recommender, stage, work.config.seed)


def write_towers(
    work: Work, towers: Towers, data: InteractionsDataModule, stage: Stage
) -> None:
    """Place cold items, and write towers, index, items and schema into a stage."""
    config = work.config
    seed = config.seed
    popularity = data.trends.popularity[-1]  # (N, P)
    is_taken = torch.from_numpy(data.count_targets() > 0)  # (N,)
    requests = data.drawn_requests(MAX_COLD_USERS)
    cold_items = fit_cold_items(
        towers, torch.from_numpy(popularity), is_taken, requests, seed
    )
    items = list_items(data)
    export_bundle(
        towers, cold_items, data.schema, items, popularity, stage, seed, config.quick
    )


def list_items(data: InteractionsDataModule) -> pa.Table:
    """Return the items as they are served: repeat rates, and which are new or unlisted, too."""
    schema = data.schema
    items = data.catalogue.to_arrow()
    if schema.repeats == "allow":
        rates = data.trends.repeat_rate[-1]  # (N,)
        items = items.append_column("repeat_rate", pa.array(rates))

    if schema.has_datetime and IS_NEW not in items.column_names:
        is_new = find_new_items(data.sequences.events, len(items), schema.data_until)
        items = items.append_column(IS_NEW, pa.array(is_new))

    is_unlisted = data.catalogue.is_unlisted
    if is_unlisted.any():
        items = items.append_column(IS_UNLISTED, pa.array(is_unlisted))

    return items


def make_facts(
    config: Config, towers: Towers, data: InteractionsDataModule, epochs: int
) -> Facts:
    """Return the facts that only the run knows."""
    schema = data.schema
    counts = {
        "items": len(data.catalogue),
        "users": len(data.sequences.user_ids),
        "epochs": epochs,
    }
    declared = declare(config)
    del declared["trainer"]  # says nothing of the bundle
    libraries = {name: version(name) for name in LIBRARIES}
    neighbours = towers.neighbours
    popularity_dims = len(schema.popularity_days)
    similarity = towers.item_tower.similarity

    return Facts(
        similarity=similarity,
        popularity_dims=popularity_dims,
        counts=counts,
        libraries=libraries,
        data_until=schema.data_until,
        config=declared,
        neighbour_decay=neighbours.decay,
        neighbour_context_gain=neighbours.context_gain,
        variants=towers.variants,
    )


def find_new_items(events: Events, n_items: int, until: int) -> Flags:
    """Mark the items that were first seen in the last days of the data, (N,)."""
    first = np.full(n_items, until)
    np.minimum.at(first, events.item_row, events.time)
    return np.asarray((first < until) & (first >= until - NEW_DAYS * DAY))


def list_profiles(on_disk: OnDisk, schema: Schema) -> Iterator[Profiles]:
    """Yield the profiles of all users before the test, range by range."""
    counts = on_disk.counts["refit"]
    is_there = pd.Index(on_disk.user_ids).isin(on_disk.users["user_id"])
    is_there |= counts > 0

    for users, events in on_disk.tiles("refit"):
        user_ids = on_disk.user_ids[users][is_there[users]]
        features = profile_features(on_disk.users, user_ids, schema)
        history = History(**on_disk.read(events))
        ends = events.offsets[1:][is_there[users]]
        yield Profiles(user_ids, features, history, np.append(0, ends))


def write_segments(recommender: Recommender, stage: Stage, seed: int) -> Recommender:
    """Write the segments of the users if they are stable; each user as of their last event.

    Returns:
        a recommender that knows the segments.
    """
    schema = recommender.bundle.schema
    catalogue = recommender.catalogue
    profiles = recommender.profiles
    others = np.random.default_rng(seed).permutation(len(profiles))[MAX_USERS:]
    profiles = profiles.without(profiles.user_ids[others].tolist())
    requests = [{"user_id": user_id} for user_id in profiles.user_ids.tolist()]
    vectors = recommender.encode_users(requests)  # (U, W)

    table = catalogue.table
    columns = {}

    for feature in schema.item_features:
        if feature.vocabulary:
            columns[feature.column] = table.column(feature.column).to_pylist()

    rows = catalogue.item_ids.find(profiles.history.item_id)  # (E,)
    names = name_items(table, schema.item_features)
    traits = find_traits(profiles, rows, names, columns, schema)
    segments = find_segments(vectors, list(traits), seed)
    if segments is None:
        return recommender
    write_file(stage.path / SEGMENTS, segments.to_bytes())
    bundle = replace(recommender.bundle, segments=segments)
    return Recommender(bundle, recommender.profiles)
