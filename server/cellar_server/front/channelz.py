"""Channelz: what gRPC itself counts of servers and connections, for grpcdebug and its like. Of grpc.aio only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc

from cellar_server.errors import CellarError
from cellar_server.front.callers import Callers
from cellar_server.front.status import abort
from cellar_server.runtime.base import StartupError

Method = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


def add_channelz(server: Any, callers: Callers) -> str:
    """Adds the service to a grpc.aio server, for callers who administer all models: it shows everybody's connections.
    Its name. StartupError for another transport, whose connections gRPC for Python does not see, and where
    grpcio-channelz is not installed."""
    if server.name != "aio":
        raise StartupError("channelz: it shows the connections of grpc.aio: use --transport aio")
    try:
        from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
    except ImportError:
        raise StartupError("channelz: pip install 'cellar-serving[channelz]'") from None
    service = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
    methods = {each.name: _kept(getattr(channelz.aio.ChannelzServicer, each.name), callers) for each in service.methods}
    channelz_pb2_grpc.add_ChannelzServicer_to_server(SimpleNamespace(**methods), server)
    return str(service.full_name)


def _kept(method: Method, callers: Callers) -> Method:
    """The same, for those who may."""

    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            callers.of(context).must_administer_all()
        except CellarError as error:
            await abort(context, error)
        return await method(request, context)

    return call
