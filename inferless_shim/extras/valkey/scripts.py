"""What the store does in one step, in Lua. Their replies are described where they are sent from.

Every script names what it touches of a stream: KEYS[1] is its head, KEYS[2] its Redis Stream; ARGV[1] is always how
long they are kept, in milliseconds. Where a claim is touched its name is in ARGV, as "" if there is none.
"""

from __future__ import annotations

from .commands import Script

# What scripts share. The ids are entries.BEGUN and entries.DECLARED.
_TOP = """
local function top(key)
  local found = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  return found[1]
end
local function keep(ttl, ...)
  for _, key in ipairs({...}) do
    if key ~= '' then redis.call('PEXPIRE', key, ttl) end
  end
end
local function begin(head, stream, first)
  redis.call('DEL', head, stream)
  redis.call('HSET', head, unpack(ARGV, first))
  redis.call('XADD', stream, '0-1', 'begun', '')
end
local function claims(key, id)
  return key ~= '' and redis.call('HGET', key, 'stream') == id
end
"""

# Milliseconds until claims can be trusted; -1 if nobody has said of this store since when it is there.
# KEYS: the epoch. ARGV: how long claims are not trusted after the store came back.
SETTLED = Script("""
local epoch = redis.call('HMGET', KEYS[1], 'run', 'since')
if not epoch[1] then return -1 end
if epoch[2] == '0' then return 0 end
local time = redis.call('TIME')
local left = epoch[2] + ARGV[1] - (time[1] * 1000 + math.floor(time[2] / 1000))
if left > 0 then return left end
return 0
""")

# Note which run of the store this is. KEYS: the epoch. ARGV: the run's id; which one the caller knew before: 'same',
# 'other', or none: 'first'. A store that comes back may have lost what it had; who knew none before takes one without
# an epoch for a new one.
EPOCH = Script("""
local epoch = redis.call('HMGET', KEYS[1], 'run', 'since')
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if epoch[1] ~= ARGV[1] then
  local since = now
  if not epoch[1] and ARGV[2] == 'first' then since = '0' end
  redis.call('HSET', KEYS[1], 'run', ARGV[1], 'since', since)
elseif epoch[2] == '0' and ARGV[2] == 'other' then
  redis.call('HSET', KEYS[1], 'since', now)
end
return 1
""")

# Begin a stream, unless that was done: this may come late, after its reply was given up. KEYS: head, stream, epoch.
# ARGV: ttl, id, claim, prefix of heads, what the claim must be for, how long claims are not trusted, run, then the
# head's names and values. Reply: 'open', 'unsettled', or 'made', which stream has the claim, and what for.
OPEN = Script(
    _TOP
    + """
local ttl, id, claim = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return {'open'} end
if claim ~= '' then
  local epoch = redis.call('HMGET', KEYS[3], 'run', 'since')
  local time = redis.call('TIME')
  if epoch[1] ~= ARGV[7] then return {'unsettled'} end
  if epoch[2] ~= '0' and time[1] * 1000 + time[2] / 1000 < epoch[2] + ARGV[6] then return {'unsettled'} end
  local made = redis.call('HMGET', claim, 'stream', 'fingerprint')
  if made[1] and redis.call('EXISTS', ARGV[4] .. made[1]) == 1 then return {'made', made[1], made[2]} end
  redis.call('HSET', claim, 'stream', id, 'fingerprint', ARGV[5])
end
begin(KEYS[1], KEYS[2], 8)
keep(ttl, KEYS[1], KEYS[2], claim)
return {'open'}
"""
)

# Add a batch to each of several streams. KEYS: the streams. ARGV: for each, before which id it may be trimmed, the
# entry's id, its first event, its data. Reply: which of them took nothing, counted from 1: the store has lost them, or
# takes no more of them. One reply for all, because to read one for each is half of what a round costs.
APPEND = Script("""
local failed = {}
for i, key in ipairs(KEYS) do
  local at = 4 * i - 3
  local added = redis.pcall('XADD', key, 'NOMKSTREAM', 'MINID', '~', ARGV[at], ARGV[at + 1],
    'first', ARGV[at + 2], 'data', ARGV[at + 3])
  if not added then
    failed[#failed + 1] = i
  elseif type(added) == 'table' and added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then return added end
    failed[#failed + 1] = i
  end
end
return failed
""")

