"""Requests before they are taken in: what they hold, and what answers them where they never are."""

from __future__ import annotations

from cellar_server.errors import CellarError
from cellar_server.sessions.messages import (
    Call,
    CallReply,
    FrameReply,
    FrameRequest,
    GenerateReply,
    GenerateRequest,
    PredictReply,
    PredictRequest,
    Reply,
    Request,
    Rows,
    StepRequest,
)
from cellar_server.sessions.selection import refused


def num_bytes(request: Request) -> int:
    """What a request holds while it waits to be taken in; 0 for what is small."""
    match request:
        case FrameRequest(frame=frame):
            return frame.ByteSize()
        case Rows(data=data):
            return data.nbytes
        case StepRequest(data=data) | PredictRequest(data=data):
            return len(data)
        case GenerateRequest(text=text, condition=condition):
            return len(text) + len(condition)
    return 0


def replies_of_refused(request: object, error: CellarError) -> list[Reply]:
    """The reply to a request that is not taken in, where it has one."""
    match request:
        case FrameRequest(to=to, frame_id=frame_id):
            return [FrameReply(to, frame_id, error)]
        case Rows() as rows:
            return [refused(rows, error)]
        case StepRequest(to=to):
            return [FrameReply(to, 0, error)]
        case PredictRequest(to=to):
            return [PredictReply(to, [], None, error=error)]
        case GenerateRequest(to=to, position=position, options=options):
            return [GenerateReply(to, [], [], b"", position, options.seed, error=error)]
        case Call(to=to):
            return [CallReply(to, error=error)]
    return []
