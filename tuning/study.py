"""A study on disk: what was tried is kept through a kill, and the next trial follows from what is finished alone."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from models.checkpoints import compare
from serve.errors import SchemaError
from tuning.space import Space

DATABASE = "study.db"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
"""A trial that was not killed, whether it was worth finishing or not."""

_NAME, _ORIGIN = "study", "origin"
_BUSY_SECONDS = 30
_MOST_REPEATS = 3
"""How often a trial is begun once more after a kill, before another is drawn: it may be what kills."""


@contextmanager
def open_study(folder: Path, origin: Mapping[str, Any]) -> Iterator[optuna.Study]:
    """Open the study of a folder, or begin it; trials that were killed are failed.

    Args:
        folder: that holds the database; nobody else may work in it.
        origin: what is searched, and in which data, as JSON values.

    Raises:
        SchemaError: the database is damaged, or holds a study of something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / DATABASE
    with _explain_faults(path):
        if not path.exists():
            _create(path, origin)
        with _connected(path) as storage:
            study = _load(path, storage)
            _refuse_another(study, origin, folder)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
            yield study


def list_done(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, in their order."""
    return study.get_trials(deepcopy=False, states=DONE)


def ask(study: optuna.Study, space: Space, default: Mapping[str, Any], seed: int) -> Trial:
    """Begin the next trial: first the default, then what the finished trials and the seed lead to."""
    n_done = len(list_done(study))
    n_repeats = _count_repeats(study) // _MOST_REPEATS
    drawn = np.random.SeedSequence((seed, n_done, n_repeats)).generate_state(1)
    study.sampler = TPESampler(seed=int(drawn[0]))  # anew for each trial: no generator is kept in the database
    if not n_done and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(default))
    return study.ask(space)


def _count_repeats(study: optuna.Study) -> int:
    """Count the failed trials since the last that counts."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    places = [place for place, state in enumerate(states) if state in DONE]
    return states[places[-1] + 1 if places else 0 :].count(TrialState.FAIL)


def _create(path: Path, origin: Mapping[str, Any]) -> None:
    """Make the database beside its place: it is whole or it is not there."""
    partial_path = path.with_name(f"{path.name}.part")
    partial_path.unlink(missing_ok=True)
    with _connected(partial_path) as storage:
        study = optuna.create_study(study_name=_NAME, storage=storage, direction="maximize")
        study.set_user_attr(_ORIGIN, json.loads(json.dumps(origin)))
    os.replace(partial_path, path)


def _load(path: Path, storage: RDBStorage) -> optuna.Study:
    try:
        return optuna.load_study(study_name=_NAME, storage=storage, pruner=MedianPruner(n_warmup_steps=2))
    except KeyError as error:  # of an empty file, which is a database to SQLite
        raise SchemaError(f"{path} holds no study; if it is damaged, begin anew with --overwrite") from error


@contextmanager
def _connected(path: Path) -> Iterator[RDBStorage]:
    """Open by path, since some names are no part of a URL, and close."""
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        opened.append(sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False))
        return opened[-1]

    try:
        storage = RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs={"creator": connect})
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    finally:
        for connection in opened:  # of a damaged file there is no storage that would close them
            connection.close()


def _refuse_another(study: optuna.Study, origin: Mapping[str, Any], folder: Path) -> None:
    for difference in compare(study.user_attrs[_ORIGIN], json.loads(json.dumps(origin))):
        raise SchemaError(
            f"{folder} holds another study: {difference}; give the same as then, or another --out, or add --overwrite"
        )


@contextmanager
def _explain_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise SchemaError(f"{path} cannot be used: {reason}; if it is damaged, begin anew with --overwrite") from error