# Find how far the store has a stream of ours; what it has lost begins anew. KEYS: head, stream.
# ARGV: ttl, id, claim, fingerprint, then the head's names and values.
# Reply: 'gone' if it was deleted, else the id and the fields of the last entry.
RESYNC = Script(
    _TOP
    + """
local ttl, id, claim = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HEXISTS', KEYS[1], 'gone') == 1 then return {'gone'} end
local last = top(KEYS[2])
if not last then
  begin(KEYS[1], KEYS[2], 5)
  last = top(KEYS[2])
else
  redis.call('HSET', KEYS[1], unpack(ARGV, 5))
end
local interrupted = last[1] == '18446744073709551615-0'
if claim ~= '' and not interrupted and redis.call('EXISTS', claim) == 0 then
  redis.call('HSET', claim, 'stream', id, 'fingerprint', ARGV[4])
end
if interrupted then return {last[1], last[2]} end
keep(ttl, KEYS[1], KEYS[2], claims(claim, id) and claim or '')
return {last[1], last[2]}
"""
)

# End a stream. KEYS: head, stream. ARGV: ttl, id, claim, 1 if the claim ends with it, the entry's id, its fields.
# Reply: 1, 0 if the store has lost the stream, -1 if it takes that entry no more.
FINISH = Script(
    _TOP
    + """
local ttl, id, claim = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local added = redis.pcall('XADD', KEYS[2], ARGV[5], unpack(ARGV, 6))
if type(added) == 'table' and added.err then
  if string.find(added.err, 'equal or smaller', 1, true) then return -1 end
  return added
end
local own = claims(claim, id) and claim or ''
if own ~= '' and ARGV[4] == '1' then redis.call('DEL', own) own = '' end
keep(ttl, KEYS[1], KEYS[2], own)
return 1
"""
)

# Declare a stream interrupted, unless it has ended. KEYS: head, stream. ARGV: ttl, id, prefix of claims,
# the replica that must have run it.
# Reply: how many events are kept; -1 if it had ended, -2 if there is none.
INTERRUPT = Script(
    _TOP
    + """
local ttl, id = ARGV[1], ARGV[2]
local last = top(KEYS[2])
if not last or redis.call('HGET', KEYS[1], 'replica') ~= ARGV[4] then return -2 end
local number, kind = string.match(last[1], '^(%d+)-(%d+)$')
if kind == '2' or number == '18446744073709551615' then return -1 end
redis.call('XADD', KEYS[2], '18446744073709551615-0', 'kept', number)
local claim = redis.call('HGET', KEYS[1], 'place')
if claim and claim ~= '' and claims(ARGV[3] .. claim, id) then redis.call('DEL', ARGV[3] .. claim) end
keep(ttl, KEYS[1], KEYS[2])
return tonumber(number)
"""
)

# Delete a stream, and remember whose it was. KEYS: head, stream. ARGV: ttl, id, prefix of claims, owner.
DELETE = Script(
    _TOP
    + """
local ttl, id = ARGV[1], ARGV[2]
local claim = redis.call('HGET', KEYS[1], 'place')
if claim and claim ~= '' and claims(ARGV[3] .. claim, id) then redis.call('DEL', ARGV[3] .. claim) end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'version', '1', 'owner', ARGV[4], 'gone', '1')
keep(ttl, KEYS[1])
return 1
"""
)

# Keep streams that run. KEYS: heads, streams and claims. Reply: how many of them there are.
RENEW = Script("""
local found = 0
for _, key in ipairs(KEYS) do found = found + redis.call('PEXPIRE', key, ARGV[1]) end
return found
""")

ALL = (SETTLED, EPOCH, OPEN, APPEND, RESYNC, FINISH, INTERRUPT, DELETE, RENEW)
