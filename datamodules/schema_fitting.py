"""The schema that training and serving share: vocabularies, scales, widths and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from datamodules.config import DataConfig, FeatureConfig
from datamodules.tables import Tables
from datamodules.values import find_ties, is_set
from serve.arrays import IdType, Repeats
from serve.cells import hash_texts, join_text, read_vector, to_text
from serve.clock import DAY, LAST_SECOND
from serve.errors import SchemaError
from serve.kinds import Feature, Kind, to_days
from serve.schema import MIN_USERS, Schema

MEMORY_LENGTH = 4000
MIN_HISTORY = 10
LONGEST_HISTORY = 100
LONGEST_SET = 500
LONGEST_RECENT = 20
MOST_HISTORIES = 0.99  # the share of histories that are read whole, within these limits
MOST_GAPS = 0.99  # the share of gaps between visits that the longest one covers
# Time constants of decayed counts, as shares of the time that the training data spans.
DECAY_SHARES = (0.03, 0.09, 0.27, 0.9)
# Windows of recent popularity, as shares of the span.
POPULARITY_SHARES = (9 / 334, 28 / 334, 112 / 334)
DEFAULT_SPAN = 100.0  # days taken for the span where the data has no times
WIDEST_CELL = 32  # the most values kept of a cell with several
WIDEST_TEXT = 64  # the most n-grams kept of a text
# With more values a feature tells single rows apart, and its table fills the memory.
MAX_VOCABULARY = 200_000
MIN_BUCKETS = 2**8
MAX_BUCKETS = 2**14


def fit_schema(
    tables: Tables,
    train: pd.DataFrame,
    config: DataConfig,
    previous: Schema | None = None,
) -> Schema:
    """Fit all that training and serving must agree on, from training rows.

    Args:
        tables: users and items; those without training rows are left out.
        train: the interactions of the training.
        config: the declared features, and how events are ordered.
        previous: a schema whose codes and scales stay: vocabularies and event types grow at their
            end alone, a value that is gone keeps its code.

    Raises:
        SchemaError: the data cannot be what the configuration says, or does not fit `previous`.
    """
    check_times(train, config)
    users = tables.users[tables.users["user_id"].isin(train["user_id"])]
    items = tables.items[tables.items["item_id"].isin(train["item_id"])]
    data_until = 0
    span = DEFAULT_SPAN

    if "datetime" in train:
        seconds = train["datetime"]
        data_until = int(seconds.max()) + 1
        span = float(max(seconds.max() - seconds.min(), 1)) / DAY

    weight_mean, weight_scale = _fit_weight(train, previous)
    length = config.history_length or _fit_history_length(train, config.repeats)
    schema = Schema(
        user_features=_fit_features(config, "user", users, previous),
        item_features=_fit_features(config, "item", items, previous),
        context_features=_fit_features(config, "context", train, previous),
        user_id_type=_fit_id_type(train, "user_id", previous),
        item_id_type=_fit_id_type(train, "item_id", previous),
        event_types=_fit_event_types(train, previous),
        has_datetime="datetime" in train,
        has_weight="weight" in train,
        weight_mean=weight_mean,
        weight_scale=weight_scale,
        timezone=config.timezone,
        ties=find_ties(train, config.ties),
        repeats=config.repeats,
        history_length=length,
        memory_length=MEMORY_LENGTH,
        decay_days=_scale_days(DECAY_SHARES, span),
        popularity_days=_choose_popularity_days(train, config.repeats, span),
        data_until=data_until,
        pseudonyms=config.keys.first if config.keys else None,
        lifts_owned=True,
    )
    if previous is not None:
        _check_pseudonyms(schema, previous)

    # Dates become ages when the end of the data is known.
    at_events = train[["user_id"]].assign(days=0.0)

    if schema.has_datetime:
        at_events["days"] = (train["datetime"] - data_until) / DAY
    at_end = items[["item_id"]].assign(days=0.0)
    return replace(
        schema,
        user_features=_fit_ages(schema, "user", users, at_events, previous),
        item_features=_fit_ages(schema, "item", items, at_end, previous),
    )


def _check_pseudonyms(schema: Schema, previous: Schema) -> None:
    """Refuse other keys than those of the previous run, whose users would be strangers."""
    if previous.pseudonyms not in (None, schema.pseudonyms):
        raise SchemaError(
            f"data.pseudonyms is not the key file of the previous run, whose first key is "
            f"{previous.pseudonyms}; give that"
        )


def check_times(train: pd.DataFrame, config: DataConfig) -> None:
    """Refuse what needs times or an order that the interactions lack, by a `SchemaError`."""
    has_datetime = "datetime" in train
    if config.ties == "simultaneous" and is_set(train):
        raise SchemaError(
            "data.ties is 'simultaneous' and the interactions have no datetime or position; "
            "allowed: ordered"
        )

    if config.repeats == "allow" and is_set(train):
        raise SchemaError(
            "data.repeats is 'allow' and the interactions have no datetime or position; "
            "allowed: exclude"
        )

    declared = config.features.of("user").values()
    if not has_datetime and any(feature.kind == "date" for feature in declared):
        raise SchemaError(
            "a date of users is declared and the interactions have no datetime; "
            "allowed: of items"
        )


# ---- times, weights, ids and histories


def _scale_days(shares: Iterable[float], span: float) -> tuple[float, ...]:
    """Return shares of the span in days, to three digits."""
    return tuple(float(f"{share * span:.3g}") for share in shares)


def _choose_popularity_days(
    train: pd.DataFrame, repeats: Repeats, span: float
) -> tuple[float, ...]:
    if is_set(train):
        return (1.0,)
    if repeats == "allow" and "datetime" in train:
        return _scale_days(POPULARITY_SHARES, span)
    # Every event of a window is a target, and popularity would be of the future too.
    return ()


def _fit_weight(train: pd.DataFrame, previous: Schema | None) -> tuple[float, float]:
    """Return mean and scale of log(1 + weight)."""
    if previous is not None and previous.has_weight:
        return previous.weight_mean, previous.weight_scale
    if "weight" not in train:
        return 0.0, 1.0
    return mean_and_scale(np.log1p(train["weight"].to_numpy(np.float64)))


def _fit_id_type(train: pd.DataFrame, name: str, previous: Schema | None) -> IdType:
    is_integer = pd.api.types.is_integer_dtype(train[name])
    id_type: IdType = "integer" if is_integer else "string"
    before = getattr(previous, f"{name}_type", id_type)
    if id_type != before:
        raise SchemaError(
            f"{name} is {id_type}; the previous schema has {before} ids: "
            "give the ids as they were"
        )

    return id_type


def _fit_event_types(train: pd.DataFrame, previous: Schema | None) -> tuple[str, ...]:
    before = () if previous is None else previous.event_types
    if "event" not in train:
        return before
    return append_new(before, by_frequency(train["event"], train["user_id"]))


def _fit_history_length(train: pd.DataFrame, repeats: Repeats) -> int:
    """Return the length that nearly no history exceeds, within limits."""
    limit = LONGEST_HISTORY
    if is_set(train):
        train = train[["user_id", "item_id"]].drop_duplicates()
        limit = LONGEST_SET
    elif repeats == "allow":
        limit = LONGEST_RECENT

    lengths = train["user_id"].value_counts().to_numpy()
    length = np.ceil(np.quantile(lengths, MOST_HISTORIES))

    return int(np.clip(length, MIN_HISTORY, limit))


def fit_longest_gap(train: pd.DataFrame) -> int:
    """Return the seconds that nearly no gap between two visits of a user exceeds.

    Args:
        train: interactions with times; those of a user on one day are one visit.

    Returns:
        That of no limit if nobody came twice.
    """
    days = train["datetime"] // DAY * DAY
    visits = train[["user_id"]].assign(datetime=days).drop_duplicates()
    visits = visits.sort_values(["user_id", "datetime"])
    gaps = visits.groupby("user_id")["datetime"].diff().dropna()
    return int(gaps.quantile(MOST_GAPS)) if len(gaps) else LAST_SECOND


# ---- ages: how long ago dates are, of users at their events, of items at the end of the data


def _fit_ages(
    schema: Schema,
    side: str,
    rows: pd.DataFrame,
    moments: pd.DataFrame,
    previous: Schema | None,
) -> tuple[Feature, ...]:
    """Fit the dates of a side at moments: ids, and days after the end of the data."""
    before = _by_name(previous, side)
    id_name = f"{side}_id"
    features = []

    for feature in schema.features(side):
        if feature.is_date and previous is not None and feature.name in before:
            # The same age stays the same number.
            days = (previous.data_until - schema.data_until) / DAY
            feature = replace(feature, mean=feature.mean + days)
        elif feature.is_date:
            dates = to_days(feature, rows[feature.column], schema.timezone)
            date_of = pd.Series(dates, rows[id_name])
            ages = moments["days"] - moments[id_name].map(date_of)
            feature = _with_scale(feature, ages.to_numpy())
        features.append(feature)

    return tuple(features)


def _by_name(schema: Schema | None, side: str) -> dict[str, Feature]:
    features = () if schema is None else schema.features(side)
    return {feature.name: feature for feature in features}


def _with_scale(feature: Feature, numbers: np.ndarray) -> Feature:
    mean, scale = mean_and_scale(numbers)
    return replace(feature, mean=mean, scale=scale)


# ---- features


def _fit_features(
    config: DataConfig, side: str, rows: pd.DataFrame, previous: Schema | None
) -> tuple[Feature, ...]:
    before = _by_name(previous, side)
    users = None if side == "item" else rows["user_id"]
    features = []

    for name, declared in config.features.of(side).items():
        cells = rows[str(declared.column)]
        features.append(fit_feature(name, declared, cells, before.get(name), users))

    return tuple(features)


def fit_feature(
    name: str,
    declared: FeatureConfig,
    cells: pd.Series,
    previous: Feature | None,
    users: pd.Series | None,
) -> Feature:
    """Fit a feature, or let the previous one grow: new values follow its vocabulary.

    Args:
        name: name of the feature.
        declared: its kind, column and separator.
        cells: (n,) its column in the training rows.
        previous: the feature in the previous schema: all but its width and vocabulary stays.
        users: (n,) the user of each cell: values of fewer than `MIN_USERS` get no code.

    Raises:
        SchemaError: the column has too many values, no scale or no vector, or changed its kind.
    """
    separator = declared.separator or Feature.separator
    blank = Feature(name, declared.kind, str(declared.column), separator=separator)
    fit = _FITS[blank.kind]
    if previous is None:
        return fit(blank, cells, users)
    if previous.traits is not blank.traits:
        raise SchemaError(
            f"feature '{name}' is {blank.kind}; "
            f"the previous schema has it as {previous.kind}: give it another name"
        )

    grown = replace(previous, column=blank.column, separator=blank.separator)

    if not blank.has_vocabulary:
        return grown
    fitted = fit(blank, cells, users)
    return replace(
        grown,
        vocabulary=append_new(previous.vocabulary, fitted.vocabulary),
        width=max(previous.width, fitted.width),
    )


def append_new(previous: tuple[str, ...], values: Iterable[str]) -> tuple[str, ...]:
    """Return the previous values, unchanged, and after them the others: no code changes."""
    return tuple(dict.fromkeys((*previous, *values)))


def by_frequency(cells: pd.Series, users: pd.Series | None) -> tuple[str, ...]:
    """Return the distinct texts of a column, most frequent first, ties by text.

    Given the user of each cell, only values of `MIN_USERS` or more are kept.
    """
    if users is not None:
        cells = cells.where(users.groupby(cells).transform("nunique") >= MIN_USERS)

    counts: Counter[str] = Counter()

    for value, count in cells.value_counts().items():
        text = to_text(value)
        if text is not None:  # 7, 7.0 and "7" are one text
            counts[text] += int(count)

    if len(counts) > MAX_VOCABULARY:
        raise SchemaError(
            f"column '{cells.name}' has {len(counts):,} values; allowed: {MAX_VOCABULARY:,}; "
            "declare it as text, or as numeric or date if it is one"
        )

    return tuple(sorted(counts, key=lambda text: (-counts[text], text)))


def mean_and_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the finite numbers; a deviation of 0 becomes 1."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return 0.0, 1.0
    # Rounding could leave a deviation that is tiny and not 0.
    if np.ptp(finite) == 0:
        return float(finite[0]), 1.0
    return float(finite.mean()), float(finite.std())


# ---- each kind


def _fit_several(
    feature: Feature, cells: pd.Series, users: pd.Series | None
) -> Feature:
    values = cells.map(feature.texts)
    lengths = np.array([len(texts) for texts in values], dtype=np.int64)
    if users is not None:
        users = users.repeat(np.maximum(lengths, 1).tolist())
    return replace(
        feature,
        vocabulary=by_frequency(values.explode(), users),
        width=int(np.clip(lengths.max(initial=1), 1, WIDEST_CELL)),
    )


def _fit_text(feature: Feature, cells: pd.Series, users: pd.Series | None) -> Feature:
    """Take as many buckets as there are n-grams, up to a limit: below it few share one."""
    distinct: set[int] = set()
    width = 1

    for hashes in hash_texts(dict.fromkeys(map(join_text, cells)), WIDEST_TEXT):
        distinct.update(hashes)
        width = max(width, len(hashes))

    buckets = 1 << max(len(distinct) - 1, 0).bit_length()
    return replace(
        feature, width=width, buckets=min(max(buckets, MIN_BUCKETS), MAX_BUCKETS)
    )


def _number_codes(feature: Feature, *_: object) -> Feature:
    return replace(feature, vocabulary=tuple(map(str, range(feature.traits.period))))


def _fit_number(feature: Feature, cells: pd.Series, users: pd.Series | None) -> Feature:
    numbers = cells.to_numpy(np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # refused below
        fitted = _with_scale(feature, numbers)

    # Every value would be 0, or none a number.
    if not np.isfinite([fitted.mean, fitted.scale]).all() or fitted.scale == 0.0:
        raise SchemaError(
            f"feature '{feature.name}': the values have no standard deviation in double "
            "precision; give them in another unit, or name `min` and `max`"
        )

    return fitted


def _fit_vector(feature: Feature, cells: pd.Series, users: pd.Series | None) -> Feature:
    """Measure the width and the root mean square length: one scale keeps the geometry."""
    vectors = [vector for vector in map(read_vector, cells) if vector is not None]
    if not vectors:
        raise SchemaError(
            f"feature '{feature.name}': no training row has a vector; leave the feature out"
        )

    squares = [float(np.square(vector, dtype=np.float64).sum()) for vector in vectors]
    length = float(np.sqrt(np.mean(squares)))

    return replace(feature, width=len(vectors[0]), scale=length or 1.0)


_FITS: dict[Kind, Callable[[Feature, pd.Series, pd.Series | None], Feature]] = {
    "categorical": lambda feature, cells, users: replace(
        feature, vocabulary=by_frequency(cells, users)
    ),
    "multi_categorical": _fit_several,
    "hierarchical": _fit_several,
    "text": _fit_text,
    "hour_of_day": _number_codes,
    "day_of_week": _number_codes,
    "month_of_year": _number_codes,
    "week_of_year": _number_codes,
    "numeric": _fit_number,
    # `_fit_ages` goes on.
    "date": lambda feature, cells, users: feature,
    "vector": _fit_vector,
}
