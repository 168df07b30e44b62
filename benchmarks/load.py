"""Many sessions opened and stepped once, without a load generator: what the memory arm needs."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc

from benchmarks.network import NAME, WIDTH
from benchmarks.wire import OPTIONS


class AnswerError(RuntimeError):
    """The server refused a row; its text says why."""


@dataclass
class Lane:
    """One stream with its sessions."""

    call: grpc.aio.StreamStreamCall
    handles: list[int]
    data: bytes
    position: int = 0


def _check(errors: list[pb.RowError]) -> None:
    if errors:
        raise AnswerError(str(errors[0]))


class Load:
    """`num_streams` streams of `num_sessions` each over one channel; use inside one event loop."""

    def __init__(self, address: str, num_streams: int, num_sessions: int) -> None:
        self.address, self.num_streams, self.num_sessions = address, num_streams, num_sessions
        self.lanes: list[Lane] = []

    async def open(self) -> None:
        self.channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
        stub = inference_pb2_grpc.InferenceStub(self.channel)
        rng = np.random.default_rng(0)
        for _ in range(self.num_streams):
            call = stub.Stream()
            await call.write(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model=NAME, count=self.num_sessions)))
            opened = (await call.read()).opened
            _check(opened.errors)
            data = rng.standard_normal((self.num_sessions, WIDTH)).astype("<f4").tobytes()
            self.lanes.append(Lane(call, list(opened.handles), data))

    async def step_once(self) -> None:
        """One step of every session, a stream after the other: all at once would be more than the queue holds."""
        for lane in self.lanes:
            positions = [lane.position] * len(lane.handles)
            frame = pb.Frame(frame_id=lane.position + 2, handles=lane.handles, positions=positions)
            frame.inputs.data = lane.data
            lane.position += 1
            await lane.call.write(pb.StreamRequest(frame=frame))
            answered = 0
            while answered < len(lane.handles):
                reply = await lane.call.read()
                if reply is grpc.aio.EOF or not reply.HasField("answer"):
                    raise AnswerError(str(reply))
                _check(reply.answer.errors)
                answered += len(reply.answer.handles)

    async def close(self) -> None:
        for lane in self.lanes:
            lane.call.cancel()
        await self.channel.close()
