"""A bidirectional stream of columnar frames, for threads: many sessions, one message each way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2_grpc
from cellar_proto.v1.inference_pb2 import (
    BULK,
    Answer,
    CloseSessions,
    Frame,
    OpenedSessions,
    OpenSessions,
    StreamRequest,
    StreamResponse,
)
from cellar_proto.v1.sessions_pb2 import SessionOptions

from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, DeadlineExceeded, Unavailable, from_error, from_rpc
from cellar_client.messages import Codec, mint_id, mint_token


@dataclass
class FrameAnswer:
    """The answer to one frame, its rows in the order of the frame.

    outputs: float32 [sum(lengths), ...]; lengths: emissions of each row [N]; positions: of each session after its
    chunk [N]; errors: by row, whose length is 0.
    """

    frame_id: int
    outputs: Emissions
    lengths: np.ndarray
    positions: np.ndarray
    errors: dict[int, CellarError] = field(default_factory=dict)

    def rows(self) -> list[Emissions]:
        """The emissions of each row."""
        ends = np.cumsum(self.lengths)
        return [self.outputs[end - n : end] for end, n in zip(ends.tolist(), self.lengths.tolist(), strict=True)]

    def check(self) -> FrameAnswer:
        """Itself, or the first row's error."""
        for error in self.errors.values():
            raise error
        return self


