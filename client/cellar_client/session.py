"""A session's way through servers that go and come: what `step` and the others do, however they are driven."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Self

import numpy as np
from cellar_proto.v1 import sessions_pb2
from cellar_proto.v1.inference_pb2 import OpenedSessions

from cellar_client.book import SessionBook, checked, rows_of
from cellar_client.calls import Calls
from cellar_client.codec import Codec
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, SessionNotFound, StoreFailed, Unavailable
from cellar_client.messages import SessionInfo, mint_id, mint_token, session_info, state_parts
from cellar_client.replay import Chunk, Patience
from cellar_client.transport import Wire


class SessionCore(SessionBook):
    """One sequence whose state the server keeps. See SessionBook for its attributes."""

    def __init__(self, client: Calls, codec: Codec, id: str, position: int, *, keep: bool) -> None:
        super().__init__(codec, id, position, keep=keep)
        self._client = client
        self._transport = client._transport
        self._wire: Wire | None = None

    def __repr__(self) -> str:
        end = ", closed" if self._is_closed else ""
        return f"{type(self).__name__}({self.id!r} of {self._codec.info.name}, position {self.position}{end})"

    async def _step(self, x: Any = b"", *, end: bool = False, timeout: float | None = None) -> Emissions:
        """Takes in the next steps and answers each: one step [...], steps [time, ...] or a piece of text ->
        float32 [emissions, ...]. `end`: the text ends here, so its last word is taken in too.

        A server that is away is waited for, within the call's time: the session is taken up again where the server has
        it, and what the server lost is sent once more. SessionLost where that is no longer held here. After
        DeadlineExceeded the same call may be made again: what was already taken in is answered, not run again.
        """
        parts = self._parts(x)
        pieces = []
        for i, (part, count) in enumerate(parts):
            chunk = Chunk(self.position, part, count, end and i == len(parts) - 1)
            pieces.append(await self._answer(chunk, timeout or self._client.timeout))
        return pieces[0] if len(pieces) == 1 else Emissions(np.concatenate(pieces), self._codec.info.labels)

    async def _answer(self, chunk: Chunk, timeout_s: float) -> Emissions:
        """The answer to a chunk, however often the server went away meanwhile."""
        links = self._client._links
        patience = Patience(timeout_s, len(links))
        while self._replay.is_full:
            await self._transport.pause(patience.pause_s(Unavailable("what was sent is not durable yet")))
            self._stored((await self._info()).durable_position)
        while True:
            link = links.current
            try:
                wire = await self._attached(patience.left_s)
                return await self._send(wire, chunk, patience.left_s)
            except CellarError as error:
                await self._transport.pause(patience.pause_s(error))
                links.leave(link, error, patience.num_pauses)
                if not isinstance(error, StoreFailed):
                    self._wire = None  # the handle may be void

    async def _send(self, wire: Wire, chunk: Chunk, timeout_s: float) -> Emissions:
        frame_id = wire.next_id()
        return self._took(chunk, frame_id, await wire.ask(frame_id, self._frame_request(frame_id, chunk), timeout_s))

    async def _attached(self, timeout_s: float) -> Wire:
        """The shared stream, with a handle of this session on it, and the server where this side believes it to be."""
        wire = self._client._shared_wire()
        if wire is self._wire:
            return wire
        try:
            opened = await self._open(wire, timeout_s, resume=True)
        except SessionNotFound:
            # a server without a store was started again: from the first step on, where all of it is held
            lost = self._replay.since(0, self.position)
            opened = await self._open(wire, timeout_s, resume=False)
        else:
            lost = self._replay.since(min(opened.positions[0], self.position), self.position)
        self._handle = opened.handles[0]
        for chunk in lost:
            frame_id = wire.next_id()
            rows_of(await wire.ask(frame_id, self._frame_request(frame_id, chunk), timeout_s), frame_id)
        self._wire = wire
        return wire

    async def _open(self, wire: Wire, timeout_s: float, *, resume: bool) -> OpenedSessions:
        frame_id = wire.next_id()
        return checked(await wire.ask(frame_id, self._open_request(frame_id, resume=resume), timeout_s))

    async def _info(self) -> SessionInfo:
        """How the session stands on the server."""
        request = sessions_pb2.GetSessionRequest(id=self.id)
        return session_info(await self._client._ask("sessions", "GetSession", request))

    async def _fork(self, *, id: str = "", keep: bool = False) -> Self:
        """A copy as the session stands after its last answered chunk."""
        request = sessions_pb2.ForkSessionRequest(id=self.id, new_id=id or mint_id(), request_token=mint_token())
        forked = await self._client._ask("sessions", "ForkSession", request)
        return type(self)(self._client, self._codec, forked.id, forked.position, keep=keep)

    async def _export(self) -> bytes:
        """The session as one piece, as it stands after its last answered chunk: row, tail, position and the answers
        kept for repetitions. `import_session` makes a session of it again."""
        request = sessions_pb2.ExportSessionRequest(id=self.id)
        state = await self._client._ask("sessions", "ExportSession", request)
        return bytes(state.SerializeToString())

    async def _state(self) -> dict[str, np.ndarray]:
        """The hidden state by the names of its parts, each float32 in its own shape (an LSTM layer: h and c)."""
        return state_parts(await self._export())

    async def _close(self, *, timeout: float | None = None) -> None:
        """Ends the session on the server and forgets its state."""
        self._is_closed = True
        with suppress(SessionNotFound):  # a server lost it: it is gone, as it should be
            request = sessions_pb2.CloseSessionRequest(id=self.id, request_token=mint_token())
            await self._client._ask("sessions", "CloseSession", request, timeout)

    async def _leave(self, kind: object) -> None:
        """A `with` is over, in an exception of this kind or None."""
        if self.keep or self._is_closed:
            return
        if kind is None:
            await self._close()
        else:  # what went wrong is what the caller should see, and soon
            with suppress(CellarError):
                await self._close(timeout=1.0)
