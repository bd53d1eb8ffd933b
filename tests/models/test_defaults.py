from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ModelConfig, Recipe, recipe_of
from models.defaults import (
    FEWEST_EPOCHS,
    FOLLOWING,
    FROZEN_DIM,
    ITEMS_OF_A_FACTOR,
    LONG_HISTORY,
    LOW_PASS,
    MANY_EVENTS,
    MANY_ITEMS,
    MANY_ITEMS_OF_LONG,
    MANY_ITEMS_OF_REQUESTS,
    MOST_BLENDED,
    MOST_EPOCHS,
    MOST_FACTORISED_OF_SETS,
    MOST_FROZEN,
    NEIGHBOURS,
    RULES,
    TRAINED_DIM,
    USERS_OF_A_FACTOR,
    WELL_KNOWN,
    DataCounts,
    choose_recipe,
)
from serve.errors import SchemaError

NAMES = [field.name for field in fields(Recipe)]
SHORT = DataCounts(
    n_examples=20_000,
    n_users=20_000,
    n_items=MANY_ITEMS + 1,
    n_events=170_000,
    mean_history=8.5,
    is_set=False,
    is_repeated=False,
    trains_on_windows=True,
    has_content=True,
    has_context=False,
    has_demographics=False,
)
LONG = replace(
    SHORT,
    n_examples=900,
    n_users=900,
    n_items=1_700,
    n_events=99_000,
    mean_history=LONG_HISTORY + 66.0,
)
SET = replace(SHORT, is_set=True, trains_on_windows=False, has_context=True)
SET_OF_MANY = replace(SET, has_context=False)
SET_OF_FEW = replace(SET_OF_MANY, n_users=900, has_demographics=True)
REPEATED = replace(SHORT, n_examples=2_000, is_repeated=True, trains_on_windows=False)
FAMILIES = {
    "short": SHORT,
    "long": LONG,
    "set": SET,
    "set of many": SET_OF_MANY,
    "set of few": SET_OF_FEW,
    "repeated": REPEATED,
}
CHOSEN = {
    "short": Recipe(96, 1, 1, 0.5, 0.1, "cosine", 0, 64, 256, True, False, 1024, 2e-3, 200, 128, 16, 8),
    "long": Recipe(96, 2, 2, 0.3, 0.0, "cosine", 0, 64, 256, False, False, 0, 2e-3, 50, 64, 24, 8),
    "set": Recipe(48, 0, 1, 0.5, 0.0, "dot", 128, 0, 256, False, False, 0, 1e-3, 10, 128, 4, 3),
    "set of many": Recipe(128, 0, 1, 0.7, 0.1, "cosine", 0, 1024, 256, True, False, 0, 1e-3, 158, 256, 8, 3),
    "set of few": Recipe(384, 0, 1, 0.1, 0.0, "dot", 0, 0, 256, False, True, 0, 1e-3, 10, 128, 4, 3),
    "repeated": Recipe(64, 1, 1, 0.2, 0.1, "dot", 128, 0, 0, False, False, 0, 5e-4, 10, 256, 8, 3),
}
"""What the rules gave when their numbers were measured: a change of one is meant, or it is a slip."""
GIVEN = ModelConfig(
    dim=24,
    n_blocks=3,
    n_heads=6,
    dropout=0.13,
    id_dropout=0.17,
    similarity="cosine",
    correlations=17,
    neighbours=0,
    low_pass=23,
    shrink_items=False,
    freeze_items=True,
    negatives=19,
    learning_rate=0.0123,
    warmup_steps=7,
    batch_size=29,
    max_epochs=31,
    patience=11,
    temperature=0.21,
)
counts_of_data = st.builds(
    DataCounts,
    n_examples=st.integers(1, 10**7),
    n_users=st.integers(1, 10**7),
    n_items=st.integers(1, 10**7),
    n_events=st.integers(1, 10**9),
    mean_history=st.floats(1, 10**4),
    is_set=st.booleans(),
    is_repeated=st.booleans(),
    trains_on_windows=st.booleans(),
    has_content=st.booleans(),
    has_context=st.booleans(),
    has_demographics=st.booleans(),
)


def given_for(counts: DataCounts) -> ModelConfig:
    """Give every field, each another value than data choose where another one is allowed."""
    given = replace(GIVEN, correlations=0) if counts.is_ordered else GIVEN
    return replace(given, low_pass=0) if counts.is_repeated else given


def choose(counts: DataCounts, **given_values) -> Recipe:
    return choose_recipe(ModelConfig(**given_values), counts)[0]


@pytest.fixture(params=FAMILIES)
def counts(request):
    return FAMILIES[request.param]


