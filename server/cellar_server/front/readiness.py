"""Whether new callers should come here: off while a model is saturated, and slow to change its mind."""

from __future__ import annotations

import logging

log = logging.getLogger("cellar_server")

# Name under which grpc.health.v1 answers it; "" stays SERVING under load, so that nobody restarts a busy server.
NAME = "cellar.readiness"
# Looks in a row (seconds) for which the load must be over 1 before readiness goes, and under LOW before it is back.
LOOKS_OFF, LOOKS_ON = 2, 3
LOW = 0.5


class Readiness:
    """Follows a load that is looked at once a second: 1 and more is where new sessions are refused."""

    def __init__(self) -> None:
        self.is_saturated = False
        self._against = 0  # looks in a row that say otherwise

    def look(self, load: float) -> bool:
        """Takes in the load; whether readiness changed by it."""
        says_otherwise = load <= LOW if self.is_saturated else load >= 1.0
        self._against = self._against + 1 if says_otherwise else 0
        if self._against < (LOOKS_ON if self.is_saturated else LOOKS_OFF):
            return False
        self.is_saturated, self._against = not self.is_saturated, 0
        log.warning("saturated: new callers should go elsewhere" if self.is_saturated else "saturated no more")
        return True
