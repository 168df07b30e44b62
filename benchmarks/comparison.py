"""A server with one of the three schedulers (`python -m benchmarks.comparison one|padded|buckets --models FOLDER`).

It speaks as much of cellar.v1 as the load generator sends: Predict, Step, and streams of chunks. One thread runs the
network, the event loop does the rest; no retries, no positions, no limits of its sessions.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import uvloop
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from cellar_proto.v1.reason_pb2 import OVERLOADED, Error

from benchmarks.batching import Job, Network, Worker, policy, start_state
from benchmarks.listening import listen
from benchmarks.network import WIDTH

SCHEDULERS = ["one", "padded", "buckets"]


class Service(inference_pb2_grpc.InferenceServicer, sessions_pb2_grpc.SessionsServicer):
    """The calls, over one worker."""

    def __init__(self, worker_of: object, max_waiting: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.worker: Worker = worker_of(self._hand_over)  # type: ignore[operator]
        self.max_waiting = max_waiting
        self.states: dict[object, np.ndarray] = {}
        self.futures: dict[Job, asyncio.Future[None]] = {}
        self.num_handles = 0

    def _hand_over(self, jobs: list[Job]) -> None:
        self.loop.call_soon_threadsafe(self._finish, jobs)

    def _finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            future = self.futures.pop(job, None)
            if future is None or future.done():
                continue
            if job.error:
                future.set_exception(job.error)
            else:
                future.set_result(None)

    async def run(self, jobs: Sequence[Job], context: grpc.aio.ServicerContext) -> None:
        """Waits until all have run; refuses them where too many wait."""
        if self.worker.num_waiting + len(jobs) > self.max_waiting:
            error = Error(reason=OVERLOADED, message="too many wait", retry_after_ms=100).SerializeToString()
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many wait", trailing_metadata=(("cellar-error-bin", error),)
            )
        futures = []
        for job in jobs:
            future: asyncio.Future[None] = self.loop.create_future()
            self.futures[job] = future
            job.is_dropped = future.cancelled
            futures.append(future)
        self.worker.put(jobs)
        try:
            if len(futures) == 1:
                await futures[0]
            else:
                await asyncio.gather(*futures)
        finally:
            for job, future in zip(jobs, futures, strict=True):
                if not future.done():
                    future.cancel()
                self.futures.pop(job, None)

    async def Predict(self, request: pb.PredictRequest, context: grpc.aio.ServicerContext) -> pb.PredictResponse:
        x = np.frombuffer(request.inputs.data, "<f4").reshape(-1, WIDTH)
        lengths = list(request.lengths) or [len(x)]
        jobs = [Job(part, start_state()) for part in np.split(x, np.cumsum(lengths)[:-1])]
        await self.run(jobs, context)
        response = pb.PredictResponse(version=1, lengths=lengths)
        response.outputs.data = b"".join(job.outputs.tobytes() for job in jobs)
        return response

    async def OpenSession(
        self, request: sessions_pb2.OpenSessionRequest, context: grpc.aio.ServicerContext
    ) -> sessions_pb2.Session:
        self.states[request.id] = start_state()
        return sessions_pb2.Session(id=request.id)

    async def Step(self, request: pb.StepRequest, context: grpc.aio.ServicerContext) -> pb.StepResponse:
        x = np.frombuffer(request.inputs.data, "<f4").reshape(-1, WIDTH)
        job = Job(x, self.states[request.session_id])
        await self.run([job], context)
        self.states[request.session_id] = job.state
        response = pb.StepResponse()
        response.outputs.data = job.outputs.tobytes()
        return response

    async def Stream(
        self, requests: AsyncIterator[pb.StreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamResponse]:
        """A frame after the other: the next is read when the rows of the one before are answered."""
        states: dict[int, np.ndarray] = {}
        async for request in requests:
            if request.HasField("open"):
                count = request.open.count
                handles = range(self.num_handles + 1, self.num_handles + count + 1)
                self.num_handles += count
                states.update((handle, start_state()) for handle in handles)
                opened = pb.OpenedSessions(frame_id=request.open.frame_id, handles=handles, positions=[0] * count)
                yield pb.StreamResponse(opened=opened)
                continue
            frame = request.frame
            x = np.frombuffer(frame.inputs.data, "<f4").reshape(-1, WIDTH)
            lengths = np.broadcast_to(np.array(frame.lengths or [1]), len(frame.handles))
            parts = np.split(x, np.cumsum(lengths)[:-1])
            jobs = [Job(part, states[handle]) for part, handle in zip(parts, frame.handles, strict=True)]
            await self.run(jobs, context)
            states.update((handle, job.state) for handle, job in zip(frame.handles, jobs, strict=True))
            answer = pb.Answer(
                frame_ids=[frame.frame_id],
                handles=frame.handles,
                starts=frame.positions,
                positions=[p + int(n) for p, n in zip(frame.positions, lengths, strict=True)],
                lengths=lengths,
            )
            answer.outputs.data = b"".join(job.outputs.tobytes() for job in jobs)
            yield pb.StreamResponse(answer=answer)


async def serve(name: str, network: Network, max_rows: int, max_waiting: int) -> None:
    service = Service(lambda deliver: Worker(network.run, policy(name, max_rows), deliver), max_waiting)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    inference_pb2_grpc.add_InferenceServicer_to_server(service, server)
    sessions_pb2_grpc.add_SessionsServicer_to_server(service, server)
    await listen(server, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    parser.add_argument("scheduler", choices=SCHEDULERS)
    parser.add_argument("--models", type=Path, required=True, help="folder that holds bare.onnx and padded.onnx")
    parser.add_argument("--max-rows", type=int, default=64, help="rows in one run")
    parser.add_argument("--max-waiting", type=int, default=16_384, help="rows that wait; more are refused")
    given = parser.parse_args()
    network = Network(given.models / "bare.onnx", given.models / "padded.onnx")
    uvloop.run(serve(given.scheduler, network, given.max_rows, given.max_waiting))


if __name__ == "__main__":
    main()
