"""From counts of the data to the size of the towers and their training, with the reason for each choice.

The numbers were chosen with the boards that README lists, and with other data where it is said; between them a rule
follows what the data has, not its name. Figures here are of single runs of `train.py` with the value given, by scripts
that were not kept: they say why, and no command of this repository repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from models.config import ModelConfig, Recipe
from models.data_counts import FROZEN_DIM, MOST_BLENDED, MOST_FACTORISED_OF_SETS, TRAINED_DIM, DataCounts
from serve.errors import SchemaError

Rule = Callable[[DataCounts], tuple[Any, str]]

MANY_ITEMS = 5_000
"""Catalogue above which targets are told from a sample."""
MANY_ITEMS_OF_REQUESTS = 20_000
"""The same where all targets of a request share its sum over the catalogue, which costs less. A set of 12,101 items
ranked as well by a sample of 4,096 as by all (.0720, .0721, one seed); larger ones, and baskets, were not measured."""
MANY_ITEMS_OF_LONG = 3_000
"""The same where histories are long and events many: a training from 1,024 of 3,700 items makes 1.3 times the targets a
second that one from all does. With fewer events, 190,000 of 1,614 users on 3,994 films, validations ranked .1259 with
1,024 and .1260 with all, but tests .1139 and .1175 (seeds 0 and 1 on average)."""
SHARE_OF_LONG, MOST_OF_LONG = 0.3, 8192
"""Of many items, that long histories are told from, and the most of these. The validation of 3,640 users of MovieLens
found .1431 with 2,048 of 6,606 films, .1368 with 1,024; of 3,506 .1486 with all, .1494 with 1,024, .1400 with 512."""
MOST_TOLD_BY_PAIRS = 100_000
"""Items of a catalogue that is told pair by pair: of a larger one the 16,000 that are correlated would be few."""
NEIGHBOURS = 1024
"""That an item may have, in sets whose items are trained or well known; the validation says how many it has. With 32,
256 and 1,024 validations ranked pairs of 5,551 users and 16,980 articles (citeulike) .152, .164 and .167, with 256 8 %
better than with 384 blended factors; those of Amazon Beauty .0608, .0598 and .0599 (seed 0), .0596, .0592 and .0594
(seed 1): with partial correlations, before they were EASE's numbers. Frappe with context ranked no better with 256."""
LOW_PASS, LOW_PASS_ENTRIES = 256, 2**22
"""Factors of the filter, and the most numbers that these are for all items together: a request takes as long as vectors
take to be read, among 100,000 items 1.5 ms with 96 entries, 2.5 with 352. Beside a memory of what is taken again the
validation of groceries (2,001 households) found no gain with 8 to 64."""
FOLLOWING = 64
"""Where histories have an order: as many as 256 found on Amazon Beauty and on MovieLens, whole rows no more."""
MANY_EVENTS = 250_000
"""Of the table, from which on less dropout is needed where they have an order, or where a set's start is trained. Long
histories: with .3, .2 and .1 validations of 3,640 users of MovieLens (456,000 events) found .1437, .1478, .1486, with
.3 and .2 those of 943 (100,000) .1501, .1482 (seeds 0 to 2 on average). Short ones: with .5 and .3 those of Amazon
Sports (296,000) found .0486, .0509 and .0483, .0501 (seeds 0, 1), that of Beauty (199,000) .0817, .0809; with .5 and .4
that of Toys (168,000) .0905, .0894. Sets: with .7, .5 and .3 that of Gowalla (728,000 pairs) found .0934, .0949 and, in
five of eight epochs, .0845 (with neighbours .1120 and .1134; with .7 and twice the epochs .1124).
Whether users or events are to be counted the data do not tell."""
SHOWN_TARGETS, SHOWN_TARGETS_OF_LONG = 2_800_000, 24_000_000
"""Targets that a training looks at, over all epochs: two blocks take more to fit. The validation of 3,640 users of
MovieLens (456,000 events, a dropout of .3) found .1426 with 16 epochs, .1437 with 24, .1448 with 32; that of 6,040
(999,611 events, ids alone, seed 0) .1847 with 15, .2010 with 24; where there are more events, more was not measured."""
FEWEST_EPOCHS, MOST_EPOCHS = 10, 24
FEWEST_STEPS, FEWEST_STEPS_OF_REPEATS = 16, 8
"""Batches of an epoch: where there is little data they are smaller, rather than few."""
SHOWN_CUTS = 16_000
"""Of users' timelines, that a training with repeats looks at, over all epochs: its memory starts near the frequency of
what a user takes, and few steps leave noise in it. In 8 epochs of 5 steps planted groceries of 500 users were ranked
worse than by frequency; 2,025 households were trained well by 8 epochs."""
EPOCHS_OF_REPEATS = 8
SMALLEST_BATCH = 16
WARMUP_SHARE = 0.25
"""Of the steps of a training, during which the rate may rise."""


