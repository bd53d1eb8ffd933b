"""Variants of a thing are told by what people take, and few of them are listed where that costs little."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from models.variants import choose_variants
from serve.kinds import Feature

N, N_THINGS, N_EVENTS = 240, 60, 4000


@pytest.fixture
def data():
    """Make items of four variants each, whose size is shared by unlike things, and users who keep to a few things."""
    rng = np.random.default_rng(0)
    things = np.arange(N) % N_THINGS
    table = pd.DataFrame(
        {
            "thing": [f"t{thing}" for thing in things],
            "size": [f"s{size}" for size in rng.integers(40, size=N)],
            "aisle": [f"a{thing % 3}" for thing in things],
            "code": np.arange(N).astype(str),
        }
    )
    features = [Feature(name, "categorical", name, ()) for name in table]
    thing = np.repeat(rng.integers(N_THINGS, size=N_EVENTS // 4), 4)
    taken = thing + N_THINGS * rng.integers(4, size=N_EVENTS)
    return SimpleNamespace(
        catalogue=SimpleNamespace(table=table, item_features=features),
        sequences=SimpleNamespace(events=SimpleNamespace(item_row=taken)),
    )


def rank_as(ndcg_by_most):
    def rank(validation):
        most = None if validation.limit is None else validation.limit.most
        if most is not None:  # variants alone share a code
            codes = validation.limit.codes.numpy()
            assert (codes[:N_THINGS] == codes[N_THINGS : 2 * N_THINGS]).all()
            assert len(set(codes.tolist())) == N_THINGS
        return {"novel": np.full(50, ndcg_by_most[most])}

    return rank


@pytest.mark.parametrize(
    ("losses", "most"),
    [((0.0, 0.0, 0.0), 1), ((0.05, 0.009, 0.0), 2), ((0.05, 0.011, 0.001), 3), ((0.05,) * 3, None)],
)
def test_as_few_variants_are_listed_as_cost_under_a_hundredth(data, losses, most):
    ndcg = {None: 0.4} | {place: 0.4 * (1 - loss) for place, loss in enumerate(losses, 1)}
    validation = SimpleNamespace(limit=None, depth=20)
    chosen = choose_variants(validation, data, rank_as(ndcg))
    assert (validation.limit, validation.depth) == (None, 20)
    if most is None:
        assert chosen == {}
    else:
        assert (chosen["column"], chosen["most"]) == ("thing", most)
        assert (chosen["without"], chosen["ndcg"]) == pytest.approx((0.4, ndcg[most]))


def test_without_a_fine_category_nothing_is_limited(data):
    data.catalogue.item_features = [
        feature for feature in data.catalogue.item_features if feature.name in ("aisle", "code")
    ]
    assert choose_variants(SimpleNamespace(limit=None), data, None) == {}
