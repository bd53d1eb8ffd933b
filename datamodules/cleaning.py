"""Take out what is there twice and what cannot be."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from datamodules.tables import Tables


@dataclass(frozen=True)
class CleaningReport:
    """How many rows were taken out, and what was kept though it looks odd."""

    duplicate_events: int
    """Rows equal to an earlier one in every column."""
    negative_weights: int
    """Events taken out because their weight is below 0: a return, not a purchase."""
    zero_weights_kept: int
    """Events kept with weight 0."""
    duplicate_users: int
    duplicate_items: int


def clean(tables: Tables) -> tuple[Tables, CleaningReport]:
    """Remove duplicates and impossible events; cleaning twice changes nothing more.

    Two events are the same if all columns are equal: user, item, time, event, position, weight and context.
    So a basket line that is there again with another quantity is a second line.
    """
    events, users, items = tables.interactions, tables.users, tables.items
    weights = events["weight"] if "weight" in events else pd.Series(1.0, events.index)
    is_duplicate, is_negative = events.duplicated(), weights < 0
    kept = events[~is_duplicate & ~is_negative].reset_index(drop=True)
    cleaned = Tables(kept, users.drop_duplicates(ignore_index=True), items.drop_duplicates(ignore_index=True))
    report = CleaningReport(
        duplicate_events=int(is_duplicate.sum()),
        negative_weights=int((is_negative & ~is_duplicate).sum()),
        zero_weights_kept=int((weights.eq(0) & ~is_duplicate).sum()),
        duplicate_users=len(users) - len(cleaned.users),
        duplicate_items=len(items) - len(cleaned.items),
    )
    return cleaned, report
