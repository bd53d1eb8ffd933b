"""What is done to trained towers: correlations, a filter and popularity added, items shrunk, new ones placed.

All but the last are judged by the validation of the first training, and done alike after the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from rich.console import Console

from datamodules.datamodule import InteractionsDataModule
from datamodules.sequences import Catalogue
from models.blending import MOST_CORRELATED_BESIDE_MEMORY, Correlate, Judged, blend_in, choose_blend
from models.config import recipe_of
from models.defaults import LONG_HISTORY, MOST_TOLD_BY_PAIRS
from models.item_correlations import MOST_CORRELATED, factorise
from models.low_pass import LowPass, add_low_pass, choose_low_pass, filter_vectors
from models.newcomers import Newcomers, fit_newcomers
from models.pair_correlations import PairCorrelations, correlate_pairs
from models.pair_filter import FACTORS, PairFilter, add_pair_filter, choose_pair_filter, filter_pairs
from models.popularity import WINDOWS, Popularity, choose_popularity, weigh_popularity
from models.shrinkage import USUAL, Shrunk, choose_strength, shrink_items
from models.smooth_factors import SmoothFactors, find_smooth_factors
from models.towers import Towers
from models.transitions import correlate_next
from models.trials import BESIDE_MEMORY, MOST_WITHOUT_ORDER, SETS, Trials, neighbours_of_events, neighbours_of_sets
from pipeline.config import Config
from run_verdicts import (
    describe_blend,
    describe_low_pass,
    describe_pair_filter,
    describe_popularity,
    describe_shrinkage,
)
from serve.events import Floats
from serve.schema import Schema

NEWCOMER_USERS = 512
"""The most users that new items are made visible to."""
MOST_SEEN = 512
"""Users that show how much scores vary."""


@dataclass(frozen=True)
class Trained:
    """Towers with everything they were trained on."""

    towers: Towers
    schema: Schema
    catalogue: Catalogue
    data: InteractionsDataModule
    epochs: int
    temperature: float
    pace: dict[str, float]
    """What `models.stopwatch` says of the training that was validated, where there is one."""
    continued: int = 0
    """Epochs for which they were trained on all but the test after those that validation chose."""
    shrunk: Shrunk | None = None
    """How far items are shrunk towards their content, where they are."""
    judged: Judged | None = None
    """How correlations are blended in, where they are."""
    low_pass: LowPass | None = None
    """How a low-pass filter counts, where there is one."""
    pair_filter: PairFilter | None = None
    """How the whole filter counts pair by pair, where it does."""
    popular: Popularity | None = None
    """How popularity counts, where towers have learned none."""

    @property
    def lacks_popularity(self) -> bool:
        """Whether towers were trained without it: it may be weighed afterwards."""
        return not self.data.schema.popularity_days and self.towers.user_tower.memory is None

    @property
    def popularity(self) -> Floats:
        """That item vectors hold as of the end of training, (N, P)."""
        if self.popular is not None and self.popular.share:
            return self.data.measure_popularity(self.popular.window)[0]
        learned: Floats = self.data.trends.popularity[-1]
        return learned


def judge(config: Config, trained: Trained, is_last: bool, console: Console) -> Trained:
    """Find by the validation, and print, how much all that is added counts and how far items are shrunk.

    What follows is judged with what comes before in place, which is then done to the towers at once.

    Args:
        config: of the run.
        trained: towers that nothing was done to yet.
        is_last: no other training follows, so that these towers are finished in any case.
        console: to print to.
    """
    recipe = recipe_of(config.model)
    is_done_now = is_last or recipe.shrink_items or recipe.low_pass > 0 or trained.lacks_popularity
    if blends(config):
        correlate = make_correlate(config, trained)
        trials = make_trials(config, trained)
        if is_done_now and len(trials.ridges) * len(trials.decays) == 1:  # what it gives last is blended in as a rule
            correlate = lru_cache(maxsize=1)(correlate)
        trained = judge_blend(config, trained, correlate, console)
        if is_done_now:
            trained = blend(config, trained, correlate)
    if recipe.shrink_items:
        trained = judge_shrinkage(config, trained, console)
    if recipe.low_pass:
        trained = judge_low_pass(config, trained, console)
    if trained.lacks_popularity:
        trained = judge_popularity(trained, console)
    return weigh(trained) if is_last else trained


def finish(config: Config, trained: Trained) -> Trained:
    """Do to towers that nothing was done to yet what was judged, or is usual."""
    if blends(config):
        trained = blend(config, trained, make_correlate(config, trained))
    if recipe_of(config.model).shrink_items:
        trained = shrink(config, trained)
    if any(judged is not None and judged.share for judged in (trained.low_pass, trained.pair_filter)):
        add_filters(config, trained)
    return weigh(trained)


def judge_blend(config: Config, trained: Trained, correlate: Correlate, console: Console) -> Trained:
    """Find how much correlations of items are to count, and print it."""
    data, trials = trained.data, make_trials(config, trained)
    requests = list(data.drawn_requests(MOST_SEEN))
    judged = choose_blend(trained.towers, correlate, trials, requests, data.validation_batches)
    console.print(describe_blend(judged))
    return replace(trained, judged=judged)


def blend(config: Config, trained: Trained, correlate: Correlate) -> Trained:
    """Blend correlations into the towers as was judged, or as is usual."""
    judged = trained.judged or Judged(make_trials(config, trained).usual)
    blend_in(trained.towers, correlate, judged.blend, list(trained.data.drawn_requests(MOST_SEEN)))
    return replace(trained, judged=judged)


def judge_shrinkage(config: Config, trained: Trained, console: Console) -> Trained:
    """Find how far items are shrunk, print it, and shrink them."""
    data = trained.data
    n_events = torch.from_numpy(data.count_targets())  # (N,)
    shrunk = choose_strength(trained.towers.eval(), n_events, data.validation_batches, config.seed)
    console.print(describe_shrinkage(shrunk))
    return replace(trained, shrunk=shrunk)


def shrink(config: Config, trained: Trained) -> Trained:
    """Shrink items as was judged, or as is usual."""
    shrunk = trained.shrunk or Shrunk(USUAL)
    n_events = torch.from_numpy(trained.data.count_targets())  # (N,)
    shrink_items(trained.towers.eval(), n_events, shrunk.strength, config.seed)
    return replace(trained, shrunk=shrunk)


def judge_low_pass(config: Config, trained: Trained, console: Console) -> Trained:
    """Find how much a low-pass filter is to count, in vectors and in sets pair by pair, print it, and add it."""
    smooth, data, towers = find_smooth(config, trained), trained.data, trained.towers.eval()
    requests, validation = list(data.drawn_requests(MOST_SEEN)), data.validation_batches
    vectors = filter_vectors(smooth, recipe_of(config.model).low_pass)  # (N, K)
    chosen = choose_low_pass(towers, vectors, requests, validation)
    console.print(describe_low_pass(chosen))
    add_low_pass(towers, vectors, chosen, requests)
    if not filters_pairs(trained):
        return replace(trained, low_pass=chosen)
    pairs = filter_pairs(smooth)
    judged = choose_pair_filter(towers, pairs, requests, validation)
    console.print(describe_pair_filter(judged))
    add_pair_filter(towers, pairs, judged.share, requests)
    return replace(trained, low_pass=chosen, pair_filter=judged)


def add_filters(config: Config, trained: Trained) -> None:
    """Add the filters to towers as was judged."""
    smooth, towers = find_smooth(config, trained), trained.towers.eval()
    requests = list(trained.data.drawn_requests(MOST_SEEN))
    if trained.low_pass is not None:
        vectors = filter_vectors(smooth, recipe_of(config.model).low_pass)  # (N, K)
        add_low_pass(towers, vectors, trained.low_pass, requests)
    if trained.pair_filter is not None and trained.pair_filter.share:
        add_pair_filter(towers, filter_pairs(smooth), trained.pair_filter.share, requests)


def filters_pairs(trained: Trained) -> bool:
    """Tell whether a filter may count pair by pair: it is looked through whole, which takes the items squared."""
    return trained.schema.is_set and len(trained.catalogue) <= MOST_TOLD_BY_PAIRS


def judge_popularity(trained: Trained, console: Console) -> Trained:
    """Find how much popularity is to count, and print it."""
    data = trained.data
    windows = WINDOWS if trained.schema.has_datetime else WINDOWS[:1]
    by_window = {window: torch.from_numpy(data.measure_popularity(window)[0]) for window in windows}
    requests = list(data.drawn_requests(MOST_SEEN))
    popular = choose_popularity(trained.towers.eval(), by_window, requests, data.validation_batches)
    days = data.measure_popularity(popular.window)[1] if trained.schema.has_datetime else None
    console.print(describe_popularity(popular, days))
    return replace(trained, popular=popular)


def weigh(trained: Trained) -> Trained:
    """Weigh popularity as was judged, if it was."""
    popular, data = trained.popular, trained.data
    if popular is None or not popular.share:
        return trained
    weigh_popularity(trained.towers.eval(), popular.share, list(data.drawn_requests(MOST_SEEN)))
    days = data.measure_popularity(popular.window)[1]
    return replace(trained, schema=replace(trained.schema, popularity_days=(days,)))


def blends(config: Config) -> bool:
    recipe = recipe_of(config.model)
    return recipe.correlations > 0 or recipe.neighbours > 0


def make_trials(config: Config, trained: Trained) -> Trials:
    """Return the blends that are judged."""
    n_neighbours = recipe_of(config.model).neighbours
    if n_neighbours and trained.data.trains_on_windows:
        counts = trained.data.sequences.events.counts  # (U,), 0 of users without events
        return neighbours_of_events(n_neighbours, counts.sum() > LONG_HISTORY * np.count_nonzero(counts))
    if n_neighbours:
        return neighbours_of_sets(n_neighbours)
    return SETS if trained.towers.user_tower.memory is None else BESIDE_MEMORY


def make_correlate(config: Config, trained: Trained) -> Correlate:
    """Return what correlates the items of all that was trained on."""
    sequences, recipe = trained.data.sequences, recipe_of(config.model)
    user, shape = sequences.events.segments(), (len(sequences.user_ids), len(trained.catalogue))
    rows, dim = sequences.events.item_row, recipe.correlations
    if recipe.neighbours and trained.data.trains_on_windows:
        is_target = sequences.target_weight > 0

        def correlate_events(ridge: float, decay: float) -> PairCorrelations:
            if decay:
                return correlate_next(user, rows, is_target, shape, ridge, decay, MOST_CORRELATED)
            return correlate_pairs(user, rows, shape, ridge, MOST_WITHOUT_ORDER)

        return correlate_events
    if recipe.neighbours:
        return lambda ridge, _: correlate_pairs(user, rows, shape, ridge, MOST_CORRELATED)
    has_memory = trained.towers.user_tower.memory is not None
    most = MOST_CORRELATED_BESIDE_MEMORY if has_memory else MOST_CORRELATED
    return lambda ridge, _: factorise(user, rows, shape, dim, ridge, config.seed, most)


def find_smooth(config: Config, trained: Trained) -> SmoothFactors:
    """Return the factors of the filters of all that was trained on, as many as the one with the most needs."""
    sequences, factors = trained.data.sequences, recipe_of(config.model).low_pass
    shape = (len(sequences.user_ids), len(trained.catalogue))
    most = max(factors, FACTORS) if filters_pairs(trained) else factors
    return find_smooth_factors(sequences.events.segments(), sequences.events.item_row, shape, most, config.seed)


def place_newcomers(trained: Trained, seed: int) -> Newcomers:
    """Fit what places items that training did not see."""
    data = trained.data
    is_taken = torch.from_numpy(data.count_targets() > 0)
    requests = data.drawn_requests(NEWCOMER_USERS)
    return fit_newcomers(trained.towers.eval(), torch.from_numpy(trained.popularity), is_taken, requests, seed)
