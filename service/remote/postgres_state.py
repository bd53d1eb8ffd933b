"""The state in PostgreSQL (13 or later): three tables and a salt, and functions that change them.

bascule_users   key and name of each user; the name is NULL once the user is forgotten
bascule_opted_out  key of each user who opted out
bascule_rows    number by arrival, kind (`events` or `answers`), user, time, and record in JSON

The views `bascule_events` and `bascule_answers` show the rows by columns, for people.

Whoever writes rows of a user holds the row of the user until the end of the transaction: events of
one user come one after the other, and none comes between a look and a write. Rows of nobody wait
for none: their rows of `bascule_users`, named `null`, stay once they are there.
"""

from __future__ import annotations

import select
from collections import deque
from contextlib import suppress
from typing import Any

import psycopg

from serve.errors import SchemaError
from service.remote.remote_state import PATIENCE, RemoteState

_SETTINGS = ("fsync", "synchronous_commit")
# The lock is for services that start at once.
_TABLES = """
SELECT pg_advisory_xact_lock(4342353);
CREATE TABLE IF NOT EXISTS bascule_salt (is_one boolean PRIMARY KEY, salt text NOT NULL);
CREATE TABLE IF NOT EXISTS bascule_users (key text COLLATE "C" PRIMARY KEY, name text);
CREATE TABLE IF NOT EXISTS bascule_opted_out (key text COLLATE "C" PRIMARY KEY);
CREATE TABLE IF NOT EXISTS bascule_rows (number bigserial PRIMARY KEY, kind text NOT NULL,
    user_key text COLLATE "C" NOT NULL, datetime bigint NOT NULL, record json NOT NULL,
    n_shown integer NOT NULL, policy text NOT NULL);
CREATE INDEX IF NOT EXISTS bascule_rows_of_user
    ON bascule_rows (user_key, kind, datetime, number);
CREATE INDEX IF NOT EXISTS bascule_rows_in_time ON bascule_rows (datetime);
CREATE OR REPLACE VIEW bascule_events AS
    SELECT r.number, u.name AS user_id, r.record->0 AS item_id, r.record->1 AS event,
    to_timestamp(r.datetime) AS happened, r.record->3 AS weight, r.record->4 AS request_id
    FROM bascule_rows r JOIN bascule_users u ON u.key = r.user_key WHERE r.kind = 'events';
CREATE OR REPLACE VIEW bascule_answers AS
    SELECT r.number, u.name AS user_id, to_timestamp(r.datetime) AS happened,
    r.record->'bundle_version' AS version, r.record->'policy' AS policy,
    r.record->'arm' AS arm, r.record->'item_ids' AS item_ids
    FROM bascule_rows r JOIN bascule_users u ON u.key = r.user_key WHERE r.kind = 'answers';

CREATE OR REPLACE FUNCTION bascule_start(made text) RETURNS json LANGUAGE sql AS $$
    INSERT INTO bascule_salt VALUES (true, made) ON CONFLICT DO NOTHING;
    SELECT to_json(salt) FROM bascule_salt $$;

CREATE OR REPLACE FUNCTION bascule_add(of_kind text, rows json) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    item json;
    n_kept integer := 0;
BEGIN
    SELECT coalesce(json_agg(i), '[]') INTO rows FROM json_array_elements(rows) i
        WHERE NOT EXISTS (SELECT 1 FROM bascule_opted_out WHERE key = i->>0);
    INSERT INTO bascule_users AS u
        SELECT DISTINCT ON (i->>0) i->>0, i->>1 FROM json_array_elements(rows) i
        WHERE i->>1 <> 'null' OR NOT EXISTS (SELECT 1 FROM bascule_users WHERE key = i->>0)
        ORDER BY i->>0
        ON CONFLICT (key) DO UPDATE SET name = u.name;
    FOR item IN SELECT * FROM json_array_elements(rows) LOOP
        CONTINUE WHEN (SELECT name IS NULL FROM bascule_users WHERE key = item->>0);
        n_kept := n_kept + 1;
        INSERT INTO bascule_rows (kind, user_key, datetime, record, n_shown, policy)
            SELECT of_kind, item->>0, (item->>2)::bigint, (item->>3)::json, (item->>6)::integer,
            item->>7
            WHERE item->>4 = '-' OR NOT EXISTS
            (SELECT 1 FROM bascule_rows WHERE user_key = item->>0 AND kind = of_kind
             AND datetime = (item->>2)::bigint AND starts_with(record::text, item->>4)
             AND number > (SELECT coalesce(max(number), 0) FROM bascule_rows
                 WHERE user_key = item->>0 AND kind = of_kind
                 AND datetime = (item->>2)::bigint AND starts_with(record::text, item->>5)));
    END LOOP;
    RETURN to_json(n_kept);
END $$;

CREATE OR REPLACE FUNCTION bascule_fetch(of_user text, n_most integer) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT json_build_object('name', CASE WHEN u.key IS NULL THEN '' ELSE u.name END,
        'opted_out', c.key IS NOT NULL, 'rows', (
        SELECT coalesce(json_agg(json_build_array(number, record)), '[]') FROM (
            SELECT number, record FROM bascule_rows WHERE user_key = of_user AND kind = 'events'
            ORDER BY datetime DESC, number DESC LIMIT n_most) r))
    FROM (SELECT of_user AS key) k LEFT JOIN bascule_users u ON u.key = k.key
    LEFT JOIN bascule_opted_out c ON c.key = k.key
    WHERE u.key IS NOT NULL OR c.key IS NOT NULL $$;

CREATE OR REPLACE FUNCTION bascule_choose(of_user text, is_out integer) RETURNS json
LANGUAGE sql AS $$
    DELETE FROM bascule_opted_out WHERE key = of_user AND is_out = 0;
    INSERT INTO bascule_opted_out SELECT of_user WHERE is_out = 1 ON CONFLICT DO NOTHING;
    SELECT 'null'::json $$;

CREATE OR REPLACE FUNCTION bascule_count(of_user text, since bigint, beginning text) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT to_json(count(*)) FROM bascule_rows WHERE user_key = of_user AND kind = 'answers'
    AND datetime >= since AND starts_with(policy, beginning) $$;

CREATE OR REPLACE FUNCTION bascule_age(events_before bigint, answers_before bigint, after text)
RETURNS json LANGUAGE sql STABLE AS $$
    SELECT json_build_object(
        'next', CASE WHEN count(*) < 10000 THEN '0' ELSE max(number)::text END,
        'rows', json_build_array(json_build_array(after, json_build_array(
            coalesce(max(datetime), 0), 2 * count(*) FILTER (WHERE datetime <
            CASE kind WHEN 'events' THEN events_before ELSE answers_before END) - count(*)))))
    FROM (SELECT number, kind, datetime FROM bascule_rows
        WHERE number > coalesce(nullif(after, ''), '0')::bigint ORDER BY number LIMIT 10000) r $$;

CREATE OR REPLACE FUNCTION bascule_expire(of_kind text, before bigint) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    numbers bigint[];
    keys text[];
BEGIN
    SELECT array_agg(number), array_agg(user_key) INTO numbers, keys FROM
        (SELECT number, user_key FROM bascule_rows
         WHERE kind = of_kind AND datetime < before LIMIT 200) r;
    IF numbers IS NULL THEN RETURN NULL; END IF;
    PERFORM 1 FROM bascule_users WHERE key = ANY(keys) ORDER BY key FOR UPDATE;
    DELETE FROM bascule_rows WHERE number = ANY(numbers);
    DELETE FROM bascule_users u WHERE key = ANY(keys) AND name <> 'null' -- nor NULL
        AND NOT EXISTS (SELECT 1 FROM bascule_rows WHERE user_key = u.key);
    RETURN to_json(cardinality(numbers));
END $$;

CREATE OR REPLACE FUNCTION bascule_forget(keys json) RETURNS json LANGUAGE plpgsql AS $$
DECLARE erased json;
BEGIN
    INSERT INTO bascule_users (key) SELECT k FROM json_array_elements_text(keys) k ORDER BY k
        ON CONFLICT (key) DO UPDATE SET name = NULL;
    WITH gone AS (DELETE FROM bascule_rows WHERE user_key IN
        (SELECT json_array_elements_text(keys)) RETURNING kind, n_shown)
    SELECT json_build_object('events', count(*) FILTER (WHERE kind = 'events'),
        'impressions', coalesce(sum(n_shown), 0))
        INTO erased FROM gone;
    RETURN erased;
END $$;

CREATE OR REPLACE FUNCTION bascule_read(of_kind text, after text) RETURNS json
LANGUAGE plpgsql STABLE AS $$
DECLARE page json;
BEGIN
    IF of_kind = 'opted_out' THEN
        SELECT json_build_object('next', coalesce(max(key), '0'),
            'rows', coalesce(json_agg(json_build_array(key, NULL)), '[]')) INTO page FROM
            (SELECT key FROM bascule_opted_out WHERE key > after
             ORDER BY key LIMIT 1000) c;
    ELSIF of_kind = 'forgotten' THEN
        SELECT json_build_object('next', coalesce(max(key), '0'),
            'rows', coalesce(json_agg(json_build_array(key, NULL)), '[]')) INTO page FROM
            (SELECT key FROM bascule_users WHERE name IS NULL AND key > after
             ORDER BY key LIMIT 1000) u;
    ELSE
        SELECT json_build_object('next', coalesce(max(number), 0)::text, 'rows', coalesce(
            json_agg(json_build_array(number, json_build_array(name, record))), '[]'))
            INTO page FROM (SELECT r.number, u.name, r.record FROM bascule_rows r
             JOIN bascule_users u ON u.key = r.user_key
             WHERE r.kind = of_kind AND r.number > coalesce(nullif(after, ''), '0')::bigint
             ORDER BY r.number LIMIT 1000) t;
    END IF;
    RETURN page;
END $$;
"""


