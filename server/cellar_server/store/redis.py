"""Sessions in one Redis that several servers share: each session is one server's at a time.

A server holds a lease, a key that it renews and that Redis drops when it does not. A session belongs to the server that
claimed it last; every claim takes the next number of one counter, the session's fence, and nothing is written under an
older fence (fencing tokens: M. Kleppmann, "How to do distributed locking", 2016). A session whose server has no lease
may be claimed at once; one whose server has, is asked for and let go of between two chunks.

Keys: cellar:schema, cellar:fence; cellar:server:NAME, the lease; cellar:wanted:NAME, ids that others ask NAME for;
cellar:session:ID, a hash; cellar:end:ID, how a session ended. Scripts read leases by the names that they find in
sessions, which a Redis cluster does not allow: one Redis, with its replicas, is meant.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cellar_server.store.base import Claims, End, Entry, Held, Known, StoreError

log = logging.getLogger("cellar_server.store")

SCHEMA = b"1"
# Seconds after which a Redis that does not answer counts as lost.
TIMEOUT_S = 1.0
# Of the time that Redis gives a lease, what its server counts on: the clocks may run differently.
_SAFE = 0.9
# KEYS: none. ARGV: this server, "1" to reserve (for a minute), ids... Per id: {} unknown, {"end", bytes}, {"held"}, or
# {"entry", fence, model, version, token, state, written_s, keep_s}; of what was reserved {"new", fence}.
_CLAIM = """
local found = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local key = 'cellar:session:' .. id
  local owner = redis.call('HGET', key, 'owner')
  if owner and owner ~= '' and owner ~= ARGV[1] and redis.call('EXISTS', 'cellar:server:' .. owner) == 1 then
    local wanted = 'cellar:wanted:' .. owner
    redis.call('LREM', wanted, 0, id)
    redis.call('RPUSH', wanted, id)
    redis.call('EXPIRE', wanted, 60)
    found[#found + 1] = {'held'}
  elseif owner and redis.call('HEXISTS', key, 'state') == 1 then
    local fence = redis.call('INCR', 'cellar:fence')
    redis.call('HSET', key, 'owner', ARGV[1], 'fence', fence)
    local entry = redis.call('HMGET', key, 'model', 'version', 'token', 'state', 'written_s', 'keep_s')
    found[#found + 1] = {'entry', fence, unpack(entry)}
  else
    local ended = redis.call('GET', 'cellar:end:' .. id)
    local fence = 0
    if ARGV[2] == '1' then
      fence = redis.call('INCR', 'cellar:fence')
      redis.call('HSET', key, 'owner', ARGV[1], 'fence', fence)
      redis.call('EXPIRE', key, 60)
    end
    if ended then found[#found + 1] = {'end', fence, ended} else found[#found + 1] = {'new', fence} end
  end
end
return found
"""

# ARGV: this server, number of entries, then of each: id, fence, model, version, token, state, written_s, keep_s, and
# of each end: id, fence, bytes, keep_s. The ids whose fence is an old one; nothing of those is written.
_WRITE = """
local lost = {}
local function is_mine(id, fence)
  local found = redis.call('HGET', 'cellar:session:' .. id, 'fence')
  if found == fence then return true end
  if not found and redis.call('EXISTS', 'cellar:end:' .. id) == 0 then return true end
  lost[#lost + 1] = id
  return false
end
local at = 3
for i = 1, tonumber(ARGV[2]) do
  local id, fence = ARGV[at], ARGV[at + 1]
  if is_mine(id, fence) then
    local key = 'cellar:session:' .. id
    redis.call('HSET', key, 'owner', ARGV[1], 'fence', fence, 'model', ARGV[at + 2], 'version', ARGV[at + 3],
      'token', ARGV[at + 4], 'state', ARGV[at + 5], 'written_s', ARGV[at + 6], 'keep_s', ARGV[at + 7])
    redis.call('PEXPIRE', key, math.ceil(1000 * tonumber(ARGV[at + 7])))
    redis.call('DEL', 'cellar:end:' .. id)
  end
  at = at + 8
end
while at <= #ARGV do
  local id, fence = ARGV[at], ARGV[at + 1]
  if is_mine(id, fence) then
    redis.call('DEL', 'cellar:session:' .. id)
    redis.call('SET', 'cellar:end:' .. id, ARGV[at + 2], 'PX', math.ceil(1000 * tonumber(ARGV[at + 3])))
  end
  at = at + 4
end
return lost
"""

# ARGV: id, fence, id, fence... Per id 0: as it was, 1: another's or ended, 2: not there.
_CHECK = """
local found = {}
for i = 1, #ARGV, 2 do
  local fence = redis.call('HGET', 'cellar:session:' .. ARGV[i], 'fence')
  if fence == ARGV[i + 1] then found[#found + 1] = 0
  elseif fence or redis.call('EXISTS', 'cellar:end:' .. ARGV[i]) == 1 then found[#found + 1] = 1
  else found[#found + 1] = 2 end
end
return found
"""

# ARGV: id, fence, id, fence... A session that was never written is forgotten.
_RELEASE = """
for i = 1, #ARGV, 2 do
  local key = 'cellar:session:' .. ARGV[i]
  if redis.call('HGET', key, 'fence') == ARGV[i + 1] then
    if redis.call('HEXISTS', key, 'state') == 1 then redis.call('HSET', key, 'owner', '')
    else redis.call('DEL', key) end
  end
end
return 0
"""


class RedisStore:
    """One server's part of a Redis. lease_s: seconds for which the server's lease lasts without a renewal."""

    is_shared = True

    def __init__(self, url: str, *, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = secrets.token_hex(16)
        self._lease_s = lease_s
        self._clock = clock
        self._claims = Claims()
        self._held_until = 0.0
        self._term = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            # a connection that a restarted Redis has dropped is made anew once; every script may run twice
            again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
            self._redis = redis.Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=again
            )
            found = self._redis.set("cellar:schema", SCHEMA, nx=True, get=True)
            if found not in (None, SCHEMA):
                raise StoreError(f"the Redis has schema {found!r}; this server knows {SCHEMA!r}")
            self._renew()
        except (redis.RedisError, ValueError) as error:
            raise StoreError(f"{_shown(url)}: {error}") from None
        self._scripts = {text: self._redis.register_script(text) for text in (_CLAIM, _WRITE, _CHECK, _RELEASE)}

    # -- the lease -----------------------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        return self._clock() < self._held_until

    @property
    def term(self) -> int:
        return self._term

    def _renew(self) -> None:
        """Takes the lease for a further time, or anew where Redis has dropped it: then others may have claimed."""
        sent_at = self._clock()
        key = f"cellar:server:{self.name}"
        if not self._redis.pexpire(key, int(1000 * self._lease_s)):
            self._redis.set(key, "", px=int(1000 * self._lease_s))
            self._term += 1
        self._held_until = sent_at + _SAFE * self._lease_s

    def start(self, on_wanted: Callable[[str], None]) -> None:
        self._thread = threading.Thread(target=self._hold, args=(on_wanted,), name="lease", daemon=True)
        self._thread.start()

    def _hold(self, on_wanted: Callable[[str], None]) -> None:
        """Renews the lease three times in its time, and between two renewals waits for what others ask for."""
        pause_s = self._lease_s / 3
        is_lost = False
        renew_at = self._clock() + pause_s
        while not self._stop.is_set():
            try:
                if self._clock() >= renew_at:
                    self._renew()
                    renew_at = self._clock() + pause_s
                if is_lost:
                    log.info("the store is there again")
                is_lost = False
                wait_s = min(TIMEOUT_S / 2, max(0.01, renew_at - self._clock()))
                found: Any = self._redis.blpop([f"cellar:wanted:{self.name}"], timeout=wait_s)
                if found is not None:
                    on_wanted(found[1].decode())
            except redis.RedisError as error:
                if not is_lost:
                    log.error("the store cannot be reached: %s", error)
                is_lost = True
                renew_at = 0.0
                self._stop.wait(0.1)
            except Exception:  # without this thread the lease would be lost for good
                log.exception("an id that another server asks for could not be passed on")

    # -- sessions ------------------------------------------------------------------------------------------------

    def claim(self, ids: Sequence[str], *, reserves: bool = False) -> dict[str, Known]:
        if not ids:
            return {}
        known: dict[str, Known] = {}
        for id, (kind, *rest) in zip(ids, self._run(_CLAIM, [self.name, int(reserves), *ids]), strict=True):
            if kind == b"held":
                known[id] = Held(id)
                continue
            if rest[0]:
                self._claims.add(id, rest[0])
            if kind == b"end":
                known[id] = _end(id, rest[1])
            elif kind == b"entry":
                fence, model, version, token, state, written_s, keep_s = rest
                known[id] = Entry(
                    id, model.decode(), int(version), token, state, float(written_s), float(keep_s), fence
                )
        return known

    def fence_of(self, id: str) -> int:
        return self._claims.of(id)

    def write(self, entries: Sequence[Entry], ends: Sequence[End]) -> list[str]:
        arguments: list[object] = [self.name, len(entries)]
        for e in entries:
            arguments += (e.id, e.fence, e.model, e.version, e.token, e.state, e.written_s, e.keep_s)
        for end in ends:
            arguments += (end.id, end.fence, _bytes(end), end.keep_s)
        lost = {id.decode() for id in self._run(_WRITE, arguments)}
        over: list[Entry | End] = [*ends, *(e for e in entries if e.id in lost)] if lost else [*ends]
        self._claims.drop(each.id for each in over if self._claims.of(each.id) == each.fence)
        return list(lost)

    def check(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        arguments = [value for id in ids for value in (id, self._claims.of(id))]
        found = self._run(_CHECK, arguments) if ids else []
        lost = [id for id, state in zip(ids, found, strict=True) if state == 1]
        self._claims.drop(lost)
        return lost, [id for id, state in zip(ids, found, strict=True) if state == 2]

    def release(self, ids: Sequence[str]) -> None:
        fences = self._claims.drop(ids)
        if fences:
            self._run(_RELEASE, [value for pair in fences.items() for value in pair])

    def read(self, model: str, version: int) -> Iterator[Entry]:
        """None: another server may want any of them, so each is claimed when somebody asks for it."""
        return iter(())

    def purge(self, now_s: float) -> list[tuple[str, int]]:
        """None: Redis drops them by itself."""
        return []

    def _run(self, script: str, arguments: Sequence[Any]) -> list[Any]:
        try:
            answer: list[Any] = self._scripts[script](args=arguments)
            return answer
        except redis.RedisError as error:
            raise StoreError(str(error)) from None

    def close(self) -> None:
        """Without the lease every session of this server may be claimed at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * TIMEOUT_S + self._lease_s)
        self._held_until = 0.0
        try:
            self._redis.delete(f"cellar:server:{self.name}", f"cellar:wanted:{self.name}")
        except redis.RedisError as error:
            log.error("the lease could not be given back, and runs out in %g s: %s", self._lease_s, error)
        self._redis.close()


def _bytes(end: End) -> bytes:
    """An end in one piece: two lengths, then its fields."""
    head = f"{len(end.error)} {len(end.token)} {end.ended_s} {end.keep_s}\n".encode()
    return head + end.error + end.token + end.receipt


def _end(id: str, raw: bytes) -> End:
    head, _, rest = raw.partition(b"\n")
    error, token, ended_s, keep_s = head.split()
    a, b = int(error), int(error) + int(token)
    return End(id, rest[:a], rest[a:b], rest[b:], float(ended_s), float(keep_s))


def _shown(url: str) -> str:
    """A URL without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
