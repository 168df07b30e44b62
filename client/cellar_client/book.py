"""What a session's client knows of it, whatever carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellar_proto.v1.inference_pb2 import Answer, Frame, OpenedSessions, OpenSessions, StreamRequest
from cellar_proto.v1.sessions_pb2 import SessionOptions

from cellar_client.codec import Codec
from cellar_client.emissions import Emissions
from cellar_client.errors import SessionClosed, from_error
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
        self._replay = Replay(position, drops=not codec.info.durability)
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

    def _stored(self, durable_position: int) -> None:
        """The server holds the session up to here, whatever happens to it."""
        self.durable_position = durable_position
        self._replay.settle(durable_position)

    def _took(self, chunk: Chunk, frame_id: int, answer: Answer) -> Emissions:
        """A chunk was answered: float32 [emissions, ...]."""
        (row,) = rows_of(answer, frame_id)
        lengths = column(answer.lengths, len(answer.handles))
        self.position = answer.positions[row]
        self._replay.add(chunk)
        if answer.durable_positions:
            self._stored(column(answer.durable_positions, len(answer.handles))[row])
        at = sum(lengths[:row])
        emissions: Emissions = self._codec.decode(answer.outputs)[at : at + lengths[row]]
        return emissions


def column(values: Sequence[int], count: int) -> Sequence[int]:
    """A column of one or `count` values as `count` of them."""
    return values if len(values) == count else list(values) * count


def rows_of(answer: Answer, frame_id: int) -> list[int]:
    """Which rows of an answer are of a frame: what one run finished for a stream is one answer, whatever frames it came
    in. The first error among them is raised."""
    ids = column(answer.frame_ids, len(answer.handles))
    rows = [row for row, each in enumerate(ids) if each == frame_id]
    for error in answer.errors:
        if error.row in rows:
            raise from_error(error.error)
    return rows


def checked(opened: OpenedSessions) -> OpenedSessions:
    """The message itself, or its first row's error."""
    for error in opened.errors:
        raise from_error(error.error)
    return opened
