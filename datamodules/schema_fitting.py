"""The schema that training and serving share: vocabularies, scales, widths and limits, fitted on training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from datamodules.config import DataConfig, FeatureConfig
from datamodules.tables import Tables, is_set
from serve.clock import DAY
from serve.encode import join_text, split_cell, to_days, to_text
from serve.errors import SchemaError
from serve.kinds import hash_texts, read_vector
from serve.schema import MIN_USERS, SEVERAL, WORDED, Feature, IdType, Repeats, Schema

MEMORY_LENGTH = 4000
MIN_HISTORY = 10
LONGEST_HISTORY = 100
LONGEST_SET = 500
LONGEST_RECENT = 20
DECAY_SHARES = (0.03, 0.09, 0.27, 0.9)
"""Time constants of decayed counts, as shares of the time that the training data spans."""
DEFAULT_SPAN = 100.0  # days taken for the span where the data has no times
POPULARITY_SHARES = (
    9 / 334,
    28 / 334,
    112 / 334,
)  # windows of recent popularity, as shares of the span
WIDEST_CELL = 32  # the most values kept of a cell with several, and n-grams of a `text`
WIDEST_TEXT = 64
MAX_VOCABULARY = 200_000  # values of a feature: with more it tells single rows apart, and its table fills the memory
MIN_BUCKETS = 2**8
MAX_BUCKETS = 2**14
HOURS = 24
DAYS = 7


def fit_schema(
    tables: Tables,
    train: pd.DataFrame,
    config: DataConfig,
    previous: Schema | None = None,
) -> Schema:
    """Fit everything that training and serving must agree on, from training rows and their users and items.

    Codes and scales of a previous schema stay: vocabularies and event types grow at their end alone, a value that is
    gone keeps its code, and means, scales, buckets and vector widths are as before.
    """
    if config.ties == "simultaneous" and "datetime" not in train:
        raise SchemaError(
            "data.ties is 'simultaneous' and the interactions have no datetime; allowed: ordered"
        )
    if config.repeats == "allow" and is_set(train):
        raise SchemaError(
            "data.repeats is 'allow' and the interactions have no datetime or position; allowed: exclude"
        )
    until = int(train["datetime"].max()) + 1 if "datetime" in train else 0
    if "datetime" not in train and any(
        one.kind == "date" for one in config.features.of("user").values()
    ):
        raise SchemaError(
            "a date of users is declared and the interactions have no datetime; allowed: of items"
        )
    users = tables.users[tables.users["user_id"].isin(train["user_id"])]
    items = tables.items[tables.items["item_id"].isin(train["item_id"])]
    weight_mean, weight_scale = _fit_weight(train, previous)
    has_datetime = "datetime" in train
    unordered = is_set(train)
    seconds = train["datetime"] if has_datetime else pd.Series([0, DEFAULT_SPAN * DAY])
    span = float(max(seconds.max() - seconds.min(), 1)) / DAY
    # elsewhere every event of a window is a target, and popularity would be of the future too
    popularity = (
        _scale_days(POPULARITY_SHARES, span)
        if config.repeats == "allow" and has_datetime
        else ()
    )
    found = by_frequency(train["event"], train["user_id"]) if "event" in train else ()
    schema = Schema(
        user_features=_fit_features(config, "user", users, previous),
        item_features=_fit_features(config, "item", items, previous),
        context_features=_fit_features(config, "context", train, previous),
        user_id_type=_fit_id_type(train, "user", previous),
        item_id_type=_fit_id_type(train, "item", previous),
        event_types=append_new(() if previous is None else previous.event_types, found),
        has_datetime=has_datetime,
        has_weight="weight" in train,
        weight_mean=weight_mean,
        weight_scale=weight_scale,
        timezone=config.timezone,
        ties="simultaneous" if unordered else config.ties,
        repeats=config.repeats,
        history_length=config.history_length
        or _fit_history_length(train, config.repeats),
        memory_length=MEMORY_LENGTH,
        decay_days=_scale_days(DECAY_SHARES, span),
        popularity_days=(1.0,) if unordered else popularity,
        data_until=until,
    )
    days = (seconds - until) / DAY
    of_users = _fit_ages(schema, "user", users, train["user_id"], days, previous)
    of_items = _fit_ages(schema, "item", items, items["item_id"], 0.0, previous)
    return replace(schema, user_features=of_users, item_features=of_items)


def _fit_ages(
    schema: Schema,
    side: str,
    rows: pd.DataFrame,
    ids: pd.Series,
    days: pd.Series | float,
    previous: Schema | None,
) -> tuple[Feature, ...]:
    """Fit the ages that the dates of a side have for ids at moments, so many days after the end of the data."""
    before = (
        ()
        if previous is None
        else tuple(feature.name for feature in previous.features(side))
    )

    def fit(feature: Feature) -> Feature:
        if feature.kind != "date":
            return feature
        if (
            previous is not None and feature.name in before
        ):  # the same age stays the same number
            return replace(
                feature,
                mean=feature.mean + (previous.data_until - schema.data_until) / DAY,
            )
        dates = pd.Series(
            to_days(feature, rows[feature.column].to_numpy(), schema.timezone),
            rows[f"{side}_id"],
        )
        mean, scale = mean_and_scale((days - ids.map(dates)).to_numpy())
        return replace(feature, mean=mean, scale=scale)

    return tuple(map(fit, schema.features(side)))


def _fit_features(
    config: DataConfig, side: str, rows: pd.DataFrame, previous: Schema | None
) -> tuple[Feature, ...]:
    before = (
        {}
        if previous is None
        else {feature.name: feature for feature in previous.features(side)}
    )
    users = None if side == "item" else rows["user_id"]
    return tuple(
        fit_feature(name, declared, rows[str(declared.column)], before.get(name), users)
        for name, declared in config.features.of(side).items()
    )


def _fit_id_type(train: pd.DataFrame, side: str, previous: Schema | None) -> IdType:
    name = f"{side}_id"
    found: IdType = (
        "integer" if pd.api.types.is_integer_dtype(train[name]) else "string"
    )
    before = found if previous is None else getattr(previous, f"{name}_type")
    if found != before:
        raise SchemaError(
            f"{name} is {found}; the previous schema has {before} ids: give the ids as they were"
        )
    return found


def _fit_weight(train: pd.DataFrame, previous: Schema | None) -> tuple[float, float]:
    """Return mean and scale of log(1 + weight)."""
    if previous is not None and previous.has_weight:
        return previous.weight_mean, previous.weight_scale
    if "weight" not in train:
        return 0.0, 1.0
    return mean_and_scale(np.log1p(train["weight"].to_numpy(np.float64)))


def _fit_history_length(train: pd.DataFrame, repeats: Repeats) -> int:
    """Return the length that nearly no history exceeds, within limits."""
    pairs = train[["user_id", "item_id"]].drop_duplicates() if is_set(train) else train
    longest = np.ceil(np.quantile(pairs["user_id"].value_counts().to_numpy(), 0.99))
    limit = (
        LONGEST_RECENT
        if repeats == "allow"
        else LONGEST_SET
        if is_set(train)
        else LONGEST_HISTORY
    )
    return int(np.clip(longest, MIN_HISTORY, limit))


def _scale_days(shares: Iterable[float], span: float) -> tuple[float, ...]:
    """Return shares of the span in days, to three digits."""
    return tuple(float(f"{share * span:.3g}") for share in shares)


def fit_feature(
    name: str,
    declared: FeatureConfig,
    cells: pd.Series,
    previous: Feature | None,
    users: pd.Series | None,
) -> Feature:
    """Fit a feature, or let the previous one grow: new values follow its vocabulary, all else but widths stays."""
    blank = Feature(
        name,
        declared.kind,
        str(declared.column),
        separator=declared.separator or Feature.separator,
    )
    if previous is None:
        return _fit(blank, cells, users)
    if previous.kind != declared.kind:
        raise SchemaError(
            f"feature '{name}' is {declared.kind}; the previous schema has it as {previous.kind}: give it another name"
        )
    kept = replace(previous, column=blank.column, separator=blank.separator)
    if declared.kind not in WORDED:
        return kept
    fitted = _fit(blank, cells, users)
    vocabulary = append_new(previous.vocabulary, fitted.vocabulary)
    return replace(kept, vocabulary=vocabulary, width=max(previous.width, fitted.width))


def append_new(previous: tuple[str, ...], values: Iterable[str]) -> tuple[str, ...]:
    """Return the previous values, unchanged, and after them the others: no code changes."""
    return tuple(dict.fromkeys((*previous, *values)))


def by_frequency(cells: pd.Series, users: pd.Series | None) -> tuple[str, ...]:
    """Return the distinct texts of a column, most frequent first; given the user of each cell, those of `MIN_USERS`."""
    if users is not None:
        cells = cells.where(users.groupby(cells).transform("nunique") >= MIN_USERS)
    counts: Counter[str] = Counter()
    for value, count in cells.value_counts().items():
        text = to_text(value)
        if text is not None:  # 7, 7.0 and "7" are one text
            counts[text] += int(count)
    if len(counts) > MAX_VOCABULARY:
        allowed = f"{MAX_VOCABULARY:,}; declare it as text, or as numeric or date if it is one"
        raise SchemaError(
            f"column '{cells.name}' has {len(counts):,} values; allowed: {allowed}"
        )
    return tuple(
        sorted(counts, key=lambda text: (-counts[text], text))
    )  # ties by value


def mean_and_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the finite numbers; a deviation of 0 becomes 1."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return 0.0, 1.0
    if (
        known.min() == known.max()
    ):  # rounding could leave a deviation that is tiny and not 0
        return float(known[0]), 1.0
    return float(known.mean()), float(known.std())


def _fit(feature: Feature, cells: pd.Series, users: pd.Series | None) -> Feature:
    """Fit a feature by its kind."""
    fits = {"numeric": _fit_number, "text": _fit_text, "vector": _fit_vector}
    if feature.kind in fits:
        return fits[feature.kind](feature, cells)
    if feature.kind in SEVERAL:
        return _fit_several(feature, cells, users)
    if feature.kind == "date":
        return feature  # `_fit_ages` goes on
    if feature.kind == "categorical":
        return replace(feature, vocabulary=by_frequency(cells, users))
    return replace(
        feature,
        vocabulary=tuple(
            map(str, range(HOURS if feature.kind == "hour_of_day" else DAYS))
        ),
    )


def _fit_several(
    feature: Feature, cells: pd.Series, users: pd.Series | None
) -> Feature:
    values = cells.map(lambda cell: split_cell(feature, cell))
    width = min(max(map(len, values), default=1), WIDEST_CELL)
    owners = (
        None if users is None else users.repeat([max(len(cell), 1) for cell in values])
    )
    return replace(
        feature, vocabulary=by_frequency(values.explode(), owners), width=max(width, 1)
    )


def _fit_number(feature: Feature, cells: pd.Series) -> Feature:
    numbers = cells.to_numpy(np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # refused below
        mean, scale = mean_and_scale(numbers)
    if (
        not np.isfinite([mean, scale]).all() or scale == 0.0
    ):  # every value would be 0, or none a number
        raise SchemaError(
            f"feature '{feature.name}': values from {np.nanmin(numbers):g} to {np.nanmax(numbers):g} have no standard "
            "deviation in double precision; give them in another unit, or name `min` and `max`"
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
    return replace(
        feature, width=width, buckets=min(max(buckets, MIN_BUCKETS), MAX_BUCKETS)
    )


def _fit_vector(feature: Feature, cells: pd.Series) -> Feature:
    """Measure the width and the root mean square length: one scale for all entries keeps the geometry."""
    known = (
        cell
        for cell in cells
        if not pd.api.types.is_scalar(cell) or to_text(cell) is not None
    )
    vectors = [vector for vector in map(read_vector, known) if vector is not None]
    if not vectors:
        raise SchemaError(
            f"feature '{feature.name}': no training row has a vector; leave the feature out"
        )
    squares = [float(np.square(vector, dtype=np.float64).sum()) for vector in vectors]
    length = float(np.sqrt(np.mean(squares)))
    return replace(feature, width=len(vectors[0]), scale=length or 1.0)
