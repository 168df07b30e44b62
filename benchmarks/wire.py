"""The plain stubs: what the wire itself carries, and the server's own counters."""

from __future__ import annotations

from types import TracebackType

import grpc
from cellar_proto.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc

OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


class Wire:
    """A blocking channel with the contract's stubs."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=OPTIONS)
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.models = models_pb2_grpc.ModelsStub(self.channel)

    def counters(self, model: str) -> models_pb2.Counters:
        """The exact counts of a model's newest version."""
        return self.models.GetModel(models_pb2.GetModelRequest(name=model), timeout=10).counters

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.channel.close()
