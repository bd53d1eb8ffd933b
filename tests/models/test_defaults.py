from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.cold_items import NEIGHBOUR_SHARE
from models.config import ModelConfig, Recipe
from models.defaults import (
    LONG_HISTORY,
    MANY_EVENTS,
    MANY_ITEMS,
    MANY_ITEMS_OF_LONG,
    MANY_ITEMS_OF_REQUESTS,
    MAX_EPOCHS,
    MAX_WEIGHTS_OF_LARGE,
    MIN_EPOCHS,
    MIN_NEIGHBOURS,
    DataCounts,
    choose_recipe,
)
from serve.errors import SchemaError

SHORT = DataCounts(
    n_examples=20_000,
    n_items=MANY_ITEMS + 1,
    n_events=170_000,
    mean_history=8.5,
    is_set=False,
    is_repeated=False,
    is_ordered=True,
    has_content=True,
    has_context=False,
)
LONG = replace(
    SHORT,
    n_examples=900,
    n_items=1_700,
    n_events=99_000,
    mean_history=LONG_HISTORY + 66.0,
)
SET = replace(SHORT, is_set=True, is_ordered=False)
CONTEXT = replace(SET, has_context=True)
REPEATED = replace(SHORT, n_examples=2_000, is_repeated=True, is_ordered=False, has_horizon=True)
BASKETS = replace(SHORT, is_ordered=False)
CHOSEN = {
    "short": (
        SHORT,
        Recipe(96, 1, 0.5, 0.1, "cosine", 64, 1024, 2e-3, 128, 14, 8, 1, 200, None, 1),
    ),
    "long": (LONG, Recipe(96, 2, 0.3, 0.0, "cosine", 64, 0, 2e-3, 64, 24, 8, 2, 50, None, 5)),
    "set": (SET, Recipe(128, 0, 0.5, 0.0, "dot", 1024, 0, 1e-3, 128, 4, 3, 1, 10, None, 2)),
    "context": (
        CONTEXT,
        Recipe(48, 0, 0.5, 0.0, "dot", 1024, 0, 1e-3, 128, 4, 3, 1, 10, None, 2),
    ),
    "repeated": (
        REPEATED,
        Recipe(64, 1, 0.2, 0.1, "dot", 64, 0, 5e-4, 256, 8, 3, 1, 10, None, 5),
    ),
}
"""The choices when their numbers were measured: a change of one is meant, or it is a slip."""
GIVEN = ModelConfig(24, 3, 0.13, 0.17, "cosine", 0, 19, 0.0123, 29, 31, 11, 37, 7)
KEYS = [field.name for field in fields(ModelConfig)]
counts_of_data = st.builds(
    DataCounts,
    n_examples=st.integers(1, 10**7),
    n_items=st.integers(1, 10**7),
    n_events=st.integers(1, 10**9),
    mean_history=st.floats(1, 10**4),
    is_set=st.booleans(),
    is_repeated=st.booleans(),
    is_ordered=st.booleans(),
    has_content=st.booleans(),
    has_context=st.booleans(),
)


def choose(counts: DataCounts, **given_values) -> Recipe:
    return choose_recipe(ModelConfig(**given_values), counts)[0]


@pytest.mark.parametrize("name", CHOSEN)
def test_each_kind_of_data_gets_the_recipe_that_was_measured(name):
    counts, expected = CHOSEN[name]
    assert choose(counts) == expected


def test_new_items_stand_near_items_like_them_as_was_measured():
    assert NEIGHBOUR_SHARE == 0.6


