"""The service behind the routes: it answers, keeps events and items, and exchanges versions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache, lru_cache, partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal

import numpy as np

from serve.arrays import Id
from serve.bundle import ITEMS_FILE, PROFILES, STATE, STATE_FILE
from serve.clock import DAY
from serve.due import find_due
from serve.errors import SchemaError
from serve.recommendations import Answer
from serve.recommender import Recommender
from serve.requests import MAX_PAUSE, Request, ask_now, parse_request
from serve.schema import Schema
from service.answers import Content, show_due, show_similar
from service.database import check_database
from service.event_log import Impressions, Raw, keep_recent, parse_observations
from service.experiment import Experiment, Policy
from service.faults import FAULTS, OUT_OF_SERVICE, lacks_erasures, name_fault_of
from service.forget import Erasures
from service.impressions import ImpressionLog
from service.known_users import MissingState, fill_in, know_user
from service.live_items import Arms, LiveItems
from service.registry import LOADING_ERRORS
from service.remote.shared import open_shared
from service.sources import NO_PROFILES, Source, explain_fault
from service.state import StateStore

POLICY = "greedy"  # lists are ordered by falling score
_FOLLOW_SECONDS = 0.1  # between looks at what other processes did
_RETRY_SECONDS = 5.0  # between attempts to open live items and state
_MAX_CONFIRMED = 10_000  # latest requests that are not confirmed twice
# Room that impressions leave to events and erasures: of a small disk one part in so many.
_SPARE_BYTES = 2**30
_SPARE_PART = 20
_LOGGED = 100  # items of a list that are logged: longer ones would fill the disk
Clock = Literal["data", "now"]  # default time of a request: the end of the data, or now
_FAILED_HERE = "another process loaded version %s, this one failed: %s"
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
        impression_days: float | None = None,
        expires_most: bool = False,
    ) -> None:
        """Load the versions to serve and open the live state.

        Args:
            source: where versions come from.
            home: folder of profiles and state, unless they are named.
            profiles: folder called 'profiles'.
            state: folder called 'state'; without it, that of BASCULE_STATE is used if it is set.
            retention_days: age at which events are removed.
            clock: default time of a request; 'data' holds only if the data ended long ago.
            experiment: arms of users, if there are any.
            impression_days: age at which impressions are removed; by default the same.
            expires_most: whether more than half of the log may be removed at once.

        Raises:
            BundleError: no version can be loaded.
            ValueError: a folder or the retention is not allowed.
        """
        self._folder = state or home / STATE
        folders = {PROFILES: profiles or home / PROFILES, STATE: self._folder}
        for name, folder in folders.items():
            if folder.absolute().name != name:
                raise ValueError(
                    f"--{name} is {folder}; expected a folder called '{name}', in which "
                    "forgetting looks"
                )

        runs = (folder.absolute().parent for folder in folders.values())
        self._runs = list(dict.fromkeys(runs))
        self._days = retention_days, impression_days
        self._clock = clock
        self._source = source
        # Where figures of use and drift lie.
        self.beside = self._folder.absolute().parent
        self._reloading = threading.Lock()

        recommender, reason = source.start()
        self.arms: Arms | None = None
        if experiment is not None:
            items = self._folder / ITEMS_FILE
            self.arms = Arms(experiment, items, source.load_version)
        self.shared = open_shared(state, self._runs, *self._days)
        self.erasures = Erasures(self._runs, self.shared)
        self._open(recommender)

        self.last_reload: Content | None = None
        if reason is not None:
            self._note_reload(reason)

        # The last version that any process of this state has loaded.
        self._load, version = self.items.follow()
        if reason is None and version != self.version:
            self._announce()

        self.impressions = ImpressionLog(self._state, expires_most)
        # Whoever confirms in a loop fills no log: a failure is tried again.
        self.confirm = lru_cache(_MAX_CONFIRMED)(self._confirm)
        self._is_closing = threading.Event()
        self._following = threading.Thread(
            target=self._follow, name="bascule-follow", daemon=True
        )
        self._following.start()

    @property
    def current(self) -> Recommender:
        """The recommender that answers now, with all live items; a request takes it once."""
        return self.items.recommender

    @property
    def version(self) -> str:
        """The version of the bundle that answers."""
        return self.current.version

    # ---- answers

    def read(self, raw: Sequence[Raw], current: Recommender) -> Iterator[Request]:
        """Read the requests of one caller, with what is known of their users.

        Args:
            raw: requests as JSON has them.
            current: the version that will answer.

        Yields:
            Requests with a datetime: without one they are asked at the end of the data or now.

        Raises:
            SchemaError: names the request, if there are several, and what does not fit.
        """
        now = int(time.time())
        end = self._end(current)
        recall = self._state.recall
        know = cache(partial(know_user, profiles=current.profiles, recall=recall))
        is_batch = len(raw) > 1
        for index, content in enumerate(raw):
            try:
                request = parse_request(content, current.bundle.schema)
                if request.user_id is not None:
                    request = fill_in(request, know(request.user_id))
                if is_batch:
                    current.admission.check(request.filters)
            except SchemaError as error:
                where = f"requests[{index}]: " if is_batch else ""
                raise SchemaError(f"{where}{error}") from error
            yield ask_now(request, end, now)

    def clock(self, current: Recommender) -> Clock:
        """Return the clock of requests without a datetime, 'data' only if it ended long ago."""
        end = self._end(current)
        return "now" if end is None or time.time() - end <= MAX_PAUSE else "data"

    def _end(self, current: Recommender) -> int | None:
        """Return the end of the data, profiles included; None if requests are asked now."""
        schema = current.bundle.schema
        if self._clock == "now" or not schema.has_datetime:
            return None
        return max(schema.data_until, current.profiles.until)

    def log_shown(
        self,
        current: Recommender,
        answers: Iterable[Answer],
        request_id: str,
        policy: str = POLICY,
        arm: str | None = None,
    ) -> None:
        """Log the answers to one caller; they count as shown once that is confirmed.

        Args:
            current: the version that answered.
            answers: one for each request of the caller.
            request_id: of the call.
            policy: text of the policy that ordered the lists.
            arm: label of the experiment's arm.
        """
        now = int(time.time())
        impressions = []
        for answer in answers:
            propensities = answer.propensity
            if propensities is None:
                propensities = np.ones(len(answer.item_id))

            head = (request_id, answer.user_id, now, current.version, policy)
            item_ids = answer.item_id[:_LOGGED].tolist()
            scores = answer.score[:_LOGGED].tolist()
            columns = (item_ids, scores, propensities[:_LOGGED].tolist())
            impressions.append(Impressions(*head, *columns, arm))

        self.impressions.add(impressions)

    def explores(self, user_id: Id | None, policy: Policy) -> bool:
        """Tell whether a list of a user may be drawn: only so many a day, as the policy says."""
        if policy.kind != "explore" or user_id is None:
            return policy.kind == "explore"
        today = int(time.time()) // DAY * DAY
        n_today = self._state.count_answers(user_id, today, policy.kind)
        return n_today < policy.lists_per_day

    def similar(self, item_id: Id, k: int, explain: bool) -> tuple[str, Content]:
        """Find the items nearest to a known one; return the version and the answer."""
        recommender = self.current
        return recommender.version, show_similar(recommender, item_id, k, explain)

    def due(self, raw: Raw, k: int) -> tuple[str, Content]:
        """List what a user takes again; return the version and the answer."""
        recommender = self.current
        (request,) = self.read([raw], recommender)
        (due,) = find_due(recommender, [request], k)
        return recommender.version, show_due(request, due)

    # ---- events and users

    def observe(self, events: Sequence[Raw]) -> tuple[int, str | None]:
        """Keep events, all or none; return how many are on disk, and why others are not."""
        now = int(time.time())
        observations = parse_observations(events, self._schema, now)
        return keep_recent(self._state.observe_many, observations, now, self._days[0])

    def _confirm(self, request_id: str) -> None:
        """Keep that the lists of a request were seen; it is on disk when this returns."""
        self._state.log_impressions([Impressions.confirm(request_id, int(time.time()))])

    def forget(self, user_id: Id) -> Future[list[Content]]:
        """Let a user be erased; the result is a receipt for each folder with profiles or state."""
        user_id = self._schema.parse_user_id(user_id, "user_id")
        return self.erasures.add(user_id)

    def choose(self, user_id: Id, is_out: bool) -> list[str]:
        """Let a user opt out of profiling, or in again; kept when this returns their hashes."""
        user_id = self._schema.parse_user_id(user_id, "user_id")
        return self.erasures.choose(user_id, is_out)

    def knows(self, user_id: Id) -> bool:
        """Tell whether there is a profile or an event of a user, who is not forgotten."""
        user_id = self._schema.parse_user_id(user_id, "user_id")
        known = know_user(user_id, self.current.profiles, self._state.recall)
        return bool(known.user_known)

    def _open(self, recommender: Recommender) -> None:
        """Open live items and state, or go on without."""
        try:
            with ExitStack() as on_error:
                items = LiveItems(self._folder / ITEMS_FILE, recommender)
                on_error.callback(items.close)
                file = self._folder / STATE_FILE, self._runs, *self._days
                if self.shared is None:
                    check_database(file[0])
                state = self.shared or StateStore(*file)
                on_error.pop_all()
        except OSError as error:
            _LOG.error("live items and state cannot be opened: %s", error)
            missing: Any = MissingState(recommender, self._runs, error)
            items = missing
            state = self.shared or missing

        self.items = items
        self._state = state

    # ---- versions, here and in other processes

    def reload(self) -> str | None:
        """Load what the source has now, and let other processes do so.

        Returns:
            None, or why it was refused: the version before still answers.
        """
        with self._reloading:
            return self._take_up("")

    def _take_up(self, announced: str) -> str | None:
        """Load what the source has now; announce it, unless that was done elsewhere."""
        before = self.version if announced else ""
        reason = None
        try:
            self.items.rebase(self._source.load())
        except LOADING_ERRORS as error:
            reason = explain_fault(error)

        self._note_reload(reason)
        if reason is None and self.version not in (before, announced):
            self._announce()
        return reason

    def _follow(self) -> None:
        """Take up items that other processes change, and versions that they load."""
        while isinstance(self.items, MissingState):
            if self._is_closing.wait(_RETRY_SECONDS):
                return
            with self._reloading:
                self._open(self.current)
            self.impressions.store = self._state

        while not self._is_closing.wait(_FOLLOW_SECONDS):
            try:
                disk = disk_usage(self._folder)
                spare = min(_SPARE_BYTES, disk.total // _SPARE_PART)
                self.impressions.is_short = disk.free < spare
                load, version = self.items.follow()
                if self.arms is not None:
                    self.arms.follow()
                with self._reloading:
                    if load > self._load:
                        self._load = load
                        reason = self._take_up(version)
                        if reason is not None:
                            _LOG.error(_FAILED_HERE, version, reason)
            except LOADING_ERRORS as error:
                _LOG.error("others cannot be followed: %s", explain_fault(error))

    def _announce(self) -> None:
        """Let other processes load the version that answers here."""
        try:
            self._load = self.items.note_load(self.version)
        except OSError as error:
            _LOG.error(
                "other processes do not follow to version %s: %s",
                self.version,
                error.strerror,
            )

    def _note_reload(self, reason: str | None) -> None:
        self.last_reload = {
            "is_loaded": reason is None,
            "version": self.version,
            "reason": reason,
            "time": time.time(),
        }

    # ---- status

    def names(self) -> frozenset[str]:
        """Return the names of features and columns, which are no secret."""
        names = set(self.current.catalogue.table.column_names)
        for side in ("user", "item", "context"):
            names |= {feature.name for feature in self._schema.features(side)}
        return frozenset(names)

    def describe(self) -> Content:
        """Return what answers, and how the last reload ended."""
        current = self.current
        schema = self._schema
        data_until = schema.data_until if schema.has_datetime else None
        asked_now = ask_now(Request(), self._end(current), int(time.time()))
        return {
            "version": current.version,
            "space_id": current.bundle.manifest.space_id,
            "loaded_at": current.loaded_at,
            "data_until": data_until,
            "seen": current.bundle.manifest.facts.config.get("seen"),
            "clock": self.clock(current),
            "moment": asked_now.datetime,
            "items": current.catalogue.n_listed,
            "users": len(current.profiles),
            "repeats": schema.repeats,
            "columns": current.admission.columns.names,
            "notes": [*self.items.notes, *self.list_notes()],
            "last_reload": self.last_reload,
        }

    def list_notes(self) -> list[str]:
        """Say what the operator should know: the data is old, or nobody has a profile."""
        current = self.current
        until = max(self._schema.data_until, current.profiles.until)
        days = int(time.time() - until) // DAY
        notes = []
        if self._schema.has_datetime and days * DAY > MAX_PAUSE:
            moment = "now, and popularity and memory have faded"
            if self.clock(current) == "data":
                moment = "at its end (--clock data)"
            ended = f"the data ended {days} days ago"
            notes.append(f"{ended}: a request without datetime is asked {moment}")

        if not len(current.profiles):
            notes.append(NO_PROFILES)
        return notes

    def find_faults(self) -> dict[str, str]:
        """Name what fails, of `FAULTS`. The service still answers, except for `OUT_OF_SERVICE`."""
        last = self.last_reload
        fails = {
            name_fault_of(self._state): True,
            "expiry": self.impressions.keeps_old,
            "impressions": self.impressions.has_stopped,
            "reload": last is not None and not last["is_loaded"],
            OUT_OF_SERVICE: lacks_erasures(self._state, self._runs),
        }
        return {name: text for name, text in FAULTS.items() if fails.get(name)}

    def measure(self) -> Content:
        """Return the figures of the metrics that are the same for all workers."""
        folders = (self._folder, *self._folder.parents)
        present = next(folder for folder in folders if folder.is_dir())
        n_bytes = sum(map(_measure, self._folder.rglob("*")))
        return {
            "version": self.version,
            "items": self.current.catalogue.n_listed,
            "live_items": self.items.n_changed,
            "state_bytes": n_bytes,
            "state_free_bytes": disk_usage(present).free,
        }

    def close(self) -> None:
        """Write what waits and close the files."""
        self._is_closing.set()
        self._following.join()
        self.erasures.close()
        self.impressions.close()
        self._state.close()
        self.items.close()
        if self.arms is not None:
            self.arms.close()

    @property
    def _schema(self) -> Schema:
        return self.current.bundle.schema


def _measure(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # SQLite removes its logs when it likes
        return 0
