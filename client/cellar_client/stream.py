"""A stream of columnar frames on its way through servers that go and come, however it is driven."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cellar_proto.v1 import sessions_pb2
from cellar_proto.v1.inference_pb2 import OpenedSessions

from cellar_client.calls import Calls
from cellar_client.codec import Codec
from cellar_client.errors import CellarError
from cellar_client.frame import FrameAnswer, rows_repeated
from cellar_client.frames import FrameBook
from cellar_client.replay import PASSING, Patience


class StreamCore(FrameBook):
    """Many sessions of one model on a stream of their own: send one columnar frame, receive one.

    See FrameStream.
    """

    def __init__(self, client: Calls, codec: Codec, timeout_s: float) -> None:
        super().__init__(codec)
        self._client = client
        self._links = client._links
        self._transport = client._transport
        self._timeout_s = timeout_s
        self._ready: deque[FrameAnswer] = deque()
        self._connect()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.ids)} sessions of {self._codec.info.name})"

    def _connect(self) -> None:
        self._link = self._links.current
        self._wire = self._transport.wire(self._link.inference, self._client._metadata)
        self._inbox = self._wire.inbox()

    async def _open(self, sessions: int | Sequence[str], *, resume: bool = False, max_idle_s: float = 0.0) -> list[str]:
        """Opens so many sessions, or sessions of these ids (with `resume`: takes up open ones); their ids. They become
        the stream's rows, behind those that it has. The first refusal is raised, and none becomes a row."""
        request = self._open_request(self._next_id(), sessions, resume, max_idle_s)
        patience = Patience(self._timeout_s, len(self._links))
        while True:
            try:
                return self._take_opened(await self._wire.ask(request.open.frame_id, request, patience.left_s))
            except CellarError as error:
                await self._wait_out(error, patience)

    async def _send(
        self,
        inputs: Any,
        lengths: int | Sequence[int] | None = None,
        *,
        rows: Sequence[int] | None = None,
        timeout_ms: int = 0,
        bulk: bool = False,
        ends: bool = False,
    ) -> int:
        """Sends chunks of sessions; the frame's number, which its answer carries.

        inputs: the chunks behind one another [sum(lengths), ...], or a list of texts; lengths: steps of each chunk
        (one number where all are equal; None: 1 each); rows: which of the stream's sessions [N] (None: all). Waits
        while more than 16 MiB of what was sent is not durable, on a server that stores.
        """
        while self._is_full:
            await self._make_room()
        number = self._next_id()
        request = self._frame_request(number, inputs, lengths, rows, timeout_ms, bulk, ends)
        if request is not None and self._wire.error is None:
            with suppress(*PASSING):  # `receive` finds the same, and sends it again
                await self._wire.send(number, request, self._inbox)
        return number

    async def _make_room(self) -> None:
        if self._num_unanswered:
            self._ready.append(await self._pull(self._timeout_s))
            return
        await self._transport.pause(0.05)
        for row in self._undurable():
            request = sessions_pb2.GetSessionRequest(id=self.ids[row])
            found = await self._client._ask("sessions", "GetSession", request, self._timeout_s)
            self._durable[row] = found.durable_position
        self._settle()

    async def _receive(self, timeout_s: float | None = None) -> FrameAnswer:
        """The answer of the next frame that is whole. Where rows failed, the sessions' positions are set back, so that
        the next frame goes on from what was taken in."""
        return self._ready.popleft() if self._ready else await self._pull(timeout_s or self._timeout_s)

    async def _pull(self, timeout_s: float) -> FrameAnswer:
        patience = Patience(timeout_s, len(self._links))
        while True:
            try:
                if self._torn:
                    await self._mend(sorted(self._torn), patience)
                answer = self._complete()
                if answer is None:
                    if self._wire.error is not None and self._inbox.empty():
                        raise self._wire.error  # it ended while nobody waited for an answer
                    kind, wire_id, message = await self._wire.take(self._inbox, patience.left_s)
                    answer = self._take(kind, wire_id, message)
                if answer is not None:
                    self._wire.forget(answer.frame_id)
                    return answer
            except CellarError as error:
                await self._wait_out(error, patience)

    async def _wait_out(self, error: CellarError, patience: Patience) -> None:
        """Pauses after an error that passes, and goes to another server where that is better."""
        await self._transport.pause(patience.pause_s(error))
        self._links.leave(self._link, error, patience.num_pauses)
        if self._wire.error is not None or self._link is not self._links.current:
            self._wire.cancel()
            self._connect()
            self._torn = set(range(len(self.ids))) - self._gone.keys()

    async def _mend(self, rows: list[int], patience: Patience) -> None:
        """Takes sessions up again, and sends what the server does not have and what is not answered."""
        try:
            missing, standing = self._reattached(rows, await self._reopen(rows, patience, resume=True))
            if missing:
                standing |= self._reattached(missing, await self._reopen(missing, patience, resume=False))[1]
            for sent, chosen in self._lost_chunks(standing):
                wire_id, left = self._next_id(), len(chosen)
                inbox = self._wire.inbox()
                await self._wire.send(wire_id, self._message(wire_id, sent, chosen), inbox)
                while left:
                    left -= rows_repeated(await self._wire.take(inbox, patience.left_s))
            for sent, chosen in self._unanswered(rows):
                wire_id = self._next_id()
                await self._wire.send(wire_id, self._again(wire_id, sent, chosen), self._inbox)
        except CellarError:
            self._torn.update(rows)
            raise

    async def _reopen(self, rows: list[int], patience: Patience, *, resume: bool) -> OpenedSessions:
        frame_id = self._next_id()
        request = self._open_message(frame_id, [self.ids[row] for row in rows], resume=resume)
        opened: OpenedSessions = await self._wire.ask(frame_id, request, patience.left_s)
        return opened

    async def _step(
        self,
        inputs: Any,
        lengths: int | Sequence[int] | None = None,
        *,
        rows: Sequence[int] | None = None,
        timeout_ms: int = 0,
        bulk: bool = False,
        ends: bool = False,
    ) -> FrameAnswer:
        """`send` and `receive`, for one frame at a time; the first row's error is raised."""
        await self._send(inputs, lengths, rows=rows, timeout_ms=timeout_ms, bulk=bulk, ends=ends)
        return (await self._receive()).check()

    async def _close_sessions(self) -> None:
        """Closes all sessions of the stream; what is not answered yet is not waited for."""
        patience = Patience(self._timeout_s, len(self._links))
        while self.ids:
            try:
                if self._torn:
                    rows = sorted(self._torn)
                    self._reattached_to_close(rows, await self._reopen(rows, patience, resume=True))
                frame_id = self._next_id()
                await self._wire.ask(frame_id, self._close_request(frame_id), patience.left_s)
                self._forget_sessions()
            except CellarError as error:
                await self._wait_out(error, patience)

    async def _close(self) -> None:
        """Ends the stream; its sessions stay open until their idle limit."""
        await self._wire.close()
