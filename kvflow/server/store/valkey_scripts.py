"""What the Valkey store does on the server, each in one atomic step.

A workflow is a hash (``details``, ``graph``, ``version``, ``expires_at_s``, ``steps``, the whole
``state`` as of some version, and the ``token`` of its last write) and a list of the events since
that state. A write names the token that it has read: if another replica was faster, nothing is
done. A write whose own token is there already had been made before the connection broke; as nothing
is left of a deleted workflow, a deletion's is kept apart for a minute.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DELETE", "INSERT", "POSITION", "READ", "TICK", "UPDATE"]

_TELL: Final = """
local function tell(client, id, steps)
  local n = redis.call('INCR', 'kvflow:changed')
  redis.call('XADD', 'kvflow:changes', 'MAXLEN', '~', 20000, '*',
             'n', n, 'c', client, 'w', id, 's', steps)
end
"""

# KEYS: hash, journal. ARGV: member, token, most, client, id, details, graph digest, graph,
# expires_at_s, steps
INSERT: Final = (
    _TELL
    + """
local token = redis.call('HGET', KEYS[1], 'token')
if token == ARGV[2] then return 'done' end
if token then return 'conflict' end
if redis.call('ZCARD', 'kvflow:keys') >= tonumber(ARGV[3]) then return 'full' end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'client', ARGV[4], 'details', ARGV[6],
           'graph', ARGV[7], 'version', 0, 'expires_at_s', ARGV[9], 'steps', ARGV[10])
redis.call('ZADD', 'kvflow:keys', 0, ARGV[1])
redis.call('ZADD', 'kvflow:expires', ARGV[9], ARGV[1])
if redis.call('HINCRBY', 'kvflow:graph-users', ARGV[7], 1) == 1 then
  redis.call('SET', 'kvflow:graph:' .. ARGV[7], ARGV[8])
end
tell(ARGV[4], ARGV[5], ARGV[10])
return 'done'
"""
)

# KEYS: hash, journal. ARGV: member, old token, token, version, expires_at_s, steps, client, id,
# events or '', state or ''
UPDATE: Final = (
    _TELL
    + """
local token = redis.call('HGET', KEYS[1], 'token')
if token == ARGV[3] then return 'done' end
if token ~= ARGV[2] then return 'conflict' end
redis.call('HSET', KEYS[1], 'token', ARGV[3], 'version', ARGV[4], 'expires_at_s', ARGV[5],
           'steps', ARGV[6])
redis.call('ZADD', 'kvflow:expires', ARGV[5], ARGV[1])
if ARGV[10] ~= '' then
  redis.call('HSET', KEYS[1], 'state', ARGV[10])
  redis.call('DEL', KEYS[2])
elseif ARGV[9] ~= '' then
  redis.call('RPUSH', KEYS[2], ARGV[9])
end
tell(ARGV[7], ARGV[8], ARGV[6])
return 'done'
"""
)

# KEYS: hash, journal, what remembers this deletion. ARGV: member, old token, client, id
DELETE: Final = (
    _TELL
    + """
if redis.call('EXISTS', KEYS[3]) == 1 then return 'done' end
local found = redis.call('HMGET', KEYS[1], 'token', 'graph')
if found[1] ~= ARGV[2] then return 'conflict' end
redis.call('SET', KEYS[3], 1, 'EX', 60)
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', 'kvflow:keys', ARGV[1])
redis.call('ZREM', 'kvflow:expires', ARGV[1])
if found[2] and redis.call('HINCRBY', 'kvflow:graph-users', found[2], -1) <= 0 then
  redis.call('HDEL', 'kvflow:graph-users', found[2])
  redis.call('DEL', 'kvflow:graph:' .. found[2])
end
tell(ARGV[3], ARGV[4], '')
return 'done'
"""
)

# KEYS: hash, journal. ARGV: the token that is known. False: none; nil table: known.
READ: Final = """
local found = redis.call('HMGET', KEYS[1], 'token', 'details', 'graph', 'expires_at_s', 'state')
if not found[1] then return false end
if found[1] == ARGV[1] then return {found[1]} end
local graph = found[3] and redis.call('GET', 'kvflow:graph:' .. found[3])
return {found[1], found[2], graph, found[4], found[5] or '',
        redis.call('LRANGE', KEYS[2], 0, -1)}
"""

# Where the changes stand: the id of the last one, and its number.
POSITION: Final = """
local last = redis.call('XREVRANGE', 'kvflow:changes', '+', '-', 'COUNT', 1)
return {last[1] and last[1][1] or '0-0', redis.call('GET', 'kvflow:changed') or '0'}
"""

# The clock of all replicas. It goes on by the server's, but never by more than ARGV[1] seconds
# between two looks at it: neither a jump of that clock nor a time in which no service ran counts.
TICK: Final = """
local time = redis.call('TIME')
local wall = tonumber(time[1]) + tonumber(time[2]) / 1000000
local known = redis.call('HMGET', 'kvflow:clock', 'now_s', 'wall_s')
local now = known[1] and tonumber(known[1]) or 0
local gone = known[2] and wall - tonumber(known[2]) or 0
if gone > tonumber(ARGV[1]) then gone = tonumber(ARGV[1]) end
if gone > 0 then now = now + gone end
local text = string.format('%.6f', now)
redis.call('HSET', 'kvflow:clock', 'now_s', text, 'wall_s', string.format('%.6f', wall))
return text
"""