@given(counts=counts_of_data, names=st.sets(st.sampled_from(KEYS)))
@settings(max_examples=80, deadline=None)
def test_given_keys_stay_and_the_others_are_chosen_with_a_reason(counts, names):
    kept = {name: getattr(GIVEN, name) for name in names}
    recipe, choices = choose_recipe(ModelConfig(**kept), counts)
    assert {choice.name for choice in choices} == set(KEYS) - {"table_rows"} - kept.keys()
    assert all(choice.reason for choice in choices)
    chosen = {choice.name: choice.value for choice in choices}
    assert asdict(recipe.to_config()) == {"table_rows": None} | chosen | kept
    assert choose_recipe(recipe.to_config(), counts) == (
        recipe,
        [],
    )  # a complete configuration repeats the run


@given(counts=counts_of_data)
@settings(max_examples=80, deadline=None)
def test_negatives_are_sampled_where_items_are_many_and_no_memory_is_trained(counts):
    of_windows = (
        MANY_ITEMS_OF_LONG if counts.is_long and counts.n_events >= MANY_EVENTS else MANY_ITEMS
    )
    many = of_windows if counts.is_ordered else MANY_ITEMS_OF_REQUESTS
    assert (choose(counts).negatives > 0) == (not counts.is_repeated and counts.n_items > many)


@given(counts=counts_of_data)
@settings(max_examples=80, deadline=None)
def test_the_rate_is_up_before_a_quarter_of_the_training_is_over(counts):
    recipe = choose(counts)
    n_batches = -(-counts.n_examples // recipe.batch_size)
    assert recipe.warmup_steps <= max(1, recipe.max_epochs * n_batches / 4)


def test_fewer_events_and_longer_histories_are_shown_more_often():
    epochs = [
        choose(replace(SHORT, n_events=n)).max_epochs
        for n in (10**4, 10**5, 2 * 10**5, 10**6, 10**8)
    ]
    assert epochs == sorted(epochs, reverse=True)
    of_long = [
        choose(replace(LONG, n_events=n)).max_epochs for n in (456_000, 10**6, 16 * 10**5, 10**8)
    ]
    assert of_long == [MAX_EPOCHS, MAX_EPOCHS, 15, MIN_EPOCHS]


def test_large_catalogues_have_neighbours_whose_number_falls_without_a_jump():
    for counts, _ in CHOSEN.values():
        sizes = [10**4 * step for step in range(2, 1000)]
        numbers = [choose(replace(counts, n_items=n)).neighbours for n in sizes]
        if not choose(counts).neighbours:
            assert set(numbers) == {0}
            continue
        assert min(numbers) == MIN_NEIGHBOURS
        for n, before, after in zip(sizes[1:], numbers[:-1], numbers[1:], strict=True):
            assert after * n <= max(MAX_WEIGHTS_OF_LARGE, MIN_NEIGHBOURS * n)
            assert after <= before <= 1.5 * after + 1


def test_baskets_have_no_neighbours():
    assert choose(BASKETS).neighbours == 0
    with pytest.raises(
        SchemaError,
        match=r"model.neighbours is 5; allowed where data.ties is simultaneous: 0",
    ):
        choose(BASKETS, neighbours=5)


@pytest.mark.parametrize(
    "values",
    [
        {"dim": 0},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": 0.0},
        {"patience": 0},
    ],
)
def test_values_that_train_nothing_are_refused(values):
    (name,) = values
    with pytest.raises(SchemaError, match=f"model.{name} is .*; allowed: "):
        ModelConfig(**values)


@given(counts=counts_of_data, dim=st.integers(1, 300))
@settings(max_examples=80, deadline=None)
def test_heads_divide_any_dim(counts, dim):
    assert dim % choose(counts, dim=dim).n_heads == 0


@pytest.mark.parametrize(("n_users", "epochs"), [(1_000, 24), (2_000, 20), (4_000, 10), (9_000, 8)])
def test_single_baskets_are_shown_more_often_than_what_follows_a_moment(n_users, epochs):
    of_baskets = replace(REPEATED, n_examples=n_users, has_horizon=False)
    assert choose(of_baskets).max_epochs == epochs
    assert choose(replace(of_baskets, has_horizon=True)).max_epochs <= epochs
