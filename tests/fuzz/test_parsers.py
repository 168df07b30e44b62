"""What callers and folders send is parsed or refused with a Reason: seconds of what `make fuzz` does longer."""

from __future__ import annotations

import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.state_pb2 import SessionState
from cellar_server.front.oip import schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutator import Mutator
from tests.fuzz.targets import seeds

SEEDS = seeds()
MESSAGES = {
    "frames": Frame,
    "states": SessionState,
    "generation_states": SessionState,
    "oip": schema.ModelInferRequest,
}


@pytest.mark.parametrize("name", SEEDS)
def test_sound_inputs_are_taken(name: str) -> None:
    target, inputs = SEEDS[name]
    for data in inputs:
        target(data)


@pytest.mark.parametrize("name", SEEDS)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 4), data=st.binary(max_size=60), is_raw=st.booleans())
@settings(max_examples=120)
def test_spoilt_bytes_are_parsed_or_refused(name: str, seed: int, count: int, data: bytes, is_raw: bool) -> None:
    target, inputs = SEEDS[name]
    mutator = Mutator(seed, [], "counter")
    if not is_raw:
        data = inputs[seed % len(inputs)]
        for _ in range(count):
            data = mutator._spoil_bytes(bytearray(data))
    target(data)


@pytest.mark.parametrize("name", MESSAGES)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
@settings(max_examples=150)
def test_spoilt_fields_are_parsed_or_refused(name: str, seed: int, count: int) -> None:
    target, inputs = SEEDS[name]
    mutator = Mutator(seed, [], "counter")
    message = MESSAGES[name].FromString(inputs[seed % len(inputs)])
    for _ in range(count):
        mutator._spoil(message)
    target(message.SerializeToString())
