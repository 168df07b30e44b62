"""When what happened to a request that somebody traces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timing:
    """Of one request, on the engine's clock; 0 stands for not yet. The engine fills it, its asker reads it with the
    last reply.

    taken_s: admitted; began_s: its first run began; ended_s: its last run ended; runs: it took part in; rows: of the
    largest of those.
    """

    taken_s: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    runs: int = 0
    rows: int = 0

    def begin(self, now: float, rows: int) -> None:
        """A run of so many rows begins that it takes part in."""
        self.began_s = self.began_s or now
        self.runs += 1
        self.rows = max(self.rows, rows)
