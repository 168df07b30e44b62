"""A model as the protocol describes it: names, datatypes and shapes of its tensors, and how it is scheduled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cellar_proto.v1.manifest_pb2 import Mode

from cellar_server.config import Config
from cellar_server.engine import Engine
from cellar_server.front.oip import schema
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.oip.tensors import DATATYPES

_TYPES = {each: f"TYPE_{each}" for each in DATATYPES.values()} | {"BYTES": "TYPE_STRING"}
# The seam that a Triton client looks for; the tensors themselves are ours.
PLATFORM = "cellar"


@dataclass(frozen=True)
class Place:
    """One tensor: dims without the batch axis, -1 for any size."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """has_time: the input has a time axis; is_single: one answer for a sequence; is_decoupled: several a request."""

    input: Place
    outputs: tuple[Place, ...]
    max_batch_size: int
    is_text: bool
    has_time: bool
    is_single: bool
    is_decoupled: bool
    keeps_sessions: bool

    @staticmethod
    def of(engine: Engine, config: Config) -> Signature:
        manifest = engine.manifest
        # an aligned model that generates too has one signature here: that of its mode
        if manifest.HasField("generation") and manifest.mode != Mode.MANY_TO_MANY_ALIGNED:
            condition = manifest.prime.condition
            is_text = engine.model.condition is not None or engine.model.source is not None
            time = (-1,) if manifest.prime.is_recurrent else ()
            given = (
                Place("text", "BYTES", (1,))
                if is_text
                else Place("condition", DATATYPES[condition.dtype], (*time, *condition.shape))
            )
            outputs = [Place("ids", "INT64", (-1,)), Place("log_probabilities", "FP32", (-1,))]
            if engine.model.vocabulary is not None:
                outputs.insert(0, Place("text", "BYTES", (1,)))
            return Signature(given, tuple(outputs), 0, is_text, False, False, True, False)
        is_text = engine.model.text is not None
        has_time = manifest.mode != Mode.ONE_TO_ONE and not is_text
        is_single = manifest.mode in (Mode.ONE_TO_ONE, Mode.MANY_TO_ONE)
        time = (-1,) if has_time else ()
        unit = () if engine.model.pcm is not None else manifest.input.shape  # PCM: samples, not frames
        given = (
            Place("text", "BYTES", (1,))
            if is_text
            else Place(manifest.step.input, DATATYPES[manifest.input.dtype], (*time, *unit))
        )
        emissions = () if is_single else (-1,)
        output = Place(manifest.step.output, "FP32", (*emissions, *manifest.output.shape))
        return Signature(
            given, (output,), config.max_rows_per_run, is_text, has_time, is_single, False, not manifest.is_whole_only
        )

    @property
    def batch(self) -> list[int]:
        """The batch axis of a shape: one axis of any size, or none."""
        return [-1] if self.max_batch_size else []

    def gives_all(self, given: Parameters) -> bool:
        """Every emission is answered, and not only the last."""
        return not self.is_single if given.all_emissions is None else given.all_emissions

    def metadata(self, name: str, versions: list[int]) -> Any:
        """ModelMetadataResponse."""
        made = schema.ModelMetadataResponse(name=name, versions=[str(v) for v in versions], platform=PLATFORM)
        for places, target in (((self.input,), made.inputs), (self.outputs, made.outputs)):
            for place in places:
                target.add(name=place.name, datatype=place.datatype, shape=[*self.batch, *place.dims])
        return made

    def config(self, engine: Engine, config: Config) -> Any:
        """ModelConfig: sequence batching with its state for models that keep sessions, decoupled for generators."""
        manifest = engine.manifest
        made = schema.ModelConfig(
            name=engine.name,
            platform=PLATFORM,
            backend=PLATFORM,
            max_batch_size=self.max_batch_size,
            default_model_filename=manifest.step.file,
        )
        made.input.add(name=self.input.name, data_type=_TYPES[self.input.datatype], dims=self.input.dims)
        for place in self.outputs:
            made.output.add(name=place.name, data_type=_TYPES[place.datatype], dims=place.dims)
        if self.is_decoupled:
            made.model_transaction_policy.decoupled = True
        elif self.keeps_sessions:
            batching = made.sequence_batching
            batching.max_sequence_idle_microseconds = int(config.max_idle_s * 1e6)
            batching.oldest.max_candidate_sequences = min(config.max_sessions, 0x7FFFFFFF)
            state = batching.state.add(
                input_name=manifest.step.state_input,
                output_name=manifest.step.state_output,
                data_type="TYPE_FP32",
                dims=[manifest.state_size],
            )
            if not manifest.start_file:
                state.initial_state.add(data_type="TYPE_FP32", dims=[manifest.state_size], zero_data=True, name="zero")
        else:
            made.dynamic_batching.max_queue_delay_microseconds = 0
        made.parameters["mode"].string_value = Mode.Name(manifest.mode).lower().replace("_", "-")
        made.parameters["architecture"].string_value = manifest.architecture
        return made
