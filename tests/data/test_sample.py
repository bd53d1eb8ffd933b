from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import clean
from datamodules.splits import split_interactions
from datamodules.tables import read_tables
from pipeline.config import SAMPLES, parse
from pipeline.run import run
from tests.benchmarks.library_world import make
from tests.data.test_config import load
from tests.http.services import asking
from tests.models.tiny_towers import one_thread
from tests.served import ask

CONFIG = load("grocery")
LIBRARY = parse(["--sample", "library"])[0].data
DEMOGRAPHICS, CONTENT = CONFIG.features.user, CONFIG.features.item


@pytest.fixture(scope="module")
def sample():
    return read_tables(CONFIG)


def test_all_records_of_the_sample_are_read(sample):
    tables, rejects = sample
    assert rejects.frame.empty
    assert rejects.records == {
        "interactions": 1_238_823,
        "users": 2_469,
        "items": 12_523,
    }
    assert rejects.dropped == {"interactions": ("store",), "users": (), "items": ()}
    assert list(tables.interactions) == ["user_id", "item_id", "datetime", "weight"]
    assert list(tables.users) == ["user_id", *DEMOGRAPHICS]
    assert list(tables.items) == ["item_id", *CONTENT]
    assert tables.interactions.dtypes[["user_id", "item_id", "datetime"]].eq("int64").all()
    assert tables.users["age"].notna().sum() == 801
    assert tables.interactions["datetime"].agg(["min", "max"]).tolist() == [
        1483271606,
        1514779280,
    ]


def test_the_figures_of_its_readme_hold(sample):
    tables, report = clean(sample[0])
    assert (
        report.duplicate_events,
        report.negative_weights,
        report.zero_weights_kept,
    ) == (6, 0, 7_610)
    split = split_interactions(sample[0].interactions, CONFIG, 0)
    assert len(split.refit) == 1_134_063
    assert len(split.test) == 104_760
    pairs = split.test[["user_id", "item_id"]].drop_duplicates()
    owned = split.refit[["user_id", "item_id"]].drop_duplicates()
    assert (len(pairs), pairs["user_id"].nunique()) == (89_106, 2_025)
    assert round(len(pairs.merge(owned)) / len(pairs), 3) == 0.488
    assert split.refit["item_id"].value_counts().min() >= 20
    assert (
        ~tables.interactions["item_id"].drop_duplicates().isin(tables.items["item_id"])
    ).sum() == 3


def test_all_records_of_the_library_are_read_and_the_samples_are_small():
    tables, rejects = read_tables(LIBRARY)
    assert rejects.frame.empty
    assert rejects.records == {"interactions": 34_515, "users": 1_400, "items": 1_400}
    _, report = clean(tables)
    assert (report.duplicate_events, report.negative_weights) == (0, 0)
    assert not tables.interactions.duplicated(["user_id", "item_id"]).any()
    assert not tables.interactions.duplicated(["user_id", "datetime"]).any()
    split = split_interactions(tables.interactions, LIBRARY, 0)
    assert len(split.test) == split.test["user_id"].nunique() == 1_400
    assert set(tables.interactions["item_id"]) <= set(tables.items["item_id"])
    assert 0.1 < tables.users["age"].isna().mean() < 0.15
    sizes = [path.stat().st_size for path in SAMPLES["library"].glob("*.parquet")]
    assert len(sizes) == 3
    assert sum(sizes) <= 300_000


@pytest.mark.slow
def test_the_library_is_what_its_script_draws_and_its_truth_is_a_distribution():
    world, drawn = make()
    for name, frame in drawn.items():
        kept = pd.read_parquet(SAMPLES["library"] / f"{name}.parquet")
        assert len(kept) > 1000
        for column in frame:
            expected = frame[column]
            if pd.api.types.is_datetime64_any_dtype(expected):
                moments = pd.to_datetime(kept[column], utc=True).dt.tz_localize(None)
                assert (moments == expected).all()
            else:
                assert kept[column].fillna("").tolist() == expected.fillna("").tolist()
    day = 400.0
    is_there = world.bought_on_day <= day
    has_next = (world.next_volume >= 0) & is_there[world.next_volume]
    with_next = int(np.flatnonzero(has_next)[0])
    chances = world.probabilities(3, [1399, with_next], day)
    assert chances.sum() == pytest.approx(1)
    assert (chances[[1399, with_next]] == 0).all()
    assert (chances[~is_there] == 0).all()
    assert 0.1 < is_there.mean() < 0.95
    assert chances.argmax() == world.next_volume[with_next]


@pytest.mark.slow
def test_what_the_demo_promises_holds_where_nothing_is_bought_twice(tmp_path):
    words = ["--sample=library", "--quick", "--evaluation.baselines=[popularity]"]
    words += ["--trainer.enable_progress_bar=false", f"--out={tmp_path / 'run'}"]
    config, text = parse(words)
    with one_thread():
        done = run(config, text=text)
    novel = {name: views["novel"]["NDCG@10"] for name, views in done.metrics["test"].items()}
    assert novel["bascule"] > 5 * novel["popularity"]

    items = pd.read_parquet(SAMPLES["library"] / "items.parquet").set_index("item_id")
    series = items[items["series"].notna() & (items["acquired"].astype(str) < "2024")]
    is_volume = series["series"].eq(series["series"].shift(-1))
    volumes = series.index[is_volume][::10]
    following = series.index[is_volume.shift(1, fill_value=False)][::10]
    assert len(volumes) == len(following) > 30
    with asking(done.bundle) as app:
        asked = {"requests": [{"history": [volume]} for volume in volumes], "k": 5}
        answers = ask(app, "POST", "/v1/recommend", asked).json["answers"]
        lists = [[item["item_id"] for item in answer["items"]] for answer in answers]
        pairs = zip(following, lists, strict=True)
        assert np.mean([volume in listed for volume, listed in pairs]) > 0.8
        explained = {"history": [volumes[0]], "k": 1, "explain": True}
        (item,) = ask(app, "POST", "/v1/recommend", explained).json["answers"][0]["items"]
        assert item["name"] == items.loc[item["item_id"], "title"]
        assert item["reasons"][0]["item_id"] == volumes[0]

        is_alike = []
        for volume in volumes:
            near = ask(app, "POST", "/v1/similar", {"item_id": volume, "k": 5}).json["items"]
            genres = items.loc[[item["item_id"] for item in near], "genre"]
            is_alike += genres.eq(items.loc[volume, "genre"]).tolist()
        assert np.mean(is_alike) > 0.6  # by chance .08
        assert ask(app, "GET", "/").status == 200
        known = ask(app, "GET", "/v1/page").json
        assert (known["names"], known["known_users"]) == (["title"], 1_400)
        due = ask(app, "POST", "/v1/due", {"user_id": "r0003", "k": 3}).json
        assert due["items"] == []
        assert due["reason"]  # nothing is due where nothing is taken again
