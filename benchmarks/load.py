"""The load client: streams of one-step frames, each answered before the next is sent (or a few in flight)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc

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
    latencies_s: list[float] = field(default_factory=list)


def _check(errors: list[pb.RowError]) -> None:
    if errors:
        raise AnswerError(str(errors[0]))


class Load:
    """`num_streams` streams of `num_sessions` each over one channel; use inside one event loop."""

    def __init__(self, address: str, num_streams: int, num_sessions: int, depth: int = 1) -> None:
        self.address, self.num_streams, self.num_sessions, self.depth = address, num_streams, num_sessions, depth
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

    async def window(self, window_s: float) -> float:
        """Steps a second over one window."""
        started = time.perf_counter()
        rows = sum(await asyncio.gather(*(self._drive(lane, started + window_s) for lane in self.lanes)))
        return rows / (time.perf_counter() - started)

    async def step_once(self) -> None:
        """One step of every session, a stream after the other: all at once would be more than the queue holds."""
        for lane in self.lanes:
            await self._drive(lane, 0.0, least=len(lane.handles))

    async def _drive(self, lane: Lane, until: float, least: int = 0) -> int:
        pending, done = 0, 0
        while True:
            sent = time.perf_counter()
            while pending < self.depth * len(lane.handles) and (done + pending < least or time.perf_counter() < until):
                await self._send(lane)
                pending += len(lane.handles)
            if not pending:
                return done
            reply = await lane.call.read()
            if reply is grpc.aio.EOF or not reply.HasField("answer"):
                raise AnswerError(str(reply))
            _check(reply.answer.errors)
            lane.latencies_s.append(time.perf_counter() - sent)
            pending -= len(reply.answer.handles)
            done += len(reply.answer.handles)

    async def _send(self, lane: Lane) -> None:
        positions = [lane.position] * len(lane.handles)
        frame = pb.Frame(frame_id=lane.position + 2, handles=lane.handles, positions=positions)
        frame.inputs.data = lane.data
        lane.position += 1
        await lane.call.write(pb.StreamRequest(frame=frame))

    def take_latencies_s(self) -> np.ndarray:
        """Times from a frame sent to its answer read (depth 1) since the last call."""
        taken = np.array([value for lane in self.lanes for value in lane.latencies_s])
        for lane in self.lanes:
            lane.latencies_s.clear()
        return taken

    async def close(self) -> None:
        for lane in self.lanes:
            lane.call.cancel()
        await self.channel.close()


class UnaryLoad:
    """`num_sessions` callers that each send one step a call, the next when the last is answered."""

    def __init__(self, address: str, num_sessions: int, *, opens: bool = True) -> None:
        self.address, self.opens = address, opens
        self.ids = [f"unary-{i}" for i in range(num_sessions)]

    async def open(self) -> None:
        self.channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)
        self.data = np.random.default_rng(0).standard_normal(WIDTH).astype("<f4").tobytes()
        if self.opens:
            sessions = sessions_pb2_grpc.SessionsStub(self.channel)
            for id in self.ids:
                await sessions.OpenSession(sessions_pb2.OpenSessionRequest(model=NAME, id=id))

    async def window(self, window_s: float) -> float:
        """Steps a second over one window."""
        started = time.perf_counter()
        counts = await asyncio.gather(*(self._drive(id, started + window_s) for id in self.ids))
        return sum(counts) / (time.perf_counter() - started)

    async def _drive(self, id: str, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            request = pb.StepRequest(session_id=id)
            request.inputs.data = self.data
            await self.stub.Step(request)
            done += 1
        return done

    async def close(self) -> None:
        await self.channel.close()
