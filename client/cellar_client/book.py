"""What a session's client knows of it, whatever carries it."""

from __future__ import annotations

from typing import Any

from cellar_proto.v1.inference_pb2 import Answer, Frame, OpenedSessions, OpenSessions, StreamRequest
from cellar_proto.v1.sessions_pb2 import SessionOptions

from cellar_client.emissions import Emissions
from cellar_client.errors import SessionClosed, from_error
from cellar_client.messages import Codec
from cellar_client.replay import Chunk, Replay


class SessionBook:
    """A session's id, position and answered chunks, and the messages made of them.

    `id`; `position`: how much input it has consumed (steps, or bytes of text); `durable_position`: up to which the
    server's store holds it; `keep`: it stays open at the end of a `with`.
    """

    def __init__(self, codec: Codec, id: str, position: int, *, keep: bool) -> None:
        self._codec = codec
        self.id = id
        self.position = position
        self.durable_position = 0
        self.keep = keep
        self._handle = 0
        self._is_closed = False
        self._replay = Replay(position)
        self._options = SessionOptions()

    def _parts(self, x: Any) -> list[tuple[bytes, int]]:
        """An input as chunks that the server takes: bytes, length. SessionClosed, DtypeMismatch, ShapeMismatch."""
        if self._is_closed:
            raise SessionClosed(f"session {self.id!r} was closed")
        return list(self._codec.split(*self._codec.encode(x)))

    def _frame_request(self, frame_id: int, chunk: Chunk) -> StreamRequest:
        return StreamRequest(
            frame=Frame(
                frame_id=frame_id,
                handles=[self._handle],
                positions=[chunk.start],
                lengths=[chunk.length],
                inputs=self._codec.tensor(chunk.data),
                ends=[True] if chunk.ends else [],
            )
        )

    def _open_request(self, frame_id: int, *, resume: bool) -> StreamRequest:
        info = self._codec.info
        request = OpenSessions(frame_id=frame_id, model=info.name, version=info.version, ids=[self.id], resume=resume)
        if not resume:
            request.options.CopyFrom(self._options)
        return StreamRequest(open=request)

    def _took(self, chunk: Chunk, answer: Answer) -> Emissions:
        """A chunk was answered: float32 [emissions, ...]."""
        self.position = answer.positions[0]
        self._replay.add(chunk)
        for durable in answer.durable_positions:
            self.durable_position = durable
            self._replay.settle(durable)
        return self._codec.decode(answer.outputs)


def checked(message: Answer | OpenedSessions) -> Any:
    """The message itself, or its first row's error."""
    for error in message.errors:
        raise from_error(error.error)
    return message
