"""The leak check: columns that give the target away, and held-out events that training sees.

What it cannot find: a column that is known after the choice but hangs on nothing that the tables show, such as a
session's length; a vector of a user that was learnt from the test; an item's text that was changed because it sold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datamodules.config import DataConfig
from datamodules.leaks.choices import find_choice_leaks
from datamodules.leaks.context import find_context_leaks
from datamodules.leaks.counts import find_item_leaks
from datamodules.leaks.leak import Leak
from datamodules.leaks.parts import find_shared_events
from datamodules.leaks.profiles import find_user_leaks
from datamodules.leaks.sample import draw_sample
from datamodules.splits import Split
from datamodules.tables import Tables
from serve.errors import SchemaError


def find_leaks(tables: Tables, split: Split, config: DataConfig) -> tuple[Leak, ...]:
    """Look for leaks in the parts, the request context, the choices, the users and the items, in this order.

    Columns are judged on a sample of the training rows, drawn by a fixed seed.

    Args:
        tables: cleaned.
        split: of the interactions; with what is declared about targets, so that choices are told from other events.
        config: names the features.
    """
    return tuple(_find(tables, split, config))


def stop_on_leaks(leaks: Sequence[Leak]) -> None:
    """Refuse data with leaks.

    Raises:
        SchemaError: there is a leak; all are named.
    """
    if leaks:
        found = "; ".join(f"({number}) {leak.message}" for number, leak in enumerate(leaks, 1))
        raise SchemaError(
            f"data.leaks is 'stop' and {len(leaks)} leak{'s' * (len(leaks) > 1)} found: {found}. Mend the data, or set "
            "data.leaks to warn"
        )


def _find(tables: Tables, split: Split, config: DataConfig) -> Iterator[Leak]:
    yield from find_shared_events(split)
    sample = draw_sample(split)
    if len(sample.rows):
        yield from find_context_leaks(sample, config)
        yield from find_choice_leaks(sample, tables, config)
    yield from find_user_leaks(tables, split, config)
    yield from find_item_leaks(tables, split, config)
