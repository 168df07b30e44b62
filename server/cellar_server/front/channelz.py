"""Channelz: what gRPC itself counts of servers and connections, for grpcdebug and its like. Of grpc.aio only."""

from __future__ import annotations

from typing import Any

from cellar_server.runtime.base import StartupError


def add_channelz(server: Any) -> str:
    """Adds the service to a grpc.aio server; its name. StartupError for another transport, whose connections gRPC for
    Python does not see, and where grpcio-channelz is not installed."""
    if hasattr(server, "add_lane"):
        raise StartupError("channelz: it shows the connections of grpc.aio: use --transport aio")
    try:
        from grpc_channelz.v1 import channelz, channelz_pb2
    except ImportError:
        raise StartupError("channelz: pip install 'cellar-serving[channelz]'") from None
    channelz.add_channelz_servicer(server)
    return str(channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
