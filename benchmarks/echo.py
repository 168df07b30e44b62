"""A grpc.aio server that parses each message of a stream and answers one as large: what the transport allows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc


class Echo(inference_pb2_grpc.InferenceServicer):
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


async def main() -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"echo listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