class Wire:
    """One Stream call: messages go out through a queue, answers come back to whoever waits for their frame."""

    def __init__(self, stub: inference_pb2_grpc.InferenceStub) -> None:
        self._outbox: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
        self._waiting: dict[int, queue.SimpleQueue[Any]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self.error: CellarError | None = None
        self._call = stub.Stream(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True, name="cellar-stream")
        self._reader.start()

    def _read(self) -> None:
        error: CellarError = Unavailable("the stream has ended")
        try:
            for response in self._call:
                self._hand_out(response)
        except grpc.RpcError as failure:
            error = from_rpc(failure)
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


class _Gathering:
    """A frame's answers until the last one is there."""

    def __init__(self, handles: np.ndarray, lengths: np.ndarray) -> None:
        self.handles = handles
        self.lengths = lengths
        self.answers: list[Answer] = []
        self.left = len(handles)

    def add(self, answer: Answer, frame_id: int) -> bool:
        ids = answer.frame_ids
        self.left -= len(answer.handles) if len(ids) == 1 else list(ids).count(frame_id)
        self.answers.append(answer)
        return self.left <= 0


class FrameBook:
    """What a frame stream knows, whatever carries it: its sessions, their positions, and the frames on their way."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._gathering: dict[int, _Gathering] = {}
        self._place: dict[int, int] = {}
        self.ids: list[str] = []
        self.handles = np.zeros(0, np.uint64)
        self.positions = np.zeros(0, np.int64)

    def _open_request(
        self, frame_id: int, sessions: int | Sequence[str], resume: bool, max_idle_s: float
    ) -> StreamRequest:
        ids = [mint_id() for _ in range(sessions)] if isinstance(sessions, int) else list(sessions)
        return StreamRequest(
            open=OpenSessions(
                frame_id=frame_id,
                model=self._codec.info.name,
                version=self._codec.info.version,
                ids=ids,
                resume=resume,
                options=SessionOptions(max_idle_s=max_idle_s),
                request_token=mint_token(),
            )
        )

    def _take_opened(self, opened: OpenedSessions) -> list[str]:
        for error in opened.errors:
            raise from_error(error.error)
        for i, handle in enumerate(opened.handles):
            self._place[handle] = len(self.ids) + i
        self.ids += opened.ids
        self.handles = np.concatenate([self.handles, np.array(opened.handles, np.uint64)])
        self.positions = np.concatenate([self.positions, np.array(opened.positions, np.int64)])
        return list(opened.ids)

    def _frame_request(
        self,
        frame_id: int,
        inputs: Any,
        lengths: int | Sequence[int] | None,
        rows: Sequence[int] | None,
        timeout_ms: int,
        bulk: bool,
        ends: bool,
    ) -> StreamRequest:
        chosen = slice(None) if rows is None else np.asarray(rows, np.int64)
        handles = self.handles[chosen]
        if self._codec.info.is_text:
            texts = [text.encode() if isinstance(text, str) else text for text in inputs]
            data, lengths = b"".join(texts), [len(text) for text in texts]
        else:
            data, _ = self._codec.encode(inputs)
        each = [1] if lengths is None else [lengths] if isinstance(lengths, int) else list(lengths)
        frame = Frame(
            frame_id=frame_id,
            handles=handles.tolist(),
            positions=self.positions[chosen].tolist(),
            lengths=each,
            inputs=self._codec.tensor(data),
            timeouts_ms=[timeout_ms] if timeout_ms else [],
            priorities=[BULK] if bulk else [],
            ends=[True] if ends else [],
        )
        self._gathering[frame_id] = _Gathering(handles, np.resize(np.array(each, np.int64), len(handles)))
        self.positions[chosen] += np.array(each, np.int64)
        return StreamRequest(frame=frame)

    def _take(self, kind: str, frame_id: int, message: Any) -> FrameAnswer | None:
        """The frame's answer, once its last part is there; a frame refused as a whole is raised, and its sessions'
        positions are set back."""
        gathering = self._gathering.get(frame_id)
        if gathering is None:
            return None
        if kind == "frame_error":
            del self._gathering[frame_id]
            for handle, length in zip(gathering.handles.tolist(), gathering.lengths.tolist(), strict=True):
                if handle in self._place:
                    self.positions[self._place[handle]] -= length
            raise from_error(message.error)
        if not gathering.add(message, frame_id):
            return None
        del self._gathering[frame_id]
        return self._gathered(frame_id, gathering)

    def _close_request(self, frame_id: int) -> StreamRequest:
        request = StreamRequest(close=CloseSessions(frame_id=frame_id, handles=self.handles.tolist()))
        self.ids, self._place = [], {}
        self.handles, self.positions = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return request

    def _gathered(self, frame_id: int, gathering: _Gathering) -> FrameAnswer:
        codec = self._codec
        if len(gathering.answers) == 1:
            answer = gathering.answers[0]
            handles = np.array(answer.handles, np.uint64)
            if len(answer.frame_ids) == 1 and np.array_equal(handles, gathering.handles) and not answer.errors:
                n = len(handles)
                lengths = np.resize(np.array(answer.lengths, np.int64), n)
                return FrameAnswer(
                    frame_id, codec.decode(answer.outputs), lengths, np.array(answer.positions, np.int64)
                )
        place = {handle: i for i, handle in enumerate(gathering.handles.tolist())}
        n = len(place)
        pieces: list[Emissions | None] = [None] * n
        positions = np.zeros(n, np.int64)
        errors: dict[int, CellarError] = {}
        for answer in gathering.answers:
            outputs = codec.decode(answer.outputs)
            count = len(answer.handles)
            ids = list(answer.frame_ids) * (count if len(answer.frame_ids) == 1 else 1)
            lengths = list(answer.lengths) * (count if len(answer.lengths) == 1 else 1)
            failed = {error.row: from_error(error.error) for error in answer.errors}
            at = 0
            for row, (handle, each, length) in enumerate(zip(answer.handles, ids, lengths, strict=True)):
                piece = outputs[at : at + length]
                at += length
                if each != frame_id:
                    continue
                i = place[handle]
                positions[i] = answer.positions[row]
                if row in failed:
                    errors[i] = failed[row]
                    if handle in self._place:
                        self.positions[self._place[handle]] = answer.positions[row]
                else:
                    pieces[i] = piece
        good = [piece for piece in pieces if piece is not None]
        outputs = Emissions(np.concatenate(good), codec.info.labels) if good else codec.decode(answer.outputs)[:0]
        counts = np.array([0 if piece is None else len(piece) for piece in pieces], np.int64)
        return FrameAnswer(frame_id, outputs, counts, positions, errors)


class FrameStream(FrameBook):
    """Many sessions of one model on a stream of their own: send one columnar frame, receive one.

    with client.stream("forecast") as stream:
        stream.open(256)
        answer = stream.step(rows)          # [256, features], one step of each session
    """

    def __init__(self, stub: inference_pb2_grpc.InferenceStub, codec: Codec, timeout_s: float) -> None:
        super().__init__(codec)
        self._timeout_s = timeout_s
        self._wire = Wire(stub)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, sessions: int | Sequence[str], *, resume: bool = False, max_idle_s: float = 0.0) -> list[str]:
        """Opens so many sessions, or sessions of these ids (with `resume`: takes up open ones); their ids. They become
        the stream's rows, behind those that it has. The first refusal is raised, and none becomes a row."""
        frame_id = self._wire.next_id()
        request = self._open_request(frame_id, sessions, resume, max_idle_s)
        return self._take_opened(self._wire.ask(frame_id, request, self._timeout_s))

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
        (one number where all are equal; None: 1 each); rows: which of the stream's sessions [N] (None: all).
        """
        frame_id = self._wire.next_id()
        request = self._frame_request(frame_id, inputs, lengths, rows, timeout_ms, bulk, ends)
        self._wire.send(frame_id, request, self._inbox)
        return frame_id

    def receive(self, timeout_s: float | None = None) -> FrameAnswer:
        """The answer of the next frame that is whole. Where rows failed, the sessions' positions are set back, so that
        the next frame goes on from what was taken in."""
        while True:
            kind, frame_id, message = wait(self._inbox, timeout_s or self._timeout_s)
            answer = self._take(kind, frame_id, message)
            if answer is not None:
                self._wire.forget(frame_id)
                return answer

    def step(self, inputs: Any, lengths: int | Sequence[int] | None = None, **options: Any) -> FrameAnswer:
        """`send` and `receive`, for one frame at a time; the first row's error is raised."""
        self.send(inputs, lengths, **options)
        return self.receive().check()

    def close_sessions(self) -> None:
        """Closes all sessions of the stream."""
        frame_id = self._wire.next_id()
        self._wire.ask(frame_id, self._close_request(frame_id), self._timeout_s)

    def close(self) -> None:
        """Ends the stream; its sessions stay open until their idle limit."""
        self._wire.close()