@dataclass(frozen=True)
class Choice:
    """One decision."""

    name: str
    value: Any
    reason: str


def choose_recipe(config: ModelConfig, counts: DataCounts) -> tuple[Recipe, list[Choice]]:
    """Decide what the configuration leaves open.

    Returns:
        The whole recipe, and the choices made.

    Raises:
        SchemaError: correlations or neighbours are wanted where there are none, or items shrunk where they are not.
    """
    counts = replace(counts, has_blocks=bool(config.n_blocks), freezes_items=config.freeze_items)
    _check_given(config, counts)
    choices = [Choice(name, *rule(counts)) for name, rule in RULES.items() if getattr(config, name) is None]
    given = {field.name: getattr(config, field.name) for field in fields(Recipe)}
    recipe = Recipe(**given | {choice.name: choice.value for choice in choices})
    fitted = {choice.name: choice for choice in _fit_together(recipe, config, counts)}
    choices = [fitted.get(choice.name, choice) for choice in choices]
    return replace(recipe, **{choice.name: choice.value for choice in choices}), choices


def _check_given(config: ModelConfig, counts: DataCounts) -> None:
    why = counts.shape if counts.is_repeated else "data.ties is simultaneous"
    is_one_by_one = counts.trains_on_windows or (counts.is_set and not counts.is_repeated)
    if config.correlations and counts.is_ordered:
        raise SchemaError(
            f"model.correlations is {config.correlations}; allowed where events have an order: 0; there "
            "model.neighbours tells what comes next"
        )
    if config.neighbours and not is_one_by_one:
        raise SchemaError(f"model.neighbours is {config.neighbours}; allowed where {why}: 0")
    if config.low_pass and counts.is_repeated:
        raise SchemaError(f"model.low_pass is {config.low_pass}; allowed where {counts.shape}: 0")
    if config.shrink_items and not is_one_by_one:
        raise SchemaError(f"model.shrink_items is true; allowed where {why}: false")
    if config.shrink_items and not counts.has_content:
        raise SchemaError("model.shrink_items is true; allowed where data.features.item names no feature: false")


def _fit_together(recipe: Recipe, config: ModelConfig, counts: DataCounts) -> Iterator[Choice]:
    """Yield what is open and must be another value beside the others."""
    if recipe.dim % recipe.n_heads:
        if config.n_heads is None:
            yield Choice("n_heads", 1, f"divides {recipe.dim} entries")
        else:
            dim = math.ceil(recipe.dim / recipe.n_heads) * recipe.n_heads
            yield Choice("dim", dim, f"divided by {recipe.n_heads} heads")
    if config.neighbours is None and config.correlations is not None and not counts.is_ordered:
        yield Choice("neighbours", 0, "model.correlations was given")
    if config.neighbours and config.correlations is None:
        yield Choice("correlations", 0, "model.neighbours was given")
    n_steps = recipe.max_epochs * math.ceil(counts.n_examples / recipe.batch_size)
    longest = max(1, int(WARMUP_SHARE * n_steps))
    if config.warmup_steps is None and recipe.warmup_steps > longest:
        yield Choice("warmup_steps", longest, f"of at least {n_steps:,} steps")


