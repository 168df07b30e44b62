"""Unary requests in the midst of sequences, answered without their method's handler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from cellar_server.errors import CellarError
from cellar_server.front.oip.answers import in_words
from cellar_server.front.oip.midst import Midst
from cellar_server.front.rations import number_of_peer
from cellar_server.front.registry import Registry
from cellar_server.front.status import CODES, count_failure, error_metadata


class MidstOfCalls:
    """Takes calls that a transport offers; those of servers that ask who calls are for the handler."""

    def __init__(self, registry: Registry, midst: Midst, server: Any) -> None:
        self._callers, self._midst, self._server = registry.callers, midst, server
        self._loop = None if server.is_threaded else asyncio.get_running_loop()

    def take(self, number: int, message: bytes, peer: str, deadline_s: float) -> bool:
        """See Transport.offer."""
        callers = self._callers
        if callers.is_on or callers.are_certified:
            return False
        asker = _Call(self._server, number, number_of_peer(peer), deadline_s, self._loop)
        return self._midst.take(message, callers.named(()), asker)


@dataclass(slots=True)
class _Call:
    """An Asker."""

    server: Any
    number: int
    turn: int
    deadline_s: float
    loop: asyncio.AbstractEventLoop | None

    def answer(self, response: bytes) -> None:
        self.server.answer(self.number, response, self.server.end(0, "", []))

    def fail(self, model: str, id: bytes, error: CellarError) -> None:
        count_failure(error)
        end = self.server.end(CODES[error.reason].value[0], in_words(error), list(error_metadata(error)))
        self.server.answer(self.number, None, end)
