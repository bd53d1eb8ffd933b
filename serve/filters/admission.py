"""What filters let in of a catalogue: the items that are barred for a request, and the limits on its list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.filters.columns import Columns
from serve.filters.filters import Filters, parse_limit
from serve.filters.spread import Limit
from serve.item_ids import ItemIds
from serve.live.catalogue import Catalogue
from serve.request_values import Id
from serve.schema import Schema

Mask = NDArray[np.bool_]


class Admission:
    """The columns and ids of the N items of a catalogue."""

    def __init__(self, columns: Columns, item_ids: ItemIds, is_removed: Mask | None) -> None:
        """Keep what filters are applied to.

        Args:
            columns: of N items.
            item_ids: of these.
            is_removed: (N,) those that are never listed; None if there are none.
        """
        self.columns = columns
        self._item_ids = item_ids
        self._is_removed = is_removed

    @classmethod
    def of_catalogue(cls, catalogue: Catalogue, schema: Schema) -> Admission:
        """Take the items of a catalogue; its columns are read when a filter names them."""
        return cls(Columns(catalogue.table, schema.item_features), catalogue.item_ids, catalogue.is_removed)

    def changed(self, catalogue: Catalogue) -> Admission:
        """Take the same catalogue after some items changed."""
        return Admission(self.columns.changed(catalogue.table), catalogue.item_ids, catalogue.is_removed)

    def check(self, filters: Filters | None) -> None:
        """Refuse filters that do not fit the columns.

        Raises:
            SchemaError: an unknown column, a value that is not of its column's type, or a limit below 1.
        """
        if filters is not None:
            self.bar(filters)
            self.limit(filters)

    def bar(self, filters: Filters) -> Mask:
        """Return which items `where` and `only` keep out, and those that are removed, (N,).

        Raises:
            SchemaError: as `check`.
        """
        barred = np.zeros(len(self.columns), dtype=np.bool_)
        if filters.where is not None:
            np.logical_not(self.columns.admit(filters.where), out=barred)
        if filters.only is not None:
            barred |= ~self._allow(filters.only)
        if self._is_removed is not None:
            barred |= self._is_removed
        return barred

    def _allow(self, only: Sequence[Id]) -> Mask:
        """Return which items an allow list names, (N,)."""
        allowed = np.zeros(len(self.columns), dtype=np.bool_)
        rows = self._item_ids.find(only)
        allowed[rows[rows >= 0]] = True
        return allowed

    def limit(self, filters: Filters) -> list[Limit]:
        """Return the limits of `at_most`.

        Raises:
            SchemaError: as `check`.
        """
        limits = [(column, parse_limit(column, most)) for column, most in filters.at_most]  # some are made by hand
        return [Limit(self.columns.read(column).labels, most) for column, most in limits]