def _dim(counts: DataCounts) -> tuple[int, str]:
    if counts.starts_from_correlations:
        reason = f"{counts.n_users:,} users, {counts.n_items:,} items, {counts.shape}: correlations of items"
        return (FROZEN_DIM if counts.has_many_factors else TRAINED_DIM), reason
    if counts.is_set:
        return 48, counts.shape
    return (96 if counts.trains_on_windows else 64), counts.shape


def _blocks(counts: DataCounts) -> tuple[int, str]:
    if counts.is_set:
        return 0, counts.shape
    return (2 if counts.is_long and not counts.is_repeated else 1), counts.shape


def _heads(counts: DataCounts) -> tuple[int, str]:
    return (2 if counts.is_long and not counts.is_repeated else 1), counts.shape


def _dropout(counts: DataCounts) -> tuple[float, str]:
    if counts.is_repeated:
        return 0.2, counts.shape
    if counts.freezes_correlations:
        return 0.1, f"{counts.shape}: the start from correlations has few weights left to train"
    if counts.trains_correlations:
        start = f"{counts.n_events:,} events, {counts.shape}: the start from correlations knows every pair already"
        return (0.5 if counts.n_events >= MANY_EVENTS else 0.7), start
    if counts.is_ordered:
        usual, of_many = (0.3, 0.1) if counts.is_long else (0.5, 0.3)
        return (of_many if counts.n_events >= MANY_EVENTS else usual), f"{counts.n_events:,} events, {counts.shape}"
    return (0.3 if counts.is_long and not counts.is_set else 0.5), counts.shape


def _id_dropout(counts: DataCounts) -> tuple[float, str]:
    if counts.has_content and (counts.is_repeated or counts.is_short_and_ordered or counts.trains_correlations):
        return 0.1, f"{counts.shape}: an item is placed by its content too"
    return 0.0, "new items are placed by content that is fitted after training"


def _similarity(counts: DataCounts) -> tuple[str, str]:
    if counts.trains_correlations:
        return "cosine", f"{counts.shape}: the start from correlations is trained"
    return ("dot" if counts.is_repeated or counts.is_set else "cosine"), counts.shape


def _correlations(counts: DataCounts) -> tuple[int, str]:
    if counts.starts_from_correlations:
        return 0, counts.shape
    if counts.n_listed > (MOST_FACTORISED_OF_SETS if counts.is_set else MOST_BLENDED):
        return 0, f"{counts.catalogue}, {counts.shape}"
    if counts.is_set or counts.is_repeated:
        return 128, counts.shape
    return 0, f"{counts.n_items:,} items, {counts.shape}"


def _neighbours(counts: DataCounts) -> tuple[int, str]:
    if not (counts.is_ordered or counts.tells_pairs):
        return 0, counts.shape
    if counts.n_items > MOST_TOLD_BY_PAIRS:
        return 0, f"{counts.n_items:,} items, {counts.shape}"
    if counts.is_ordered:
        return FOLLOWING, f"{counts.shape}: what comes after an item, or goes with it, is told one by one"
    if counts.freezes_correlations:
        return (
            NEIGHBOURS,
            f"{counts.n_events / counts.n_items:.0f} events an item: pairs are known well enough to be told",
        )
    return NEIGHBOURS, f"{counts.shape}: pairs that no low rank can say are told one by one"


def _low_pass(counts: DataCounts) -> tuple[int, str]:
    if counts.is_repeated:
        return 0, counts.shape
    if counts.n_listed > MOST_TOLD_BY_PAIRS:
        return 0, counts.catalogue
    factors = 2 ** int(math.log2(LOW_PASS_ENTRIES / counts.n_listed))
    reason = f"{counts.catalogue}, {counts.shape}: what the smooth part of who has what adds is validated"
    return min(factors, LOW_PASS), reason


def _shrink_items(counts: DataCounts) -> tuple[bool, str]:
    if not counts.has_content:
        return False, "items have no features"
    if counts.starts_from_correlations:
        how = "is trained" if counts.trains_correlations else "stays as it is"
        return counts.trains_correlations, f"{counts.shape}: the start from correlations {how}"
    return counts.is_short_and_ordered, counts.shape


