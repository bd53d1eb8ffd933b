"""The service behind the HTTP routes: it answers requests, takes in events and items, and exchanges versions."""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa

from serve.arrays import Ints, to_arrow
from serve.bundle import ITEMS_FILE, PROFILES, STATE, STATE_FILE
from serve.catalogue import REPEAT_RATE
from serve.clock import DAY
from serve.due import find_due
from serve.encode import split_cell, to_text
from serve.errors import BundleError, SchemaError
from serve.files import is_forgotten
from serve.reasons import explain as explain_items
from serve.reasons import find_segment
from serve.recommendations import Answer
from serve.recommender import Recommender
from serve.requests import MAX_PAUSE, Id, Request, ask_now, parse_id, parse_request
from serve.schema import SEVERAL, WORDED, Feature, Schema
from service.experiment import Arms, Experiment, Policy
from service.forget import Erasures
from service.known_users import fill_in, know_user
from service.live_items import LiveItems
from service.registry import LOADING_ERRORS
from service.sources import Source, explain_fault
from service.state import (
    ImpressionLog,
    Impressions,
    Recalled,
    StateStore,
    parse_observations,
)

POLICY = "greedy"  # lists are ordered by falling score
DECIMALS = 6  # of scores and cosines
_FOLLOW_SECONDS = (
    0.1  # between looks at what other processes did, and at a state that failed
)
_RETRY_SECONDS = 5.0
OUT_OF_SERVICE = "erasure"
FAULTS = {
    "disk": "events and what was shown cannot be kept: the disk is full or fails",
    "impressions": "what is shown is no longer logged; start the service again",
    "reload": "the last version was refused, an earlier one answers; the status says why",
    OUT_OF_SERVICE: "the list of forgotten users cannot be read: who is named in a request is not answered",
}
Clock = Literal[
    "data", "now"
]  # when a request without datetime is asked: data that ended long ago, at its end
_LOG = logging.getLogger("service.http")


