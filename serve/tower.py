"""From requests to user vectors: encode as in training, then run the towers in ONNX Runtime.

`RequestEncoder` turns requests into named arrays. `Tower` is one graph, and `TowerPair` runs both
graphs of a bundle on such arrays.

Letters: T requests, L history positions, E events or owned items, N items of the catalogue,
W columns of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serve.arrays import Floats, Ints
from serve.catalogue import ItemFacts, ItemIds
from serve.encode import (
    TIME,
    EncodedFeatures,
    category_rows,
    context_keys,
    encode_rows,
    keyed_by_name,
)
from serve.errors import BundleError
from serve.events import (
    HISTORY_INPUTS,
    OWNED_INPUTS,
    REQUEST_INPUTS,
    VECTOR_INPUTS,
    Arrays,
    Events,
    TowerInputs,
    history_arrays,
    last_moments,
    limit_moments,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.index import UNKNOWN_ROW, Pairs
from serve.kinds import FIRST_CODE, UNKNOWN
from serve.requests import History, Request
from serve.schema import Schema

# A time later than every moment: an event without a time counts as happening at the moment.
NO_TIME = int(np.iinfo(np.int64).max)

SPACE_ID = "space_id"  # key in a tower's metadata
_ITEM_INPUTS = ("item_codes", "item_values", "categories")
_USER_INPUTS = (*HISTORY_INPUTS, *REQUEST_INPUTS, *OWNED_INPUTS, *VECTOR_INPUTS)

_LOG_FATAL = 4  # other errors reach the caller as exceptions

# ONNX Runtime's own errors share no base but Exception.
_ORT_ERRORS = tuple(
    kind
    for kind in vars(ort_errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)


# ---- requests as inputs


@dataclass(frozen=True, eq=False)
class EncodedRequests:
    """The arrays of T requests, at least one.

    Attributes:
        requests: the requests, with what is known of their users.
        moments: (T,) UTC seconds.
        tower: the inputs of the user tower.
        owned: the items of the histories.
        excluded: the items that the requests exclude.
        unknown_items: (T,) number of distinct items of each history that are not known.
    """

    requests: Sequence[Request]
    moments: Ints
    tower: TowerInputs
    owned: Pairs
    excluded: Pairs
    unknown_items: Ints


class RequestEncoder:
    """Encode the requests of one catalogue as in training."""

    def __init__(
        self, schema: Schema, item_ids: ItemIds, facts: ItemFacts | None
    ) -> None:
        self._schema = schema
        self._item_ids = item_ids
        self._facts = facts
        self._user_features = keyed_by_name(schema.user_features)
        self._context_features = keyed_by_name(schema.context_features)
        self._event_codes = dict(zip(schema.event_types, count(FIRST_CODE)))

    def encode(self, requests: Sequence[Request]) -> EncodedRequests:
        """Encode requests that hold what is known of their users, at least one.

        Events later than the moment of their request count as happening at it.
        """
        schema = self._schema
        nothing = History(self._item_ids.ids[:0])
        histories = [request.history or nothing for request in requests]
        events = self._read_histories(histories)
        moment = self._find_moments(requests, events)
        unknown_items = _count_unknown(events, histories)
        events = _keep_known(events, moment)

        features = [request.features or {} for request in requests]
        users = encode_rows(self._user_features, features, schema.timezone)
        contexts = [
            {**(request.context or {}), TIME: request.datetime} for request in requests
        ]
        context = encode_rows(self._context_features, contexts, schema.timezone)
        keys = context_keys(self._context_features, context.codes)
        arrays, history_rows = history_arrays(events, schema, keys)
        arrays |= request_arrays(moment, users, context, schema)
        arrays["request_times"] = limit_moments(events, moment, schema)
        owned_rows = history_rows[:0, 0]
        owned_pairs = (events.segments, events.item_row)
        facts = self._facts
        if facts is not None:
            owned = summarise_owned(
                events.last(schema.memory_length),
                arrays["request_times"],
                schema.decay_days,
                len(schema.event_types),
                facts.repeat_rate,
            )
            arrays |= owned_arrays(owned, facts.categories, facts.n_categories)
            owned_rows = owned.item_row

        return EncodedRequests(
            requests=requests,
            moments=moment,
            tower=TowerInputs(arrays, history_rows, owned_rows),
            owned=owned_pairs,
            excluded=self._find_excluded(requests),
            unknown_items=unknown_items,
        )

    def _read_histories(self, histories: Sequence[History]) -> Events:
        """Put histories together; missing are `UNKNOWN_ROW` of an item and `NO_TIME` of a time."""
        schema = self._schema
        ids = _join(histories, "item_id", None, np.object_)
        # A missing weight is the mean, which standardises to 0.
        mean = np.expm1(schema.weight_mean) if schema.has_weight else 1.0
        weight = _join(histories, "weight", np.nan, np.float64)
        weight = np.where(np.isnan(weight), mean, weight)
        weight = np.minimum(weight, np.finfo(np.float32).max)
        code_of = self._event_codes.get
        names = _join(histories, "event", None, np.object_)
        codes = np.array([code_of(name, UNKNOWN) for name in names], np.int64)
        times = _join(histories, "datetime", NO_TIME, np.int64) * schema.has_datetime
        offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
        contexts = _join(histories, "context", 0, np.int64)

        return Events(
            item_row=self._item_ids.find(ids),
            time=times,
            event=codes,
            weight=weight.astype(np.float32),
            offsets=offsets,
            context=contexts,
        )

    def _find_moments(self, requests: Sequence[Request], events: Events) -> Ints:
        """Return the moment of each request, (T,).

        It is its datetime, else the time of its last event, else the end of the training data.
        """
        if not self._schema.has_datetime:
            return np.zeros(len(requests), dtype=np.int64)
        moments = last_moments(events, NO_TIME)
        moments[moments == NO_TIME] = self._schema.data_until
        for place, request in enumerate(requests):
            if request.datetime is not None:
                moments[place] = request.datetime

        return moments

    def _find_excluded(self, requests: Sequence[Request]) -> Pairs:
        lengths = [len(request.exclude) for request in requests]
        owner = np.arange(len(requests)).repeat(lengths)
        ids = [item_id for request in requests for item_id in request.exclude]
        rows = self._item_ids.find(ids)
        is_known = rows != UNKNOWN_ROW
        return owner[is_known], rows[is_known]


def _join(
    histories: Sequence[History], name: str, missing: Any, dtype: Any
) -> NDArray[Any]:
    """Put one column of all histories in an array, `missing` where a history lacks it."""
    columns = []
    for history in histories:
        column = getattr(history, name)
        if column is None:
            column = np.full(len(history), missing)
        columns.append(np.asarray(column, dtype))

    return np.concatenate(columns)


def _count_unknown(events: Events, histories: Sequence[History]) -> Ints:
    """Count the distinct items of each history that are not known, (T,)."""
    n_unknown = np.zeros(len(events), np.int64)
    is_unknown = events.item_row == UNKNOWN_ROW
    for owner in np.unique(events.segments[is_unknown]).tolist():
        is_own = is_unknown[events.offsets[owner] : events.offsets[owner + 1]]
        n_unknown[owner] = len(set(histories[owner].item_id[is_own].tolist()))

    return n_unknown


def _keep_known(events: Events, moment: Ints) -> Events:
    """Return the events of known items, none later than the moment of its request."""
    time = np.minimum(events.time, moment.repeat(events.counts))
    is_known = events.item_row != UNKNOWN_ROW
    counts = np.bincount(events.segments[is_known], minlength=len(events))
    offsets = np.cumsum([0, *counts])
    return replace(events, time=time).pick(np.flatnonzero(is_known), offsets)


# ---- the graphs


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Tower:
    """One ONNX graph in a session of its own.

    Attributes:
        name: of its file.
        inputs: name -> type and shape.
        space_id: the space that the graph was exported for; None if it does not say.
        width: columns of its first output; None if the graph leaves them open.
    """

    def __init__(self, name: str, content: bytes, n_threads: int) -> None:
        """Start a session of the content of a file.

        Raises:
            BundleError: if it is no graph, or one that does not run here.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _LOG_FATAL
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as error:
            raise BundleError(
                f"{name} is no ONNX graph that runs here: {error}"
            ) from error

        self.name = name
        self.inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._outputs = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.space_id: str | None = metadata.get(SPACE_ID)
        width = self._session.get_outputs()[0].shape[-1]
        self.width = width if isinstance(width, int) else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph.

        Args:
            inputs: an array for each name in `inputs`, perhaps others that the graph does not
                read. No code or row is negative, since -1 would be read as the last one.

        Returns:
            The outputs by name.

        Raises:
            ValueError: if the graph refuses an input, or an output is not finite.
        """
        fed = {name: inputs[name] for name in self.inputs if name in inputs}
        try:
            values = self._session.run(self._outputs, fed)
        except _ORT_ERRORS as error:
            raise ValueError(f"{self.name} refuses its inputs: {error}") from error

        outputs = dict(zip(self._outputs, values, strict=True))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{self.name}: output '{name}' is not finite; "
                    "check the inputs' numbers"
                )

        return outputs


class TowerPair:
    """Both towers of a bundle behind arrays that this code makes."""

    def __init__(self, user: Tower, item: Tower, schema: Schema) -> None:
        """Check that the graphs read what is made here; a `BundleError` names an input."""
        for tower, made in ((user, _USER_INPUTS), (item, _ITEM_INPUTS)):
            for name in sorted(tower.inputs.keys() - set(made)):
                raise BundleError(
                    f"{tower.name} reads '{name}'; allowed: {', '.join(made)}: "
                    "export the bundle again"
                )

        self._user = user
        self._item = item
        self._schema = schema
        history = user.inputs.get("history_vectors")
        width = history and history.shape[-1]
        if type(width) is not int:  # a name stands for any size
            raise BundleError(
                f"{user.name} reads no history of a fixed width: "
                "export the bundle again"
            )

        # The first columns of the item vectors: histories hold them, and `similar` compares them.
        self.taste_dim: int = width

    def users(self, inputs: TowerInputs, vectors: Floats) -> tuple[Floats, Floats]:
        """Run the user tower.

        Args:
            inputs: the arrays of T requests, with rows of `vectors`.
            vectors: (N, W) item vectors.

        Returns:
            User vectors (T, W), and the memory's score of each owned item, (E,); no scores if the
            bundle has no memory.
        """
        tastes = vectors[:, : self.taste_dim]
        arrays = inputs.arrays | {
            "history_vectors": tastes[inputs.history_rows],
            "owned_vectors": vectors.take(inputs.owned_rows, axis=0),
        }
        outputs = self._user.run(arrays)
        no_memory = np.zeros(len(inputs.owned_rows), dtype=np.float32)
        return outputs["user_vectors"], outputs.get("memory", no_memory)

    def items(self, encoded: EncodedFeatures) -> Floats:
        """Return the vectors (n, W) of items that the catalogue does not have."""
        arrays: Arrays = {
            "item_codes": encoded.codes,
            "item_values": encoded.values,
            "categories": category_rows(self._schema.item_features, encoded.codes),
        }
        return self._item.run(arrays)["item_vectors"]