@pytest.mark.parametrize("name", CHOSEN)
def test_each_kind_of_data_gets_what_was_measured_to_suit_it(name):
    assert choose(FAMILIES[name]) == CHOSEN[name]


def test_the_size_of_repeats_does_not_grow_with_their_histories():
    long = choose(replace(REPEATED, mean_history=LONG_HISTORY + 66.0))
    assert (long.n_blocks, long.n_heads, long.dropout) == (1, 1, CHOSEN["repeated"].dropout)


def test_a_batch_holds_fewer_long_histories_than_short_ones_of_as_many_users():
    assert choose(replace(LONG, n_examples=SHORT.n_examples)).batch_size == 64 < CHOSEN["short"].batch_size


@pytest.mark.parametrize(("counts", "most"), [(SET, MOST_FACTORISED_OF_SETS), (REPEATED, MOST_BLENDED)])
def test_items_that_nobody_took_make_vectors_too_many_to_be_longer(counts, most):
    at_most = replace(counts, n_untaken=most - counts.n_items)
    assert choose(at_most).correlations > 0
    assert choose(replace(at_most, n_untaken=at_most.n_untaken + 1)).correlations == 0


def test_every_open_field_of_a_configuration_has_a_rule():
    is_open = [field.name for field in fields(ModelConfig) if field.default is None]
    assert sorted(RULES) == sorted(is_open) == sorted(NAMES)


def test_what_is_given_stays(counts):
    recipe, choices = choose_recipe(given_for(counts), counts)
    assert recipe == recipe_of(given_for(counts))
    assert choices == []


def test_what_is_left_open_is_chosen_with_a_reason(counts):
    recipe, choices = choose_recipe(ModelConfig(), counts)
    assert [choice.name for choice in choices] == list(RULES)
    assert {choice.name: choice.value for choice in choices} == asdict(recipe)
    assert all(choice.reason for choice in choices)


@given(counts=counts_of_data, names=st.sets(st.sampled_from(NAMES)))
@settings(max_examples=80, deadline=None)
def test_a_recipe_is_what_was_given_and_what_was_chosen(counts, names):
    kept = {name: getattr(given_for(counts), name) for name in names}
    recipe, choices = choose_recipe(ModelConfig(**kept), counts)
    assert {choice.name for choice in choices} == set(NAMES) - kept.keys()
    assert asdict(recipe) == kept | {choice.name: choice.value for choice in choices}
    whole = ModelConfig(**asdict(recipe))  # its checks hold for whatever is chosen
    assert choose_recipe(whole, counts) == (recipe, [])


@given(counts=counts_of_data, dim=st.integers(1, 300))
@settings(max_examples=80, deadline=None)
def test_heads_divide_any_dim(counts, dim):
    recipe, choices = choose_recipe(ModelConfig(dim=dim), counts)
    assert recipe.dim == dim
    assert dim % recipe.n_heads == 0
    (heads,) = [choice for choice in choices if choice.name == "n_heads"]
    assert heads.value == recipe.n_heads