class Service:
    """Everything that is served, without HTTP. Calls may come from many threads."""

    def __init__(
        self,
        source: Source,
        home: Path,
        profiles: Path | None,
        state: Path | None,
        retention_days: float,
        clock: Clock = "data",
        experiment: Experiment | None = None,
    ) -> None:
        """Load the versions to serve and open the live state; it and the profiles lie in `home` unless named."""
        folders = {PROFILES: profiles or home / PROFILES, STATE: state or home / STATE}
        for name, folder in folders.items():
            if folder.absolute().name != name:
                raise ValueError(
                    f"--{name} is {folder}; expected a folder called '{name}', in which forgetting looks"
                )
        runs = [
            *{
                folder.absolute().parent: folder.parent for folder in folders.values()
            }.values()
        ]
        self._folder = folders[STATE]
        self._retention_days = retention_days
        self._clock = clock
        self.beside = (
            self._folder.absolute().parent
        )  # of the state: where figures are that others measured
        self._source = source
        self._runs = runs
        self._erasures = Erasures(runs)
        self._reloading = threading.Lock()
        recommender, reason = source.start()
        self._open(recommender)
        items = self._folder / ITEMS_FILE
        self.arms = (
            None if experiment is None else Arms(experiment, items, source.load_version)
        )
        self.last_reload: dict[str, Any] | None = (
            None if reason is None else self._note_reload(reason)
        )
        self._load, version = (
            self.items.follow()
        )  # the last load of any process of this state
        if reason is None and version != self.version:
            self._note_load()
        self.impressions = ImpressionLog(self._state)
        self._is_closing = threading.Event()
        self._following = threading.Thread(
            target=self._follow, name="bascule-follow", daemon=True
        )
        self._following.start()

    @property
    def current(self) -> Recommender:
        """What answers now, with all live items. A request takes it once: no answer is of two versions."""
        return self.items.recommender

    @property
    def version(self) -> str:
        """The version of the bundle that answers."""
        return self.current.version

    def read(
        self, raw: Sequence[Mapping[str, Any]], current: Recommender
    ) -> Iterator[Request]:
        """Read the requests of one caller and complete them by what is known of their users, each looked up once.

        A request without a datetime is asked now, as `ask_now` says: by the clock of the data, unless it is to be ours.
        """
        now = int(time.time())
        know = cache(
            partial(know_user, profiles=current.profiles, recall=self._state.recall)
        )
        end = self._end(current)
        for place, one in enumerate(raw):
            try:
                request = parse_request(one, current.bundle.schema)
                if request.user_id is not None:
                    request = fill_in(request, know(request.user_id))
                if len(raw) > 1:
                    current.admission.check(request.filters)
            except SchemaError as error:
                raise SchemaError(
                    f"requests[{place}]: {error}" if len(raw) > 1 else str(error)
                ) from error
            yield ask_now(request, end, now) if request.datetime is None else request

    def clock(self, current: Recommender) -> Clock:
        """Tell by which clock requests without a datetime are asked: that of the data only if it ended long ago."""
        end = self._end(current)
        return "now" if end is None or time.time() - end <= MAX_PAUSE else "data"

    def _end(self, current: Recommender) -> int | None:
        """Return the end of the data, which profiles may have later than the bundle; None where our clock is asked."""
        schema = current.bundle.schema
        is_ours = self._clock == "now" or not schema.has_datetime
        return None if is_ours else max(schema.data_until, current.profiles.until)

    def log_shown(
        self,
        current: Recommender,
        answers: Iterable[Answer],
        request_id: str,
        policy: str = POLICY,
        arm: str | None = None,
    ) -> None:
        """Log the answers to one caller as shown."""
        now = int(time.time())
        shown = []
        for one in answers:
            drawn = (
                np.ones(len(one.item_id)) if one.propensity is None else one.propensity
            )
            lists = one.item_id.tolist(), one.score.tolist(), drawn.tolist()
            shown.append(
                Impressions(
                    request_id, one.user_id, now, current.version, policy, *lists, arm
                )
            )
        self.impressions.add(shown)

    def explores(self, user_id: Id | None, policy: Policy) -> bool:
        """Tell whether a list of a user may be drawn: not if they had as many today as the policy allows."""
        if policy.kind != "explore" or user_id is None:
            return policy.kind == "explore"
        return (
            self._state.count_answers(
                user_id, int(time.time()) // DAY * DAY, policy.kind
            )
            < policy.lists_per_day
        )

    def similar(self, item_id: Id, k: int, explain: bool) -> tuple[str, dict[str, Any]]:
        """Find the items nearest to a known item; return the version that answers, and the answer as JSON values."""
        recommender = self.current
        known = parse_id(item_id, recommender.bundle.schema.item_id_type, "item_id")
        ids, cosines = recommender.similar_items(known, k)
        pairs = zip(ids.tolist(), cosines.tolist(), strict=True)
        items: list[dict[str, Any]] = [
            {"item_id": near, "cosine": round(cosine, DECIMALS)}
            for near, cosine in pairs
        ]
        if explain:
            columns = show_items(
                recommender.catalogue.table,
                recommender.catalogue.item_ids.require(ids.tolist()),
            )
            items = [
                item | {"columns": one}
                for item, one in zip(items, columns, strict=True)
            ]
        reason = (
            {}
            if len(ids) == k
            else {"reason": f"the catalogue has {len(ids)} other items"}
        )
        return recommender.version, {"items": items, **reason}

    def due(self, raw: Mapping[str, Any], k: int) -> tuple[str, dict[str, Any]]:
        """List what a user takes again; return the version that answers, and the answer as JSON values."""
        recommender = self.current
        (asked,) = self.read([raw], recommender)
        (found,) = find_due(recommender, [asked], k)
        items = [
            vars(one) | {"score": round(one.score, DECIMALS)} for one in found.items
        ]
        known = {"user_known": asked.user_known, "reason": found.reason}
        given = {name: value for name, value in known.items() if value is not None}
        return recommender.version, {"items": items, "moment": asked.datetime, **given}

    def observe(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Keep events, all or none; return how many: not those of forgotten users, nor those that are too old."""
        now = int(time.time())
        observed = parse_observations(events, self._schema, now)
        return self._state.observe_many(
            [one for one in observed if self._state.is_recent(one.datetime, now)]
        )

    def forget(self, user_id: Id) -> Future[list[dict[str, Any]]]:
        """Let a user be erased; the result is a receipt for each folder that has profiles or state."""
        return self._erasures.add(
            parse_id(user_id, self._schema.user_id_type, "user_id")
        )

    def knows(self, user_id: Id) -> bool:
        """Tell whether there is anything about a user, who is not forgotten."""
        return bool(
            know_user(user_id, self.current.profiles, self._state.recall).user_known
        )

    def reload(self) -> str | None:
        """Load what the source has now, and let other processes do so; return why not: the version answers on."""
        with self._reloading:
            return self._take_up("")

    def _open(self, recommender: Recommender) -> None:
        """Open live items and state, or go on without."""
        try:
            with ExitStack() as undone:
                items = LiveItems(self._folder / ITEMS_FILE, recommender)
                undone.callback(items.close)
                self._state: StateStore = StateStore(
                    self._folder / STATE_FILE, self._runs, self._retention_days
                )
                undone.pop_all()
            self.items: LiveItems = items
        except OSError as error:
            _LOG.error("live items and state cannot be opened: %s", error)
            self.items = self._state = MissingState(recommender, self._runs, error)  # type: ignore[assignment]

    def _take_up(self, told: str) -> str | None:
        """Load what the source has now; tell other processes, unless it is the version that they told of."""
        before = self.version if told else ""
        reason = None
        try:
            self.items.rebase(self._source.load())
        except LOADING_ERRORS as error:
            reason = explain_fault(error)
        self.last_reload = self._note_reload(reason)
        if reason is None and self.version not in (before, told):
            self._note_load()
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)  # return what the former version took to the system
        return reason

    def _follow(self) -> None:
        """Take up items that other processes change, and versions that they load."""
        while isinstance(self._state, MissingState) and not self._is_closing.wait(
            _RETRY_SECONDS
        ):
            with self._reloading:
                self._open(self.current)
            self.impressions.store = self._state
        while not self._is_closing.wait(_FOLLOW_SECONDS):
            try:
                load, version = self.items.follow()
                if self.arms is not None:
                    self.arms.follow()
                with self._reloading:
                    if load > self._load:
                        self._load = load
                        if (reason := self._take_up(version)) is not None:
                            _LOG.error(
                                "version %s is loaded elsewhere, but not here: %s",
                                version,
                                reason,
                            )
            except LOADING_ERRORS as error:
                _LOG.error(
                    "other processes cannot be followed: %s", explain_fault(error)
                )

    def _note_load(self) -> None:
        try:
            self._load = self.items.note_load(self.version)
        except OSError as error:
            _LOG.error(
                "other processes do not follow to version %s: %s",
                self.version,
                error.strerror,
            )

    def names(self) -> frozenset[str]:
        """Return the names of features and columns, which are no secret."""
        features = (
            feature.name
            for side in ("user", "item", "context")
            for feature in self._schema.features(side)
        )
        return frozenset((*features, *self.current.catalogue.table.column_names))

    def describe(self) -> dict[str, Any]:
        """Return what answers, and how the last reload ended."""
        current = self.current
        schema = self._schema
        return {
            "version": current.version,
            "space_id": current.bundle.manifest.space_id,
            "loaded_at": current.loaded_at,
            "data_until": schema.data_until if schema.has_datetime else None,
            "clock": self.clock(current),
            "moment": ask_now(Request(), self._end(current), int(time.time())).datetime,
            "items": current.catalogue.n_listed,
            "users": len(current.profiles),
            "repeats": schema.repeats,
            "columns": current.admission.columns.names,
            "notes": [*self.items.notes, *self.note_age(), *self.impressions.notes],
            "last_reload": self.last_reload,
        }

    def note_age(self) -> list[str]:
        """Say that the data ended long ago, and when requests are asked then."""
        current = self.current
        schema = self._schema
        days = int(time.time() - max(schema.data_until, current.profiles.until)) // DAY
        if not schema.has_datetime or days * DAY <= MAX_PAUSE:
            return []
        if self.clock(current) == "data":
            return [
                f"the data ended {days} days ago: a request without datetime is asked at its end (--clock data)"
            ]
        fades = schema.repeats == "allow" or bool(schema.popularity_days)
        faded = f"the data ended {days} days ago: popularity and memory have faded for a request without datetime"
        return [faded] if fades else []

    def find_faults(self) -> dict[str, str]:
        """Name what fails at present, of `FAULTS`; answers go on without it, but with the last one only to nobody."""
        is_refused = self.last_reload is not None and not self.last_reload["is_loaded"]
        try:
            is_damaged = any(
                is_forgotten(run, "") for run in self._runs
            )  # reads the list, if it was changed
        except (BundleError, OSError):
            is_damaged = True
        failing = (
            self._state.fault is not None,
            bool(self.impressions.notes),
            is_refused,
            is_damaged,
        )
        return {
            name: text
            for (name, text), fails in zip(FAULTS.items(), failing, strict=True)
            if fails
        }

    def measure(self) -> dict[str, Any]:
        """Return the figures of the metrics that are the same for all workers."""
        return {
            "version": self.version,
            "items": self.current.catalogue.n_listed,
            "live_items": self.items.n_changed,
            "state_bytes": sum(map(_measure, self._folder.rglob("*"))),
            "state_free_bytes": disk_usage(
                next(filter(Path.is_dir, (self._folder, *self._folder.parents)))
            ).free,
        }

    def close(self) -> None:
        """Write what waits and close the files."""
        self._is_closing.set()
        self._following.join()
        self._erasures.close()
        self.impressions.close()
        self._state.close()
        self.items.close()
        if self.arms is not None:
            self.arms.close()

    @property
    def _schema(self) -> Schema:
        return self.current.bundle.schema

    def _note_reload(self, reason: str | None) -> dict[str, Any]:
        return {
            "is_loaded": reason is None,
            "version": self.version,
            "reason": reason,
            "time": time.time(),
        }


class MissingState:
    """Stands for live items and state that cannot be opened: it holds nothing, and refuses what is to be kept."""

    def __init__(
        self, recommender: Recommender, runs: Sequence[Path], fault: OSError
    ) -> None:
        self.recommender = recommender
        self._runs = runs
        self.fault = fault
        self.n_changed = 0
        self.notes = ["live items and state cannot be opened: what is sent is not kept"]

    def recall(self, user_id: Id) -> Recalled:
        return Recalled(
            is_forgotten=any(is_forgotten(run, user_id) for run in self._runs)
        )

    def follow(self) -> tuple[int, str]:
        return 0, ""

    def rebase(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def refuse(self, *_: Any) -> NoReturn:
        raise OSError(self.fault.errno, self.fault.strerror, self.fault.filename)

    def count_answers(self, *_: Any) -> int:
        return 0

    def close(self) -> None: ...

    put = put_many = remove = note_load = is_recent = observe_many = log_impressions = (
        expire_slices
    ) = refuse


def _measure(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # SQLite removes its logs when it likes
        return 0


def find_unknown(schema: Schema, request: Request) -> list[str]:
    """Name the features of a user or a moment of which a request gives a value that training has not seen."""
    sides = {"context": schema.context_features, "features": schema.user_features}
    asked = (
        (kind, one, (getattr(request, kind) or {}).get(one.name))
        for kind in sides
        for one in sides[kind]
    )
    return [
        f"{kind}.{one.name}" for kind, one, value in asked if _is_unknown(one, value)
    ]


def _is_unknown(feature: Feature, value: Any) -> bool:
    if value is None or feature.kind not in WORDED:
        return False
    texts = split_cell(feature, value) if feature.kind in SEVERAL else [to_text(value)]
    return any(text and text not in feature.codes for text in texts)


def show_items(table: pa.Table, rows: Ints) -> list[dict[str, Any]]:
    """Return column -> value of some items of a catalogue, without ids and vectors."""
    names = []
    for field in table.schema:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        is_vector = pa.types.is_fixed_size_list(field.type) or (
            is_list and pa.types.is_floating(field.type.value_type)
        )
        if field.name not in ("item_id", REPEAT_RATE) and not is_vector:
            names.append(field.name)
    shown = (
        table.select(names).take(to_arrow(np.asarray(rows, dtype=np.int64))).to_pylist()
    )
    return [{name: _plain(value) for name, value in one.items()} for one in shown]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return (
        value
        if value is None or isinstance(value, (str, int, float, list))
        else str(value)
    )


def show_answer(
    recommender: Recommender, request: Request, answer: Answer, explain: bool
) -> dict[str, Any]:
    """Return an answer as JSON values."""
    columns = zip(
        answer.item_id.tolist(),
        answer.score.tolist(),
        answer.rank.tolist(),
        strict=True,
    )
    items = [
        {"item_id": item_id, "score": round(score, DECIMALS), "rank": rank}
        for item_id, score, rank in columns
    ]
    if explain:
        (reasons,) = explain_items(recommender, [request], [answer.item_id.tolist()])
        shown = show_items(
            recommender.catalogue.table,
            recommender.catalogue.item_ids.find(answer.item_id),
        )
        for item, values, found in zip(items, shown, reasons, strict=True):
            item |= {"columns": values, "reasons": [one.to_json() for one in found]}
    content: dict[str, Any] = {
        "items": items,
        "unknown_items": answer.unknown_items,
        "moment": request.datetime,
    }
    if request.user_known is not None:
        content["user_known"] = request.user_known
    if explain and (segment := find_segment(recommender, request)):
        content["segment"] = {
            "id": segment.id,
            "size": segment.size,
            "text": segment.text,
        }
    if unknown := find_unknown(recommender.bundle.schema, request):
        content["unknown_values"] = unknown
    return content if answer.reason is None else content | {"reason": answer.reason}
