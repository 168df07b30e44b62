"""Frames come in: what their bytes hold becomes columns of chunks, or an answer that says why not."""

from __future__ import annotations

from cellar_server.errors import CellarError
from cellar_server.sessions.columns import Chunks, Columns
from cellar_server.sessions.core import Core
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.messages import FrameReply, FrameRequest


class Intake:
    """Reads frames, as many together as share no session."""

    def __init__(self, core: Core, frames: Frames) -> None:
        self.core, self.frames = core, frames

    def admit(self, requests: list[FrameRequest], now: float) -> None:
        """Queues the chunks of frames in the order of their arrival; refuses those that cannot run, row by row."""
        frames: list[Chunks] = []
        before = 0
        for request in requests:
            try:
                self._check_time(request, now, before)
            except CellarError as error:
                self.core.counts.chunks_failed += len(request.frame.handles)
                self.core.counts.refuse(error.reason, len(request.frame.handles))
                self.core.replies.append(FrameReply(request.to, request.frame_id, error))
                continue
            before += len(request.frame.handles)
            if request.columns is not None:
                self._admit_small(frames, now)
                frames = []
                # taken off the request: they hold each other, and its bytes would stay until the collector comes
                columns, request.columns = request.columns, None
                self.core.counts.copy("read", len(columns.frames[0].data))
                if self._has_room(columns.frames[0]):
                    self.frames.admit_columns(columns, now)
            elif (chunks := self._read(request)) is not None:
                frames.append(chunks)
        self._admit_small(frames, now)

    def _check_time(self, request: FrameRequest, now: float, before: int) -> None:
        """CellarError for a frame whose time is over, or will be before its first row's turn: it is not even read."""
        timeouts = request.frame.timeouts_ms
        if timeouts and min(timeouts):
            passed_s = now - request.arrived_s if request.arrived_s else 0.0
            caller = request.caller or request.stream
            self.core.check_time(max(timeouts) / 1000 - passed_s, caller, before=before)

    def _admit_small(self, frames: list[Chunks], now: float) -> None:
        """Frames that are read together."""
        while frames:
            # a session may stand in several frames: frames that share one go in one after the other
            seen: set[int] = set()
            wave: list[Chunks] = []
            rest: list[Chunks] = []
            num_rows = 0
            for chunks in frames:
                if not rest and seen.isdisjoint(chunks.handles):
                    seen.update(chunks.handles)
                    num_rows += len(chunks.handles)
                    wave.append(chunks)
                else:
                    rest.append(chunks)
            columns = Columns.of(wave, self.frames.content, self.core.max_chunk, are_distinct=len(seen) == num_rows)
            if len(wave) > 1:
                self.core.counts.copy("join", columns.inputs.nbytes)
            self.frames.admit_columns(columns, now)
            frames = rest

    def read_large(self, request: FrameRequest) -> None:
        """Reads a sound frame of many rows ahead, on the thread that received it: touches no session."""
        try:
            chunks = Chunks(request, self.core.work.capacity)
            self._check_content(chunks)
        except CellarError:
            return  # `admit` finds the same, and replies
        are_distinct = len(set(chunks.handles)) == len(chunks.handles)
        request.columns = Columns.of([chunks], self.frames.content, self.core.max_chunk, are_distinct=are_distinct)

    def _check_content(self, chunks: Chunks) -> None:
        inputs = chunks.request.frame.inputs
        self.frames.content.check(inputs.dtype, inputs.shape, len(chunks.data), chunks.total)

    def _read(self, request: FrameRequest) -> Chunks | None:
        """What a frame holds; None for one that cannot be taken, and a reply to it."""
        try:
            chunks = Chunks(request, self.core.work.capacity)
        except CellarError as error:
            self.core.counts.refuse(error.reason)
            self.core.replies.append(FrameReply(request.to, request.frame_id, error))
            return None
        self.core.counts.copy("read", len(chunks.data))
        try:
            self._check_content(chunks)
        except CellarError as error:
            self._refuse_frame(chunks, error)
            return None
        return chunks if self._has_room(chunks) else None

    def _has_room(self, chunks: Chunks) -> bool:
        """False, and a reply, where the engine drains or its queue is full."""
        try:
            self.frames.check_room(len(chunks.data))
        except CellarError as error:
            self._refuse_frame(chunks, error)
            return False
        return True

    def _refuse_frame(self, chunks: Chunks, error: CellarError) -> None:
        n = len(chunks.handles)
        self.frames.refuse(chunks.request, list(range(n)), [error] * n)
