"""What engines answer, as messages."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.inference_pb2 import RowError, StreamResponse
from cellar_proto.v1.tensor_pb2 import DataType, Tensor

from cellar_server.errors import CellarError
from cellar_server.sessions.messages import AnswerReply


def row_errors(errors: list[tuple[int, CellarError]]) -> list[RowError]:
    return [RowError(row=row, error=error.to_proto()) for row, error in errors]


def tensor(values: np.ndarray) -> Tensor:
    """float32 [n, ...] as a message."""
    return Tensor(dtype=DataType.FLOAT32, shape=values.shape, data=values.tobytes())


def answer_message(reply: AnswerReply) -> StreamResponse:
    """Rows that one run finished for a stream, or that were refused."""
    lengths, rows = reply.lengths, len(reply.handles)
    response = StreamResponse()
    answer = response.answer
    answer.frame_ids.extend(reply.frame_ids)
    answer.handles.extend(reply.handles)
    answer.starts.extend(reply.starts)
    answer.positions.extend(reply.positions)
    answer.lengths.extend(lengths[:1] if rows == 1 or lengths.count(lengths[0]) == rows else lengths)
    outputs = answer.outputs
    outputs.dtype = DataType.FLOAT32
    outputs.shape.extend(reply.outputs.shape)
    outputs.data = reply.outputs.tobytes()
    if reply.durable:
        answer.durable_positions.extend(reply.durable)
    if reply.errors:
        answer.errors.extend(row_errors(reply.errors))
    return response
