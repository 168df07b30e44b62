"""A bidirectional stream of columnar frames, for threads: many sessions, one message each way."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from cellar_proto.v1 import inference_pb2_grpc, sessions_pb2
from cellar_proto.v1.inference_pb2 import OpenedSessions, StreamRequest, StreamResponse

from cellar_client.errors import CellarError, DeadlineExceeded, Unavailable, ended, from_error
from cellar_client.frames import FrameAnswer, FrameBook, rows_repeated
from cellar_client.messages import Codec
from cellar_client.replay import PASSING, Patience

if TYPE_CHECKING:
    from cellar_client.client import Client


class Wire:
    """One Stream call: messages go out through a queue, answers come back to whoever waits for their frame."""

    def __init__(self, stub: inference_pb2_grpc.InferenceStub, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._outbox: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
        self._waiting: dict[int, queue.SimpleQueue[Any]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self.error: CellarError | None = None
        self._call = stub.Stream(iter(self._outbox.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, daemon=True, name="cellar-stream")
        self._reader.start()

    def _read(self) -> None:
        error: CellarError = Unavailable("the stream has ended")
        was_live = False
        try:
            for response in self._call:
                was_live = True
                self._hand_out(response)
        except grpc.RpcError as failure:
            error = ended(failure, was_live=was_live)
        with self._lock:
            self.error = error
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for each in set(waiting):
            each.put(error)

    def _hand_out(self, response: StreamResponse) -> None:
        kind = response.WhichOneof("kind")
        message = getattr(response, kind)
        ids: Sequence[int] = set(message.frame_ids) if kind == "answer" else [message.frame_id]  # type: ignore[assignment]
        for frame_id in ids:
            inbox = self._waiting.get(frame_id)
            if inbox is not None:
                inbox.put((kind, frame_id, message))

    def next_id(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def send(self, frame_id: int, request: StreamRequest, inbox: queue.SimpleQueue[Any]) -> None:
        """Sends a message whose answers go to `inbox`, until `forget`."""
        with self._lock:
            if self.error is not None:
                raise self.error
            self._waiting[frame_id] = inbox
        self._outbox.put(request)

    def forget(self, frame_id: int) -> None:
        with self._lock:
            self._waiting.pop(frame_id, None)

    def ask(self, frame_id: int, request: StreamRequest, timeout_s: float) -> Any:
        """Sends a message and waits for its one answer."""
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.send(frame_id, request, inbox)
        try:
            found = wait(inbox, timeout_s)
        finally:
            self.forget(frame_id)
        kind, _, message = found
        if kind == "frame_error":
            raise from_error(message.error)
        return message

    def cancel(self) -> None:
        """Ends the stream at once; its chunks that have not begun are dropped."""
        self._outbox.put(None)
        self._call.cancel()

    def close(self) -> None:
        """Ends the sending side; what is unanswered is still answered, nobody waits for it."""
        self._outbox.put(None)
        self._reader.join(0.5)
        self._call.cancel()
        self._reader.join(5)


def wait(inbox: queue.SimpleQueue[Any], timeout_s: float) -> Any:
    """The next answer; DeadlineExceeded, or the error that ended the stream."""
    try:
        found = inbox.get(timeout=timeout_s)
    except queue.Empty:
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s") from None
    if isinstance(found, CellarError):
        raise found
    return found


class FrameStream(FrameBook):
    """Many sessions of one model on a stream of their own: send one columnar frame, receive one.

    with client.stream("forecast") as stream:
        stream.open(256)
        answer = stream.step(rows)          # [256, features], one step of each session

    A server that goes away is waited for, within the call's time, or the next one asked: the sessions are taken up
    where they are, and what was lost is sent once more.
    """

    def __init__(self, client: Client, codec: Codec, timeout_s: float) -> None:
        super().__init__(codec)
        self._client = client
        self._links = client._links
        self._timeout_s = timeout_s
        self._ready: deque[FrameAnswer] = deque()
        self._connect()

    def _connect(self) -> None:
        self._link = self._links.current
        self._wire = Wire(self._link.inference, self._client._metadata)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, sessions: int | Sequence[str], *, resume: bool = False, max_idle_s: float = 0.0) -> list[str]:
        """Opens so many sessions, or sessions of these ids (with `resume`: takes up open ones); their ids. They become
        the stream's rows, behind those that it has. The first refusal is raised, and none becomes a row."""
        request = self._open_request(self._next_id(), sessions, resume, max_idle_s)
        patience = Patience(self._timeout_s, len(self._links))
        while True:
            try:
                return self._take_opened(self._wire.ask(request.open.frame_id, request, patience.left_s))
            except CellarError as error:
                self._wait_out(error, patience)

    def send(
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
            self._make_room()
        number = self._next_id()
        request = self._frame_request(number, inputs, lengths, rows, timeout_ms, bulk, ends)
        if request is not None and self._wire.error is None:
            with suppress(*PASSING):  # `receive` finds the same, and sends it again
                self._wire.send(number, request, self._inbox)
        return number

    def _make_room(self) -> None:
        if self._num_unanswered:
            self._ready.append(self._pull(self._timeout_s))
            return
        time.sleep(0.05)
        for row in self._undurable():
            request = sessions_pb2.GetSessionRequest(id=self.ids[row])
            found = self._client._ask("sessions", "GetSession", request, self._timeout_s)
            self._durable[row] = found.durable_position
        self._settle()

    def receive(self, timeout_s: float | None = None) -> FrameAnswer:
        """The answer of the next frame that is whole. Where rows failed, the sessions' positions are set back, so that
        the next frame goes on from what was taken in."""
        return self._ready.popleft() if self._ready else self._pull(timeout_s or self._timeout_s)

    def _pull(self, timeout_s: float) -> FrameAnswer:
        patience = Patience(timeout_s, len(self._links))
        while True:
            try:
                if self._torn:
                    self._mend(sorted(self._torn), patience)
                answer = self._complete()
                if answer is None:
                    if self._wire.error is not None and self._inbox.empty():
                        raise self._wire.error  # it ended while nobody waited for an answer
                    kind, wire_id, message = wait(self._inbox, patience.left_s)
                    answer = self._take(kind, wire_id, message)
                if answer is not None:
                    self._wire.forget(answer.frame_id)
                    return answer
            except CellarError as error:
                self._wait_out(error, patience)

    def _wait_out(self, error: CellarError, patience: Patience) -> None:
        """Pauses after an error that passes, and goes to another server where that is better."""
        time.sleep(patience.pause_s(error))
        self._links.leave(self._link, error, patience.num_pauses)
        if self._wire.error is not None or self._link is not self._links.current:
            self._wire.cancel()
            self._connect()
            self._torn = set(range(len(self.ids))) - self._gone.keys()

    def _mend(self, rows: list[int], patience: Patience) -> None:
        """Takes sessions up again, and sends what the server does not have and what is not answered."""
        try:
            missing, standing = self._reattached(rows, self._reopen(rows, patience, resume=True))
            if missing:
                standing |= self._reattached(missing, self._reopen(missing, patience, resume=False))[1]
            for sent, chosen in self._lost_chunks(standing):
                wire_id, left = self._next_id(), len(chosen)
                inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
                self._wire.send(wire_id, self._message(wire_id, sent, chosen), inbox)
                while left:
                    left -= rows_repeated(wait(inbox, patience.left_s))
            for sent, chosen in self._unanswered(rows):
                wire_id = self._next_id()
                self._wire.send(wire_id, self._again(wire_id, sent, chosen), self._inbox)
        except CellarError:
            self._torn.update(rows)
            raise

    def _reopen(self, rows: list[int], patience: Patience, *, resume: bool) -> OpenedSessions:
        frame_id = self._next_id()
        request = self._open_message(frame_id, [self.ids[row] for row in rows], resume=resume)
        return self._wire.ask(frame_id, request, patience.left_s)

    def step(self, inputs: Any, lengths: int | Sequence[int] | None = None, **options: Any) -> FrameAnswer:
        """`send` and `receive`, for one frame at a time; the first row's error is raised."""
        self.send(inputs, lengths, **options)
        return self.receive().check()

    def close_sessions(self) -> None:
        """Closes all sessions of the stream; what is not answered yet is not waited for."""
        patience = Patience(self._timeout_s, len(self._links))
        while self.ids:
            try:
                if self._torn:
                    rows = sorted(self._torn)
                    self._reattached_to_close(rows, self._reopen(rows, patience, resume=True))
                frame_id = self._next_id()
                self._wire.ask(frame_id, self._close_request(frame_id), patience.left_s)
                self._forget_sessions()
            except CellarError as error:
                self._wait_out(error, patience)

    def close(self) -> None:
        """Ends the stream; its sessions stay open until their idle limit."""
        self._wire.close()
