"""How the benchmark's own servers begin: a free port of the loopback, said as `serving.started` reads it."""

from __future__ import annotations

import sys

import grpc


def say(name: str, port: int) -> None:
    print(f"{name} listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)


async def listen(server: grpc.aio.Server, name: str) -> None:
    """Serves until the process is ended."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(name, port)
    await server.wait_for_termination()
