"""A bundle of many items holds a coarse index, and is refused once that finds less than at the export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pipeline.coarse_index import fit_coarse
from serve.arrays import Floats
from serve.bundle import Bundle
from serve.errors import BundleError
from serve.index import ItemIndex, Query, measure_items
from serve.nearest import CoarseIndex, IndexFacts
from service.publish import Stage, publish
from tests import tiny_bundle
from tests.core.test_hostile_bundle import hash_again

from pipeline import coarse_index

N, W = 2000, tiny_bundle.D
USERS: Floats = np.random.default_rng(1).standard_normal((64, W), np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse")
    with pytest.MonkeyPatch.context() as patch, Stage.open(folder) as stage:
        patch.setattr(tiny_bundle, "N", N)
        vectors = tiny_bundle.tiny_vectors(3)
        coarse = CoarseIndex.build(vectors, 64)
        coarse.n_probes = 12
        index = IndexFacts("IVF64,SQ8", 12, 0.9, 0.91, 64, measure_items(vectors, coarse))
        patch.setattr(tiny_bundle, "FACTS", replace(tiny_bundle.FACTS, index=index))
        coarse.content.tofile(stage.path / "coarse.faiss")
        tiny_bundle.complete_stage(stage, 3)
        return publish(stage.prepare(tiny_bundle.FACTS, tiny_bundle.METRICS)).path


def test_a_bundle_comes_back_with_its_index(bundle):
    loaded = Bundle.load(bundle)
    content = (bundle / "coarse.faiss").read_bytes()
    assert loaded.index.coarse.content.tobytes() == content
    assert loaded.index.coarse.n_probes == 12
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert loaded.manifest.facts.index == IndexFacts(**manifest["index"])
    assert loaded.manifest.to_bytes() == (bundle / "manifest.json").read_bytes()

    _, rows = loaded.index.search(Query(USERS), 100)
    exact = (-(USERS.astype(np.float64) @ loaded.vectors.T)).argsort(axis=1)[:, :100]
    pairs = zip(rows.tolist(), exact.tolist(), strict=True)
    recall = np.mean([len({*found} & {*best}) / 100 for found, best in pairs])
    assert loaded.index.measure_recall(Query(USERS)) == pytest.approx(recall, abs=1e-3)
    assert 0.6 < recall < 1


def of_other_vectors(folder):
    vectors = np.random.default_rng(9).standard_normal((N, W), np.float32)
    CoarseIndex.build(vectors, 64).content.tofile(folder / "coarse.faiss")


def of_fewer_items(folder):
    vectors = Bundle.load(folder).vectors[:-1]
    CoarseIndex.build(vectors, 64).content.tofile(folder / "coarse.faiss")


def cut(folder):
    content = (folder / "coarse.faiss").read_bytes()
    (folder / "coarse.faiss").write_bytes(content[:-100])


def missing(folder):
    (folder / "coarse.faiss").unlink()


@pytest.mark.parametrize("spoil", [of_other_vectors, of_fewer_items, cut, missing])
def test_another_index_is_refused_though_its_hash_fits(bundle, tmp_path, spoil):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    hash_again(folder)
    Bundle.load(folder)
    spoil(folder)
    hash_again(folder)
    with pytest.raises(BundleError, match=r"coarse\.faiss"):
        Bundle.load(folder)


@pytest.mark.parametrize("change", [{"n_probes": 6}, {"n_probes": 0}, {"recall": "1"}, {"k": 3}])
def test_less_effort_than_that_of_the_export_is_refused(bundle, tmp_path, change):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    index = json.loads((folder / "manifest.json").read_bytes())["index"]
    hash_again(folder, index=index | change)
    with pytest.raises(BundleError):
        Bundle.load(folder)


# ---- the export


def shop(n_items=4000, n_users=300):
    """Return what stands for a recommender: users look mostly along two of 12 directions."""
    rng = np.random.default_rng(5)
    spread = np.append([3.0, 2.0], np.full(10, 0.5))
    vectors = rng.standard_normal((n_items, 12), np.float32)
    users = (rng.standard_normal((n_users, 12)) * spread).astype(np.float32)

    def queries(requests, view):
        rows = [request["user_id"] for request in requests]
        terms = np.arange(len(rows)), rng.integers(n_items, size=len(rows)), np.ones(len(rows))
        yield Query(users[rows], added=terms)

    return SimpleNamespace(
        bundle=SimpleNamespace(vectors=vectors, index=ItemIndex(vectors)),
        profiles=np.arange(n_users).view(Users),
        queries=queries,
    )


class Users(np.ndarray):
    user_ids = property(np.asarray)


@pytest.mark.parametrize("target", [0.8, 0.98])
def test_the_export_finds_the_recall_for_users_that_it_did_not_see(monkeypatch, target):
    monkeypatch.setattr(coarse_index, "MIN_ITEMS", 4000)
    recommender = shop()
    facts, coarse = fit_coarse(recommender, target)
    asked = coarse_index.ask(recommender, np.arange(300))
    index = ItemIndex(recommender.bundle.vectors, None, coarse)
    assert index.measure_recall(asked) == pytest.approx(facts.recall, abs=0.02)
    assert target - 0.01 <= facts.recall <= 1
    assert (facts.target, facts.users) == (target, 150)
    assert facts.n_probes == coarse.n_probes < coarse.n_lists == 256
    coarse.n_probes //= 2
    assert index.measure_recall(asked) < target


@pytest.mark.parametrize(
    ("n_items", "n_users", "target"), [(3999, 300, 0.9), (4000, 1, 0.9), (4000, 300, 1)]
)
def test_few_items_or_users_or_a_recall_of_1_need_no_index(monkeypatch, n_items, n_users, target):
    monkeypatch.setattr(coarse_index, "MIN_ITEMS", 4000)
    assert fit_coarse(shop(n_items, n_users), target) is None
