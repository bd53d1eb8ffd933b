"""Give the users of a run the pseudonyms by a new key: a new line at the end of the key file.

A pseudonym by it is made from the one before, so that the earlier keys stay in the file, and
nobody's id is needed. Profiles and live state are replaced in one step each; who has the last key
already keeps their pseudonym, so that a rotation that was stopped is done again. Lists, feedback
and exports keep the earlier pseudonyms until they are made again, and nobody is found in them by
the new one.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from serve.bundle import BUNDLE, PROFILES, STATE, STATE_FILE, Bundle
from serve.cells import find_keys
from serve.errors import BundleError, SchemaError
from serve.files import read_erasure_list, read_opt_outs
from serve.profiles import Profiles, settle_profiles, stage_profiles
from serve.recommender import Recommender
from service.database import name_fault, user_key
from service.event_log import open_log

# Who came under both pseudonyms meanwhile becomes one user.
_RENAME = """BEGIN IMMEDIATE;
UPDATE users SET id = rename(id), is_integer = 0 WHERE typeof(id) = 'text';
CREATE TEMP TABLE doubles AS SELECT number, first FROM (SELECT number,
    first_value(number) OVER (PARTITION BY id ORDER BY place) AS first
    FROM users WHERE typeof(id) = 'text') WHERE number <> first;
UPDATE event_rows SET user = (SELECT first FROM doubles d WHERE d.number = user)
    WHERE user IN (SELECT number FROM doubles);
UPDATE answer_rows SET user = (SELECT first FROM doubles d WHERE d.number = user)
    WHERE user IN (SELECT number FROM doubles);
UPDATE users SET id = zeroblob(length(CAST(id AS BLOB)))
    WHERE number IN (SELECT number FROM doubles);
DELETE FROM user_keys;
INSERT INTO user_keys SELECT key_of(id), place FROM users WHERE typeof(id) = 'text';
COMMIT;
VACUUM;
PRAGMA wal_checkpoint(TRUNCATE)"""


def check_keys(recommender: Recommender) -> Recommender:
    """Refuse to answer users whose keys the environment does not name, by a `BundleError`."""
    keys = find_keys(recommender.bundle.schema.pseudonyms)
    first = recommender.profiles.user_ids[:1].tolist()
    if keys is not None and [*map(keys.name, first)] != first:
        raise BundleError(
            "the profiles have pseudonyms by an earlier key: bascule rotate --run DIR"
        )
    return recommender


def rotate(run: Path) -> None:
    """Rename the users of the profiles and of the live state of a run by the last key.

    Args:
        run: folder of the run.

    Raises:
        SchemaError: the run has no pseudonyms.
        BundleError: the environment does not name its keys.
    """
    bundle = Bundle.load(run / BUNDLE)
    keys = find_keys(bundle.schema.pseudonyms)
    if keys is None:
        raise SchemaError(f"{run} has no pseudonyms: train it with data.pseudonyms")
    if len(read_erasure_list(run)) or len(read_opt_outs(run)):
        raise SchemaError(
            f"{run} lists who was forgotten or opted out by present pseudonyms, whom another key "
            "would bring back: keep this key, or take their rows out of your tables and train into "
            "another folder with the new key alone"
        )

    version = bundle.manifest.version
    profiles = Profiles.load(run / PROFILES, version)
    names = np.array([*map(keys.name, profiles.user_ids)], np.object_)
    stage_profiles(run / PROFILES, [replace(profiles, user_ids=names)], version)
    settle_profiles(run / PROFILES, version)

    path = run / STATE / STATE_FILE
    if not path.exists():
        return
    with name_fault(path), closing(open_log(path)) as state:
        (salt,) = state.execute("SELECT value FROM salt").fetchone()
        state.create_function("rename", 1, keys.name)
        state.create_function("key_of", 1, lambda name: user_key(salt, name))
        for statement in _RENAME.split(";"):
            state.execute(statement)
