"""Fit one feature on training rows: its vocabulary, scale and width; or let a fitted one grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from datamodules.config import FeatureConfig
from serve.encoding import join_text, split_cell, to_text
from serve.errors import SchemaError
from serve.ngrams import hash_texts
from serve.schema import Feature
from serve.vectors import Floats, read_vector

WIDEST_CELL, WIDEST_TEXT = 32, 64
"""The most values kept of a `multi_categorical` cell, and n-grams of a `text`."""
FEWEST_BUCKETS, MOST_BUCKETS = 2**8, 2**14
_CALENDAR = {"hour_of_day": tuple(map(str, range(24))), "day_of_week": tuple(map(str, range(7)))}


def fit_feature(name: str, declared: FeatureConfig, cells: pd.Series, previous: Feature | None) -> Feature:
    """Fit a feature, or let the one fitted before grow.

    What has a previous feature keeps all that codes and numbers mean: its vocabulary, after which new values come;
    mean, scale, buckets, the n-grams of a text and the width of a vector. Cells of several values may become wider.

    Args:
        name: of the feature.
        declared: its kind, column and separator.
        cells: the column of training rows.
        previous: as fitted before, on other rows.

    Raises:
        SchemaError: the kind is no longer the previous one, no row has a vector, or numbers have no deviation.
    """
    blank = Feature(name, declared.kind, str(declared.column), separator=declared.separator)
    if previous is None:
        return _FIT[declared.kind](blank, cells)
    if previous.kind != declared.kind:
        raise SchemaError(
            f"feature '{name}' is {declared.kind}; the previous schema has it as {previous.kind}: give it another name"
        )
    kept = replace(previous, column=blank.column, separator=blank.separator)
    if declared.kind not in ("categorical", "multi_categorical"):
        return kept
    fitted = _FIT[declared.kind](blank, cells)
    vocabulary = append_new(previous.vocabulary, fitted.vocabulary)
    return replace(kept, vocabulary=vocabulary, width=max(previous.width, fitted.width))


def append_new(previous: tuple[str, ...], values: Iterable[str]) -> tuple[str, ...]:
    """Return the previous values, unchanged, and after them the others: no code changes."""
    return tuple(dict.fromkeys((*previous, *values)))


def by_frequency(cells: pd.Series) -> tuple[str, ...]:
    """Return the distinct texts of a column, the most frequent first."""
    counts: Counter[str] = Counter()
    for value, count in cells.value_counts().items():
        text = to_text(value)
        if text is not None:  # 7, 7.0 and "7" are one text
            counts[text] += int(count)
    return _order(counts)


def mean_and_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the finite numbers; a deviation of 0 becomes 1."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return 0.0, 1.0
    if known.min() == known.max():  # rounding could leave a deviation that is tiny and not 0
        return float(known[0]), 1.0
    return float(known.mean()), float(known.std())


def _order(counts: Counter[str]) -> tuple[str, ...]:
    """Order by falling frequency, then by value."""
    return tuple(sorted(counts, key=lambda text: (-counts[text], text)))


def _fit_categories(feature: Feature, cells: pd.Series) -> Feature:
    return replace(feature, vocabulary=by_frequency(cells))


def _fit_calendar(feature: Feature, _: pd.Series) -> Feature:
    return replace(feature, vocabulary=_CALENDAR[feature.kind])


def _fit_several(feature: Feature, cells: pd.Series) -> Feature:
    values = [split_cell(cell, feature.separator) for cell in cells]
    width = min(max(map(len, values), default=1), WIDEST_CELL)
    vocabulary = _order(Counter(value for cell in values for value in cell))
    return replace(feature, vocabulary=vocabulary, width=max(width, 1))


def _fit_number(feature: Feature, cells: pd.Series) -> Feature:
    numbers = cells.to_numpy(np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # refused below
        mean, scale = mean_and_scale(numbers)
    if not np.isfinite([mean, scale]).all() or scale == 0.0:  # every value would be 0, or none a number
        raise SchemaError(
            f"feature '{feature.name}': values from {np.nanmin(numbers):g} to {np.nanmax(numbers):g} have no standard "
            "deviation in double precision; give them in another unit, or name `min` and `max`, which reject others"
        )
    return replace(feature, mean=mean, scale=scale)


def _fit_text(feature: Feature, cells: pd.Series) -> Feature:
    """Take as many buckets as there are n-grams, up to a limit: below it few share one."""
    distinct: set[int] = set()
    width = 1
    for row in hash_texts(dict.fromkeys(map(join_text, cells)), WIDEST_TEXT):
        distinct.update(row)
        width = max(width, len(row))
    buckets = 1 << max(len(distinct) - 1, 0).bit_length()
    return replace(feature, width=width, buckets=min(max(buckets, FEWEST_BUCKETS), MOST_BUCKETS))


def _fit_vector(feature: Feature, cells: pd.Series) -> Feature:
    """Measure the width and the root mean square length: one scale for all entries keeps the geometry."""
    vectors = [vector for vector in map(_to_vector, cells) if vector is not None]
    if not vectors:
        raise SchemaError(f"feature '{feature.name}': no training row has a vector; leave the feature out")
    squares = [float(np.square(vector, dtype=np.float64).sum()) for vector in vectors]
    length = float(np.sqrt(np.mean(squares)))
    return replace(feature, width=len(vectors[0]), scale=length or 1.0)


def _to_vector(cell: object) -> Floats | None:
    return None if pd.api.types.is_scalar(cell) and to_text(cell) is None else read_vector(cell)


_FIT: dict[str, Callable[[Feature, pd.Series], Feature]] = {
    "categorical": _fit_categories,
    "multi_categorical": _fit_several,
    "numeric": _fit_number,
    "text": _fit_text,
    "vector": _fit_vector,
    "hour_of_day": _fit_calendar,
    "day_of_week": _fit_calendar,
}
