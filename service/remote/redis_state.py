"""The state in Redis (7.2 or later) or Valkey.

Its keys begin with `bascule:1:`, and it has of each user, by their KEY:

users           a hash: KEY -> name, empty once the user is forgotten
events:KEY      a sorted set by time: a member is a number, by arrival, in 16 digits, and a record
answers:KEY     the same of answers
oldest:KIND     a sorted set of events or answers: KEY -> time of the oldest row
opted_out       a hash: KEY -> 1
salt, number    of the keys; of the last row

The procedures are scripts, which run one at a time and are logged whole. After each of them WAITAOF
waits until the log is on disk.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as LateError
from redis.retry import Retry

from serve.errors import SchemaError
from service.remote.remote_state import PATIENCE, RemoteState

_PREFIX = "bascule:1:"
_DISK_MS = 900  # milliseconds in which a write is on disk
_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
}
_START = """
redis.call('SET', KEYS[1] .. 'salt', ARGV[1], 'NX')
return cjson.encode(redis.call('GET', KEYS[1] .. 'salt'))
"""
# Of the rows of the same second, the last that is the same or undoes it decides.
_ADD = """
local function is_there(place, at, same, undone)
  local rows = redis.call('ZRANGEBYSCORE', place, at, at)
  for i = #rows, 1, -1 do
    local record = string.sub(rows[i], 17)
    if string.sub(record, 1, #undone) == undone then return false end
    if string.sub(record, 1, #same) == same then return true end
  end
  return false
end
local n_kept = 0
for _, row in ipairs(cjson.decode(ARGV[2])) do
  local user, name, at, record, same, undone = unpack(row)
  at = string.format('%.0f', at)
  local is_out = redis.call('HEXISTS', KEYS[1] .. 'opted_out', user)
  if is_out == 0 and redis.call('HGET', KEYS[1] .. 'users', user) ~= '' then
    n_kept = n_kept + 1
    local place = KEYS[1] .. ARGV[1] .. ':' .. user
    if same == '-' or not is_there(place, at, same, undone) then
      local number = redis.call('INCR', KEYS[1] .. 'number')
      redis.call('HSETNX', KEYS[1] .. 'users', user, name)
      redis.call('ZADD', place, at, string.format('%016.0f', number) .. record)
      redis.call('ZADD', KEYS[1] .. 'oldest:' .. ARGV[1], 'LT', at, user)
    end
  end
end
return tostring(n_kept)
"""
_FETCH = """
local name = redis.call('HGET', KEYS[1] .. 'users', ARGV[1])
local is_out = redis.call('HEXISTS', KEYS[1] .. 'opted_out', ARGV[1])
if not name and is_out == 0 then return nil end
local rows = redis.call('ZREVRANGE', KEYS[1] .. 'events:' .. ARGV[1], 0, ARGV[2] - 1)
for i, row in ipairs(rows) do
  local number = string.format('%.0f', tonumber(string.sub(row, 1, 16)))
  rows[i] = '[' .. number .. ',' .. string.sub(row, 17) .. ']'
end
local shown = name == '' and 'null' or cjson.encode(name or '')
local head = '{"name":' .. shown .. ',"opted_out":' .. is_out
return head .. ',"rows":[' .. table.concat(rows, ',') .. ']}'
"""
_COUNT = """
local n = 0
local place = KEYS[1] .. 'answers:' .. ARGV[1]
for _, row in ipairs(redis.call('ZRANGEBYSCORE', place, ARGV[2], '+inf')) do
  local policy = cjson.decode(string.sub(row, 17)).policy
  if string.sub(policy, 1, #ARGV[3]) == ARGV[3] then n = n + 1 end
end
return tostring(n)
"""
# Of the events and answers of some users the latest time, and the number of those before a time
# less that of all others.
_AGE = """
local cursor = ARGV[3] == '' and '0' or ARGV[3]
local page = redis.call('HSCAN', KEYS[1] .. 'users', cursor, 'COUNT', 500)
local latest, surplus = 0, 0
for i = 1, #page[2], 2 do
  for kind, before in pairs({events = ARGV[1], answers = ARGV[2]}) do
    local place = KEYS[1] .. kind .. ':' .. page[2][i]
    local last = redis.call('ZREVRANGE', place, 0, 0, 'WITHSCORES')[2]
    if last then
      latest = math.max(latest, tonumber(last))
      local n_old = redis.call('ZCOUNT', place, '-inf', '(' .. before)
      surplus = surplus + 2 * n_old - redis.call('ZCARD', place)
    end
  end
end
local rows = string.format('[["%s",[%.0f,%.0f]]]', cursor, latest, surplus)
return '{"next":"' .. page[1] .. '","rows":' .. rows .. '}'
"""
# What earlier versions have in `oldest` moves to the sets of both kinds first.
_EXPIRE = """
local moved = redis.call('ZRANGE', KEYS[1] .. 'oldest', 0, 99, 'WITHSCORES')
for i = 1, #moved, 2 do
  redis.call('ZADD', KEYS[1] .. 'oldest:events', 'LT', moved[i + 1], moved[i])
  redis.call('ZADD', KEYS[1] .. 'oldest:answers', 'LT', moved[i + 1], moved[i])
  redis.call('ZREM', KEYS[1] .. 'oldest', moved[i])
end
if #moved > 0 then return '0' end
local oldest = KEYS[1] .. 'oldest:' .. ARGV[1]
local before = '(' .. ARGV[2]
local users = redis.call('ZRANGEBYSCORE', oldest, '-inf', before, 'LIMIT', 0, 100)
if #users == 0 then return nil end
local n_removed = 0
for _, user in ipairs(users) do
  local events, answers = KEYS[1] .. 'events:' .. user, KEYS[1] .. 'answers:' .. user
  local place = KEYS[1] .. ARGV[1] .. ':' .. user
  n_removed = n_removed + redis.call('ZREMRANGEBYSCORE', place, '-inf', before)
  local first = redis.call('ZRANGE', place, 0, 0, 'WITHSCORES')[2]
  if first then
    redis.call('ZADD', oldest, first, user)
  else
    redis.call('ZREM', oldest, user)
  end
  if redis.call('EXISTS', events, answers) == 0 then
    redis.call('HDEL', KEYS[1] .. 'users', user)
  end
end
return tostring(n_removed)
"""
_FORGET = """
local erased = {events = 0, impressions = 0}
for _, user in ipairs(cjson.decode(ARGV[1])) do
  local events = KEYS[1] .. 'events:' .. user
  local answers = KEYS[1] .. 'answers:' .. user
  erased.events = erased.events + redis.call('ZCARD', events)
  for _, row in ipairs(redis.call('ZRANGE', answers, 0, -1)) do
    erased.impressions = erased.impressions + #cjson.decode(string.sub(row, 17)).item_ids
  end
  redis.call('DEL', events, answers)
  redis.call('ZREM', KEYS[1] .. 'oldest', user)
  redis.call('ZREM', KEYS[1] .. 'oldest:events', user)
  redis.call('ZREM', KEYS[1] .. 'oldest:answers', user)
  redis.call('HSET', KEYS[1] .. 'users', user, '')
end
return cjson.encode(erased)
"""
_CHOOSE = """
redis.call('HDEL', KEYS[1] .. 'opted_out', ARGV[1])
if ARGV[2] == '1' then redis.call('HSET', KEYS[1] .. 'opted_out', ARGV[1], 1) end
return 'null'
"""
# A page is of some users, in no order; the cursor is that of HSCAN.
_READ = """
local cursor = ARGV[2] == '' and '0' or ARGV[2]
local scanned = ARGV[1] == 'opted_out' and 'opted_out' or 'users'
local page = redis.call('HSCAN', KEYS[1] .. scanned, cursor, 'COUNT', 500)
local rows = {}
for i = 1, #page[2], 2 do
  local user, name = page[2][i], page[2][i + 1]
  if ARGV[1] == 'opted_out' then
    rows[#rows + 1] = '["' .. user .. '",null]'
  elseif ARGV[1] == 'forgotten' then
    if name == '' then rows[#rows + 1] = '["' .. user .. '",null]' end
  else
    local shown = cjson.encode(name)
    for _, row in ipairs(redis.call('ZRANGE', KEYS[1] .. ARGV[1] .. ':' .. user, 0, -1)) do
      local number = string.format('%.0f', tonumber(string.sub(row, 1, 16)))
      rows[#rows + 1] = '[' .. number .. ',[' .. shown .. ',' .. string.sub(row, 17) .. ']]'
    end
  end
end
return '{"next":"' .. page[1] .. '","rows":[' .. table.concat(rows, ',') .. ']}'
"""
_PROCEDURES = {
    "start": _START,
    "add": _ADD,
    "fetch": _FETCH,
    "count": _COUNT,
    "age": _AGE,
    "expire": _EXPIRE,
    "forget": _FORGET,
    "choose": _CHOOSE,
    "read": _READ,
}
_LOG = logging.getLogger("service.http")


class RedisState(RemoteState):
    """The live state in Redis or Valkey; see `RemoteState`."""

    errors = (ValueError, RedisError)

    def _connect(self, address: str) -> None:
        self._server: Any = Redis.from_url(
            address,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=True,
        )

    def _prepare(self) -> None:
        found = self._server.config_get(*_SETTINGS)
        if found != _SETTINGS:
            raise SchemaError(
                f"the server of the state has {found}; expected {_SETTINGS}"
            )

    def _run(self, procedure: str, *values: str | int) -> Any:
        with self._server.pipeline(transaction=False) as calls:
            calls.eval(_PROCEDURES[procedure], 1, _PREFIX, *values)
            calls.execute_command("WAITAOF", 1, 0, _DISK_MS)
            # an error that is raised there would repeat the values
            answers = calls.execute(raise_on_error=False)

        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        result, (n_copies, _) = answers
        if not n_copies:
            raise LateError("a write was not on disk in time")
        if procedure == "forget":
            self._rewrite_log()
        return None if result is None else json.loads(result)

    def _rewrite_log(self) -> None:
        """Let the server drop what was erased from its log."""
        try:
            self._server.bgrewriteaof()
        except ResponseError:  # another rewriting began before the erasure
            _LOG.warning("the log of the state holds what was erased: BGREWRITEAOF")

    def close(self) -> None:
        self._server.close()


Engine = RedisState
