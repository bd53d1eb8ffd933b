"""Context columns that give the chosen item away: facts of the item, and what is known only after the choice.

What reads `datetime` is left out: the moment comes before the choice, even where it tells the item (a broadcast, a
day's news).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datamodules.config import DataConfig, FeatureConfig
from datamodules.leaks.codes import code_cells
from datamodules.leaks.leak import Leak
from datamodules.leaks.power import Guesses, guess_items, measure_fact, measure_number_fact
from datamodules.leaks.sample import Sample

IDENTIFIES = 0.5
"""Named where the first guess is right for half of what popularity leaves open. The most that an honest column of the
data sets at hand gains is 0.02; a renamed item gains 0.85 and more."""
AFTER_CHOICE = 0.5
"""Named where the item tells half of what varies between neighbouring rows. Honest columns of the data sets at hand
stay below 0.1, prices and discounts are above 0.6; one of two devices reaches it where each item is chosen four times
in five on the same one."""
FACT = 0.9
"""From here on the value is called a fact of the item: what is left are slips, such as a category that was renamed."""


def find_context_leaks(sample: Sample, config: DataConfig) -> Iterator[Leak]:
    """Judge each column of the request context by what it and the item tell of each other."""
    for feature in context_columns(config):
        name = str(feature.column)
        cells = sample.rows[name]
        codes = code_cells(cells)
        of_value = measure_fact(sample, codes)
        of_number = measure_number_fact(sample, cells.to_numpy(np.float64)) if feature.kind == "numeric" else 0.0
        yield from _judge(name, of_value, of_number, guess_items(sample, codes))


def context_columns(config: DataConfig) -> list[FeatureConfig]:
    """Return one feature per column that the context reads, without the time of the event."""
    features = {feature.column: feature for feature in config.features.of("context").values()}
    return [feature for column, feature in features.items() if column != "datetime"]


def _judge(column: str, of_value: float, of_number: float, guesses: Guesses | None) -> Iterator[Leak]:
    power = max(of_value, of_number)
    if guesses is not None and guesses.power >= IDENTIFIES:
        message = (
            f"interactions.{column} gives the item away: from it alone the chosen item is guessed right for "
            f"{guesses.first:.1%} of the events of other users ({guesses.popular_first:.1%} by popularity), and for "
            f"{guesses.exclusive:.0%} of the events its value goes with one item alone; take it out of the context"
        )
        yield Leak("identifies the item", "interactions", column, guesses.power, message)
    elif of_value >= FACT:
        message = (
            f"interactions.{column} is a fact of the item, not of the request: the item chosen tells {of_value:.0%} of "
            f"what varies in it{_say_list(guesses)}; make it a feature of the items"
        )
        yield Leak("fact of the item", "interactions", column, of_value, message)
    elif power >= AFTER_CHOICE:
        message = (
            f"interactions.{column} seems to be known only after the choice: the item chosen tells {power:.0%} of "
            f"what varies in it{_say_list(guesses)}; take it out of the context if a request cannot know it"
        )
        yield Leak("known after the choice", "interactions", column, power, message)


def _say_list(guesses: Guesses | None) -> str:
    if guesses is None:
        return ""
    return (
        f", and it names ten items with the right one among them for {guesses.within_ten:.1%} of the events "
        f"({guesses.popular_within_ten:.1%} by popularity)"
    )