@given(counts=counts_of_data, n_heads=st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_a_number_of_heads_that_was_given_stays_and_divides_dim(counts, n_heads):
    recipe, choices = choose_recipe(ModelConfig(n_heads=n_heads), counts)
    assert recipe.n_heads == n_heads
    assert recipe.dim % n_heads == 0
    assert "n_heads" not in {choice.name for choice in choices}
    assert choose(counts).dim <= recipe.dim < choose(counts).dim + n_heads


def test_heads_that_do_not_divide_are_replaced_and_the_reason_says_so():
    assert choose(LONG).n_heads == 2
    _, choices = choose_recipe(ModelConfig(dim=33), LONG)
    (heads,) = [choice for choice in choices if choice.name == "n_heads"]
    assert (heads.value, heads.reason) == (1, "divides 33 entries")


@given(counts=counts_of_data)
@settings(max_examples=80, deadline=None)
def test_targets_are_told_from_a_sample_where_items_are_many_and_repeats_are_not_learned(counts):
    recipe = choose(counts)
    of_windows = MANY_ITEMS_OF_LONG if counts.is_long and counts.n_events >= MANY_EVENTS else MANY_ITEMS
    many = of_windows if counts.trains_on_windows else MANY_ITEMS_OF_REQUESTS
    assert (recipe.negatives > 0) == (not counts.is_repeated and counts.n_items > many)


@given(counts=counts_of_data)
@settings(max_examples=80, deadline=None)
def test_sets_alone_have_no_blocks(counts):
    assert choose(replace(counts, is_set=True)).n_blocks == 0
    assert choose(replace(counts, is_set=False)).n_blocks >= 1


@given(counts=counts_of_data)
@settings(max_examples=80, deadline=None)
def test_the_rate_is_up_before_a_quarter_of_the_training_is_over(counts):
    recipe = choose(counts)
    n_batches = -(-counts.n_examples // recipe.batch_size)
    assert recipe.warmup_steps <= max(1, recipe.max_epochs * n_batches / 4)


def test_a_warmup_that_was_given_is_kept_however_short_the_training():
    assert choose(replace(SHORT, n_examples=3, n_events=40), warmup_steps=777).warmup_steps == 777


def test_no_item_without_content_loses_its_id_part(counts):
    assert choose(replace(counts, has_content=False)).id_dropout == 0


@given(counts=counts_of_data, fewer=st.integers(1, 2 * MOST_FROZEN), more=st.integers(2 * MOST_FROZEN, 10**7))
@settings(max_examples=80, deadline=None)
def test_items_of_a_set_are_frozen_where_the_fewer_of_users_and_items_are_few(counts, fewer, more):
    bare = replace(counts, is_set=True, has_context=False, is_repeated=False, trains_on_windows=False)
    for n_users, n_items in ((fewer, more), (more, fewer)):
        recipe = choose(replace(bare, n_users=n_users, n_items=n_items))
        assert recipe.freeze_items == (fewer <= MOST_FROZEN)
        assert recipe.similarity == ("dot" if recipe.freeze_items else "cosine")
        assert recipe.dropout < 0.5 or not recipe.freeze_items
    for other in (replace(bare, is_set=False), replace(bare, has_context=True), replace(bare, is_repeated=True)):
        assert not choose(replace(other, n_users=fewer, n_items=fewer)).freeze_items


@pytest.mark.parametrize(("fewer", "is_frozen"), [(MOST_FROZEN, True), (MOST_FROZEN + 1, False)])
def test_the_reason_for_frozen_items_names_what_is_few(fewer, is_frozen):
    counts = replace(SET_OF_MANY, n_users=fewer, n_items=2 * fewer)
    (choice,) = [one for one in choose_recipe(ModelConfig(), counts)[1] if one.name == "freeze_items"]
    assert choice.value is is_frozen
    assert choice.reason.startswith(f"{fewer:,} users: correlations of a low rank ")


def test_a_start_that_is_trained_is_trained_long_with_much_dropout_and_a_frozen_one_hardly():
    trained, frozen = choose(SET_OF_MANY), choose(SET_OF_FEW)
    assert trained.dropout > choose(SET).dropout > frozen.dropout
    assert trained.max_epochs > frozen.max_epochs
    assert trained.batch_size > frozen.batch_size
    assert trained.warmup_steps > frozen.warmup_steps


def test_items_that_a_configuration_freezes_or_trains_have_the_rest_chosen_around_them():
    of_as_many = replace(SET_OF_MANY, has_demographics=True)
    assert choose(of_as_many, freeze_items=True) == choose(SET_OF_FEW)
    assert choose(SET_OF_FEW, freeze_items=False) == choose(of_as_many)


def test_frozen_items_have_many_factors_where_there_are_many_of_them():
    n_items, n_users = FROZEN_DIM * ITEMS_OF_A_FACTOR, FROZEN_DIM * USERS_OF_A_FACTOR
    least = replace(SET_OF_FEW, n_items=n_items, n_users=n_users)
    most = replace(SET_OF_FEW, n_items=MOST_FACTORISED_OF_SETS)
    assert {choose(counts).dim for counts in (SET_OF_FEW, least, most)} == {FROZEN_DIM}
    others = (
        replace(least, n_items=n_items - 1),
        replace(least, n_users=n_users - 1),
        replace(most, n_items=MOST_FACTORISED_OF_SETS + 1),
        SET_OF_MANY,
    )
    assert {choose(counts).dim for counts in others} == {TRAINED_DIM}


def test_a_frozen_set_is_looked_at_once_where_nothing_is_known_of_its_users():
    assert choose(replace(SET_OF_FEW, has_demographics=False)).max_epochs == 1 < choose(SET_OF_FEW).max_epochs
    assert choose(replace(SET_OF_MANY, has_demographics=True)) == choose(SET_OF_MANY)


def test_a_set_with_blocks_does_not_start_from_correlations():
    with_blocks = choose(SET_OF_MANY, n_blocks=1)
    assert not with_blocks.freeze_items
    assert with_blocks == replace(choose(SET), n_blocks=1)


@pytest.mark.parametrize("counts", FAMILIES.values(), ids=FAMILIES)
def test_many_events_need_less_dropout_where_they_have_an_order_or_a_start_is_trained(counts):
    few, many = (choose(replace(counts, n_events=n)).dropout for n in (MANY_EVENTS - 1, MANY_EVENTS))
    assert few == choose(counts).dropout
    needs_less = counts.is_ordered or counts.trains_correlations
    assert (few > many > 0) if needs_less else (few == many)


def test_long_histories_get_more_blocks_and_less_dropout():
    long, short = choose(LONG), choose(SHORT)
    assert long.n_blocks > short.n_blocks
    assert long.dropout < short.dropout
    at_the_limit = replace(SHORT, mean_history=float(LONG_HISTORY))
    assert choose(at_the_limit).n_blocks == short.n_blocks


@pytest.mark.parametrize(
    ("n_items", "negatives"), [(MANY_ITEMS, 0), (MANY_ITEMS + 1, 2048), (6_606, 2048), (20_000, 8192), (10**6, 8192)]
)
def test_long_histories_are_told_from_a_share_of_the_items_and_short_ones_from_as_many_of_any_catalogue(
    n_items, negatives
):
    assert choose(replace(LONG, n_items=n_items)).negatives == negatives
    assert choose(replace(LONG, n_untaken=n_items - LONG.n_items)).negatives == negatives
    assert choose(replace(SHORT, n_items=n_items)).negatives == (1024 if negatives else 0)


def test_many_events_of_long_histories_are_told_from_a_sample_of_fewer_items_and_shown_less_often():
    much = replace(LONG, n_events=MANY_EVENTS, n_items=MANY_ITEMS_OF_LONG + 1)
    assert choose(much).negatives == 1024
    assert not choose(replace(much, n_items=MANY_ITEMS_OF_LONG)).negatives
    assert not choose(replace(much, n_events=MANY_EVENTS - 1)).negatives
    assert not choose(replace(much, mean_history=float(LONG_HISTORY))).negatives
    epochs = [choose(replace(LONG, n_events=n)).max_epochs for n in (456_000, 10**6, 16 * 10**5, 10**8)]
    assert epochs == [MOST_EPOCHS, MOST_EPOCHS, 15, FEWEST_EPOCHS]


def test_contexts_repeats_and_frozen_sets_are_scored_by_the_inner_product_and_what_else_is_trained_by_cosine():
    assert {choose(one).similarity for one in (SET, SET_OF_FEW, REPEATED)} == {"dot"}
    assert {choose(one).similarity for one in (SHORT, SET_OF_MANY)} == {"cosine"}


def test_fewer_events_are_looked_at_more_often():
    epochs = [choose(replace(SHORT, n_events=n)).max_epochs for n in (10**4, 10**5, 2 * 10**5, 10**6, 10**8)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1] >= 1


def test_many_events_of_few_users_are_looked_at_more_often_than_as_many_of_many():
    few, many = (choose(replace(family, n_events=10**6)).max_epochs for family in (LONG, SHORT))
    assert few > many


def test_fewer_timelines_are_cut_in_smaller_batches_and_more_often():
    """In 8 epochs of 2 batches a memory is hardly trained."""
    many, few = (choose_recipe(ModelConfig(), replace(REPEATED, n_examples=n))[0] for n in (2_025, 500))
    assert (many.batch_size, many.max_epochs, many.patience) == (256, 8, 3)
    assert (few.batch_size, few.max_epochs, few.patience) == (64, 24, 8)


def test_the_reasons_name_what_the_data_has():
    said = {name: {choice.reason for choice in choose_recipe(ModelConfig(), c)[1]} for name, c in FAMILIES.items()}
    assert "events have no order" in said["set"]
    assert "items are consumed again" in said["repeated"]
    assert "106 events a user" in said["long"]
    assert any(reason.startswith(f"{MANY_ITEMS + 1:,} items") for reason in said["short"])


def test_correlations_are_blended_in_but_where_events_have_an_order_or_items_start_from_them():
    families = {name: choose(family).correlations for name, family in FAMILIES.items()}
    assert {name for name, n in families.items() if n} == {"set", "repeated"}
    neighbours = {name: choose(family).neighbours for name, family in FAMILIES.items()}
    assert {name for name, n in neighbours.items() if n} == {"set of many", "short", "long"}  # pair by pair


def test_correlations_are_blended_in_one_way():
    assert choose(SET_OF_MANY).neighbours == NEIGHBOURS
    assert choose(SHORT).neighbours == FOLLOWING
    for n_factors in (256, 0):  # a run of before there were neighbours is repeated as it was
        given = choose(SET_OF_MANY, correlations=n_factors)
        assert (given.correlations, given.neighbours) == (n_factors, 0)
    told = choose(SET, neighbours=5)  # asked for
    assert (told.correlations, told.neighbours) == (0, 5)
    with pytest.raises(SchemaError, match="allowed: one of them"):
        ModelConfig(correlations=1, neighbours=1)


def test_items_that_stay_at_their_correlations_have_neighbours_where_pairs_are_well_known():
    few = replace(SET_OF_FEW, n_items=1_700)
    assert choose(replace(few, n_events=WELL_KNOWN * 1_700)).neighbours == NEIGHBOURS
    assert choose(replace(few, n_events=WELL_KNOWN * 1_700 - 1)).neighbours == 0
    for other in (SET, REPEATED):  # context and repeats have other ways
        assert choose(replace(other, n_events=10**9)).neighbours == 0


@pytest.mark.parametrize("counts", [LONG, SHORT])
def test_events_in_an_order_have_neighbours_in_place_of_correlations(counts):
    told = choose(counts, neighbours=5)
    assert (told.correlations, told.neighbours) == (0, 5)
    assert choose(counts).neighbours == FOLLOWING
    assert choose(counts, correlations=0).neighbours == FOLLOWING  # that is all that is allowed
    with pytest.raises(SchemaError, match=r"model.correlations is 5; allowed where events have an order: 0"):
        choose(counts, correlations=5)


BASKETS = replace(SHORT, trains_on_windows=False)


@pytest.mark.parametrize("counts", [REPEATED, BASKETS, replace(SET, is_repeated=True)])
def test_where_repeats_or_baskets_are_recommended_items_have_no_neighbours(counts):
    assert choose(counts).neighbours == choose(counts, neighbours=0).neighbours == 0
    with pytest.raises(SchemaError, match=r"model.neighbours is 5; allowed where .*: 0"):
        choose(counts, neighbours=5)


def test_items_of_short_histories_in_an_order_and_trained_ones_of_sets_are_shrunk_towards_their_content():
    assert {name for name, family in FAMILIES.items() if choose(family).shrink_items} == {"short", "set of many"}
    assert {name for name, family in FAMILIES.items() if choose(family).id_dropout} == {
        "short",
        "set of many",
        "repeated",
    }
    assert not choose(replace(SHORT, has_content=False)).shrink_items
    assert not choose(replace(SET_OF_MANY, has_content=False)).shrink_items
    for family in (LONG, SET, SET_OF_FEW):
        assert choose(family, shrink_items=True).shrink_items


@pytest.mark.parametrize("counts", [REPEATED, BASKETS, replace(SET, is_repeated=True)])
def test_items_are_not_shrunk_where_repeats_or_baskets_are_recommended(counts):
    with pytest.raises(SchemaError, match=r"model.shrink_items is true; allowed where .*: false"):
        choose(counts, shrink_items=True)


def test_items_without_features_are_not_shrunk():
    with pytest.raises(SchemaError, match=r"data.features.item names no feature: false"):
        choose(replace(SHORT, has_content=False), shrink_items=True)


def test_vectors_of_a_large_catalogue_stay_short():
    assert choose(FAMILIES["repeated"]).correlations
    for family in (LONG, SHORT, SET, SET_OF_MANY, FAMILIES["repeated"]):
        assert not choose(replace(family, n_items=10**6)).correlations
        assert not choose(replace(family, n_items=10**6)).neighbours


def test_a_filter_is_tried_unless_things_are_taken_again_or_items_are_very_many():
    factors = {name: choose(family).low_pass for name, family in FAMILIES.items()}
    assert factors == dict.fromkeys(FAMILIES, LOW_PASS) | {"repeated": 0}
    for many in ({"n_items": 100_001}, {"n_items": 3_000, "n_untaken": 97_001}):
        assert not choose(replace(SHORT, **many)).low_pass
    assert choose(replace(SHORT, n_items=100_001), low_pass=7).low_pass == 7


@pytest.mark.parametrize(
    ("n_items", "factors"), [(1, 256), (16_384, 256), (16_385, 128), (40_981, 64), (65_537, 32), (100_000, 32)]
)
def test_a_filter_makes_requests_to_a_large_catalogue_little_longer(n_items, factors):
    assert choose(replace(SHORT, n_items=n_items)).low_pass == factors
    assert choose(replace(SHORT, n_items=1, n_untaken=n_items - 1)).low_pass == factors


def test_a_filter_is_refused_where_things_are_taken_again():
    with pytest.raises(SchemaError, match=r"model.low_pass is 7; allowed where items are consumed again: 0"):
        choose(REPEATED, low_pass=7)
