"""What the data has: the counts from which a recipe is chosen, and the families of data that they tell apart."""

from __future__ import annotations

from dataclasses import dataclass

LONG_HISTORY = 40
"""Mean events of a user from which on there is enough for two blocks and less dropout."""
MOST_FROZEN = 5_000
"""Users or items, the fewer of both, of a set whose items stay where correlations put them. Those of a low rank rank as
whole ones with 943 and 957 users, and with 2,462 nearly so, and training over-fits; with 22,363 users and 12,101 items
they lose a quarter of the NDCG (of rank 128), and training wins most of it back. With 3,000 users of Amazon Beauty both
rank alike, with 7,000 what is trained, and then blended, is better by an eighth."""
FROZEN_DIM, TRAINED_DIM = 384, 128
"""Factors of correlations, where items stay there and where they are only a start. Three times as many as 128 were
worth .4 to 1.1 % with 1,653 items of 943 users, 2 % with 12,518 of 2,462 and nothing with 4,082 of 957."""
WELL_KNOWN = 100
"""Events of an item on average from which on its pairs are known well enough to be told one by one beside factors. With
270 (MovieLens-1M as pairs, 6,040 users) lists were .7 % better by it, with 137 (half of its users) .5 %, with 54 and 60
(Complete Journey, MovieLens-100k) as good, with 5 (LastFM) 1 % worse."""
ITEMS_OF_A_FACTOR, USERS_OF_A_FACTOR = 4, 2
"""With fewer of each factor the last ones would be of nothing: not more are positive than there are users."""
MOST_BLENDED, MOST_FACTORISED_OF_SETS = 16_000, 100_000
"""Items that many factors of correlations are kept of: with more, longer vectors slow down the search and fill the
memory. What they are worth was measured with up to 12,518 (17,388 of sets)."""


@dataclass(frozen=True)
class DataCounts:
    """What the choice depends on."""

    n_examples: int
    """Users, or parts of their sets, that an epoch shows at least."""
    n_users: int
    n_items: int
    """That have events."""
    n_events: int
    mean_history: float
    is_set: bool
    is_repeated: bool
    """Repeats are recommended, so that the memory is learned."""
    trains_on_windows: bool
    """Every event is a target of those before it."""
    has_content: bool
    has_context: bool
    """There is more to be learned from a set than which items go together."""
    has_demographics: bool
    n_untaken: int = 0
    """Items of the table that have none: they are searched, and a sum over the catalogue goes over them too."""
    has_blocks: bool = False
    """As the configuration gives it; left open, they are chosen."""
    freezes_items: bool | None = None
    """As the configuration gives it; None: to be chosen."""

    @property
    def n_listed(self) -> int:
        return self.n_items + self.n_untaken

    @property
    def catalogue(self) -> str:
        """Say how many items there are, and how many of them nobody took."""
        return f"{self.n_listed:,} items" + (f", {self.n_untaken:,} without events" if self.n_untaken else "")

    @property
    def is_long(self) -> bool:
        return self.mean_history > LONG_HISTORY

    @property
    def is_ordered(self) -> bool:
        return self.trains_on_windows and not (self.is_set or self.is_repeated)

    @property
    def is_short_and_ordered(self) -> bool:
        return self.is_ordered and not self.is_long

    @property
    def starts_from_correlations(self) -> bool:
        return self.is_set and not (self.has_context or self.is_repeated or self.has_blocks)

    @property
    def freezes_correlations(self) -> bool:
        is_small = min(self.n_users, self.n_items) <= MOST_FROZEN
        return self.starts_from_correlations and (is_small if self.freezes_items is None else self.freezes_items)

    @property
    def has_many_factors(self) -> bool:
        has_enough = self.n_users >= USERS_OF_A_FACTOR * FROZEN_DIM and self.n_items >= ITEMS_OF_A_FACTOR * FROZEN_DIM
        return self.freezes_correlations and has_enough and self.n_listed <= MOST_FACTORISED_OF_SETS

    @property
    def trains_correlations(self) -> bool:
        return self.starts_from_correlations and not self.freezes_correlations

    @property
    def tells_pairs(self) -> bool:
        """Whether the items of a set add to the scores of their neighbours."""
        is_well_known = self.n_events >= WELL_KNOWN * self.n_items
        return self.trains_correlations or (self.freezes_correlations and is_well_known)

    @property
    def shape(self) -> str:
        if self.is_repeated:
            return "items are consumed again"
        if self.is_set:
            return "events have no order"
        return f"{self.mean_history:.0f} events a user"
