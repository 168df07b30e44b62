"""Servers in Python that compute nothing: what the transport itself allows (`python -m benchmarks.echo KIND`).

raw: grpc.aio on bytes, each message sent back as it came. parsed: grpc.aio, each message parsed and an answer of the
same size made. sync, sync-raw: the same two with the synchronous server, unary calls only.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
from collections.abc import AsyncIterator

import grpc
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc

from benchmarks.listening import listen, say

KINDS = ["raw", "parsed", "sync", "sync-raw"]
SERVICE = "cellar.v1.Inference"


class Parsed(inference_pb2_grpc.InferenceServicer):
    """Gives every session a handle and every frame its own inputs back."""

    async def Step(self, request: pb.StepRequest, context: grpc.aio.ServicerContext) -> pb.StepResponse:
        return pb.StepResponse(position=1, outputs=request.inputs)

    async def Stream(
        self, requests: AsyncIterator[pb.StreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamResponse]:
        async for request in requests:
            if request.HasField("open"):
                count = request.open.count
                yield pb.StreamResponse(
                    opened=pb.OpenedSessions(
                        frame_id=request.open.frame_id, handles=range(1, count + 1), positions=[0] * count
                    )
                )
                continue
            frame = request.frame
            yield pb.StreamResponse(
                answer=pb.Answer(
                    frame_ids=[frame.frame_id],
                    handles=frame.handles,
                    starts=frame.positions,
                    positions=[p + 1 for p in frame.positions],
                    lengths=[1],
                    outputs=frame.inputs,
                )
            )


class Sync(inference_pb2_grpc.InferenceServicer):
    """The unary call for the synchronous server."""

    def Step(self, request: pb.StepRequest, context: grpc.ServicerContext) -> pb.StepResponse:
        return pb.StepResponse(position=1, outputs=request.inputs)


async def _step(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request


async def _stream(request: object, context: grpc.aio.ServicerContext) -> None:
    # read and write by hand: cheaper than the generator
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


def _raw(server: grpc.Server | grpc.aio.Server, *, is_sync: bool) -> None:
    """Handlers on bytes. The frame comes back as an answer: its first two fields have the same numbers."""
    handlers = {"Step": grpc.unary_unary_rpc_method_handler((lambda request, context: request) if is_sync else _step)}
    if not is_sync:
        handlers["Stream"] = grpc.stream_stream_rpc_method_handler(_stream)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])


async def serve(kind: str) -> None:
    server = grpc.aio.server()
    if kind == "raw":
        _raw(server, is_sync=False)
    else:
        inference_pb2_grpc.add_InferenceServicer_to_server(Parsed(), server)
    await listen(server, "echo")


def serve_sync(kind: str) -> None:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    if kind == "sync-raw":
        _raw(server, is_sync=True)
    else:
        inference_pb2_grpc.add_InferenceServicer_to_server(Sync(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say("echo", port)
    server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description=__doc__)
    parser.add_argument("kind", nargs="?", default="parsed", choices=KINDS)
    given = parser.parse_args()
    if given.kind.startswith("sync"):
        serve_sync(given.kind)
    else:
        try:
            import uvloop
        except ImportError:
            asyncio.run(serve(given.kind))
        else:
            uvloop.run(serve(given.kind))
