"""Why fewer than k items came: what is admissible for one request, counted from the catalogue down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve.filters.admission import Admission
from serve.filters.filters import Filters
from serve.merging import LeftOut
from serve.pairs import RequestItems
from serve.top_k import Ints

_MOST_SHOWN = 80  # characters of an expression


def explain_short(
    admission: Admission,
    filters: Sequence[Filters | None],
    items: RequestItems,
    left_out: LeftOut,
    rows: Ints,
    k: int,
) -> dict[int, str]:
    """Say of each list that is short why it is.

    Args:
        admission: of the catalogue.
        filters: of T requests.
        items: of these.
        left_out: which of the items are not listed.
        rows: (T, k or fewer) their lists, -1 where there is no item.
        k: the length that was asked for.

    Returns:
        Request -> reason.
    """
    if rows.shape[1] == k and rows[:, -1].min() >= 0:
        return {}
    lengths = (rows >= 0).sum(axis=1)
    short = np.flatnonzero(lengths < k).tolist()
    return {place: _explain(admission, filters[place], items, place, left_out, int(lengths[place])) for place in short}


def _explain(
    admission: Admission, filters: Filters | None, items: RequestItems, place: int, left_out: LeftOut, length: int
) -> str:
    """Count from the catalogue down to the list of one request."""
    n_items = int((~admission.bar(Filters())).sum())
    barred = admission.bar(Filters() if filters is None else filters)
    parts = [_name_source(filters, int((~barred).sum()), n_items)]
    for name in left_out:
        rows = getattr(items, name).of_request(place)
        n_left_out = int((~barred[np.unique(rows)]).sum())
        barred[rows] = True
        if n_left_out:
            parts.append(f"{n_left_out} of them {'is' if n_left_out == 1 else 'are'} {name}")
    if filters is not None:
        parts += [f"at most {most} per {column}" for column, most in filters.at_most]
    heads = {0: "no item is admissible", 1: "only 1 item is admissible"}
    return f"{heads.get(length, f'only {length} items are admissible')}: {', '.join(parts)}"


def _name_source(filters: Filters | None, n_left: int, n_items: int) -> str:
    names = []
    if filters is not None and filters.where is not None:
        names.append(f"where '{_shorten(filters.where.text)}'")
    if filters is not None and filters.only is not None:
        names.append("'only'")
    if not names:
        return f"the catalogue has {n_items}"
    return f"{' and '.join(names)} {'leaves' if len(names) == 1 else 'leave'} {n_left} of {n_items}"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
