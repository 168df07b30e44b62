"""Unary requests in the midst of sequences, answered without their method's handler."""

from __future__ import annotations

import asyncio
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
        self._callers, self._midst, self.server = registry.callers, midst, server
        self._outcomes_on = None if server.is_threaded else asyncio.get_running_loop()

    def take(self, number: int, message: bytes, peer: str, deadline_s: float) -> bool:
        """See Transport.offer."""
        callers = self._callers
        if callers.is_on or callers.are_certified:
            return False
        turn, asker = number_of_peer(peer), _Call(self.server, number)
        return self._midst.take(message, callers.named(()), turn, deadline_s, asker, self._outcomes_on)


class _Call:
    """Whom an answer goes to."""

    def __init__(self, server: Any, number: int) -> None:
        self._server, self._number = server, number

    def answer(self, response: bytes) -> None:
        self._server.answer(self._number, response, self._server.end(0, "", []))

    def fail(self, model: str, id: bytes, error: CellarError) -> None:
        count_failure(error)
        end = self._server.end(CODES[error.reason].value[0], in_words(error), list(error_metadata(error)))
        self._server.answer(self._number, None, end)
