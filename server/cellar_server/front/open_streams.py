"""The streams that are open, so that they can be told that they must end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cellar_server.errors import CellarError


class OpenStream(Protocol):
    """A call that may last for hours."""

    def end(self, error: CellarError) -> None:
        """Takes in no more, answers what was taken in, and then fails the call with an error."""
        ...

    def check(self) -> None:
        """CellarError where its caller is not, or may not do, any more what the stream is for."""
        ...


class OpenStreams:
    """All of a server. Used on the event loop only."""

    def __init__(self) -> None:
        self._streams: set[OpenStream] = set()
        self._over: CellarError | None = None

    @property
    def count(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    @contextmanager
    def hold(self, stream: OpenStream) -> Iterator[None]:
        """A stream for as long as it is open; once all were ended, a new one ends too."""
        self._streams.add(stream)
        if self._over is not None:
            stream.end(self._over)
        try:
            yield
        finally:
            self._streams.discard(stream)

    def end_all(self, error: CellarError) -> None:
        """Ends every stream, and those that are still opened."""
        self._over = error
        for stream in list(self._streams):
            stream.end(error)

    async def check_all(self) -> int:
        """Ends the streams whose callers may not go on; how many."""
        ended = 0
        for number, stream in enumerate(list(self._streams)):
            if number % 50 == 49:
                await asyncio.sleep(0)  # a signature may have to be checked for each: other calls go on meanwhile
            try:
                stream.check()
            except CellarError as error:
                stream.end(error)
                ended += 1
        return ended
