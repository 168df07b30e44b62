"""A request of the protocol that was read, and the responses to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.oip import schema, tensors
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.oip.signature import Signature
from cellar_server.front.oip.tensors import Given, Output


@dataclass(slots=True)
class Asked:
    """wanted: names of the outputs that the request asks for, none for all; value: its input."""

    request: Any
    given: Parameters
    engine: Engine
    signature: Signature
    wanted: list[str]
    value: Given

    @staticmethod
    def of(request: Any, given: Parameters, engine: Engine, signature: Signature) -> Asked:
        """CellarError for outputs that cannot be given, and for an input that the model does not take."""
        wanted = [output.name for output in request.outputs]
        if wanted:
            unknown = [name for name in wanted if name not in {place.name for place in signature.outputs}]
            if unknown:
                raise CellarError(Reason.INVALID_REQUEST, f"the model has no output {unknown[0]!r}")
            if any(key == "classification" for output in request.outputs for key in output.parameters):
                raise CellarError(Reason.UNSUPPORTED, "outputs are given as they are: classification is not supported")
        place = signature.input
        value = tensors.given(request, place.name, place.datatype, [*signature.batch, *place.dims])
        return Asked(request, given, engine, signature, wanted, value)

    @property
    def rows(self) -> int:
        """Rows of its batch."""
        return 1 if self.signature.is_decoupled else self.value.shape[0]

    @property
    def steps(self) -> int:
        """Steps (bytes, for text; of a generation one, and its prompt's) that it brings."""
        signature, value = self.signature, self.value
        if signature.is_decoupled:
            return 1 + (sum(map(len, value.elements)) if self.engine.manifest.prime.is_recurrent else 0)
        if signature.is_text:
            return sum(len(text) for text in value.elements)
        return value.shape[0] * (value.shape[1] if signature.has_time else 1)

    def respond(self, outputs: list[Output], params: dict[str, Any] | None = None) -> Any:
        """A ModelInferResponse with those of the outputs that are wanted."""
        engine = self.engine
        response = schema.ModelInferResponse(
            model_name=engine.name, model_version=str(engine.version), id=self.request.id
        )
        for output in outputs:
            if not self.wanted or output.name in self.wanted:
                response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
                response.raw_output_contents.append(output.data)
        for key, value in (params or {}).items():
            response.parameters[key].string_param = value
        return response