def _freeze_items(counts: DataCounts) -> tuple[bool, str]:
    if not counts.starts_from_correlations:
        return False, counts.shape
    fewer, of_what = min((counts.n_users, "users"), (counts.n_items, "items"))
    worth = "rank nearly as whole ones do" if counts.freezes_correlations else "are only a start"
    return counts.freezes_correlations, f"{fewer:,} {of_what}: correlations of a low rank {worth}"


def _negatives(counts: DataCounts) -> tuple[int, str]:
    reason = f"{counts.catalogue}, {counts.shape}"
    if counts.is_repeated:
        return 0, reason
    is_much = counts.is_long and counts.n_events >= MANY_EVENTS
    if counts.trains_on_windows and counts.n_listed > (MANY_ITEMS_OF_LONG if is_much else MANY_ITEMS):
        share = 2 ** round(math.log2(SHARE_OF_LONG * counts.n_listed))
        return (min(share, MOST_OF_LONG) if counts.is_long else 1024), reason
    if counts.trains_on_windows:
        return 0, reason
    return (4096 if counts.n_listed > MANY_ITEMS_OF_REQUESTS else 0), reason


def _learning_rate(counts: DataCounts) -> tuple[float, str]:
    if counts.is_repeated:
        return 5e-4, counts.shape
    return (1e-3 if counts.is_set else 2e-3), counts.shape


def _warmup(counts: DataCounts) -> tuple[int, str]:
    if counts.trains_correlations:
        return 200, counts.shape
    if counts.is_repeated or counts.is_set:
        return 10, counts.shape
    return (50 if counts.is_long else 200), counts.shape


def _batch_size(counts: DataCounts) -> tuple[int, str]:
    largest = 64 if counts.is_long and not counts.is_set else 128
    if counts.is_repeated or counts.trains_correlations:
        largest = 256
    fewest = FEWEST_STEPS_OF_REPEATS if counts.is_repeated else FEWEST_STEPS
    fitting = 2 ** round(math.log2(max(counts.n_examples, 1) / fewest))
    return min(max(fitting, SMALLEST_BATCH), largest), f"{counts.n_examples:,} examples, {counts.shape}"


def _epochs(counts: DataCounts) -> tuple[int, str]:
    if counts.is_repeated:
        epochs = round(SHOWN_CUTS / max(counts.n_examples, 1))
        return min(max(epochs, EPOCHS_OF_REPEATS), MOST_EPOCHS), f"{counts.n_examples:,} users, {counts.shape}"
    if counts.trains_correlations:
        return 8, f"{counts.shape}: the start from correlations is trained"
    if counts.freezes_correlations and not counts.has_demographics:
        return 1, f"{counts.shape}: hardly more than what stands for an empty history is left to train"
    if counts.is_set:
        return 4, f"{counts.shape}: the start from factors is near the end"
    shown = SHOWN_TARGETS_OF_LONG if counts.is_long else SHOWN_TARGETS
    epochs = round(shown / max(counts.n_events, 1))
    return min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS), f"{counts.n_events:,} events, {counts.shape}"


def _patience(counts: DataCounts) -> tuple[int, str]:
    if counts.is_repeated:
        return max(_epochs(counts)[0] // 3, 3), counts.shape
    return (3 if counts.is_set else 8), counts.shape


RULES: dict[str, Rule] = {
    "dim": _dim,
    "n_blocks": _blocks,
    "n_heads": _heads,
    "dropout": _dropout,
    "id_dropout": _id_dropout,
    "similarity": _similarity,
    "correlations": _correlations,
    "neighbours": _neighbours,
    "low_pass": _low_pass,
    "shrink_items": _shrink_items,
    "freeze_items": _freeze_items,
    "negatives": _negatives,
    "learning_rate": _learning_rate,
    "warmup_steps": _warmup,
    "batch_size": _batch_size,
    "max_epochs": _epochs,
    "patience": _patience,
}