class _Connection(psycopg.Connection[Any]):
    """A connection that a silent server does not hold up."""

    def wait(
        self, gen: Any, interval: float = 0.1, timeout: float | None = None
    ) -> Any:
        """Wait for the server."""
        return super().wait(gen, interval, timeout or PATIENCE)


class PostgresState(RemoteState):
    """The live state in PostgreSQL; see `RemoteState`."""

    errors = (ValueError, psycopg.Error)

    def _connect(self, address: str) -> None:
        self._idle: deque[_Connection] = deque()
        self._address = address
        psycopg.conninfo.conninfo_to_dict(address)

    def _prepare(self) -> None:
        for name in _SETTINGS:
            if self._ask(f"SHOW {name}") == "off":
                raise SchemaError(
                    f"the server of the state has {name} off; expected on"
                )

        self._ask(_TABLES)

    def _run(self, procedure: str, *values: str | int) -> Any:
        places = ", ".join(["%s"] * len(values))
        return self._ask(f"SELECT bascule_{procedure}({places})", values)

    def _ask(self, query: str, values: Any = None) -> Any:
        """Return the one value of a query, in a transaction of its own."""
        connection = self._take()
        try:
            cursor = connection.execute(query, values)
            row = cursor.fetchone() if cursor.description else None
        except psycopg.Error:
            connection.close()
            raise

        self._idle.append(connection)
        return row and row[0]

    def _take(self) -> _Connection:
        """Return a connection that nobody uses, a new one where the server has ended the last."""
        with suppress(IndexError):  # none is left
            while True:
                connection = self._idle.pop()
                socket = select.poll()
                socket.register(connection.pgconn.socket, select.POLLIN)
                if not socket.poll(0):
                    return connection
                connection.close()  # it speaks unasked: it goes

        return _Connection.connect(self._address, autocommit=True, connect_timeout=1)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


Engine = PostgresState
