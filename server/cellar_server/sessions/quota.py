"""How many sessions each caller, and each model, has open."""

from __future__ import annotations

from collections import Counter

from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.limits import LimitTable

# What a refused caller is told to wait: sessions end when their callers say so, so nothing better is known.
RETRY_AFTER_MS = 1000


class Quota:
    """Counts open sessions by caller and by model, and refuses those over the limit. Not thread-safe."""

    def __init__(self, table: LimitTable) -> None:
        self._table = table
        self._callers: Counter[str] = Counter()
        self._models: Counter[str] = Counter()

    def check(self, caller: str, model: str) -> None:
        """CellarError OVERLOADED where a new session of a caller and a model would be one too many."""
        of_caller, of_model = self._table.of_caller(caller).max_sessions, self._table.of_model(model).max_sessions
        if of_caller and self._callers[caller] >= of_caller:
            raise _full(f"the caller has its limit of {of_caller} open sessions")
        if of_model and self._models[model] >= of_model:
            raise _full(f"model {model!r} has its limit of {of_model} open sessions")

    def add(self, caller: str, model: str) -> None:
        """A session is open."""
        self._callers[caller] += 1
        self._models[model] += 1

    def remove(self, caller: str, model: str) -> None:
        """It is no more."""
        for counter, key in ((self._callers, caller), (self._models, model)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]


def _full(what: str) -> CellarError:
    return CellarError(Reason.OVERLOADED, what, retry_after_ms=RETRY_AFTER_MS)
