"""What is read without protobuf is what protobuf reads, and what is written without it is what it would write."""

from __future__ import annotations

from typing import Any

import pytest
from cellar_server.front.oip import schema, wire
from hypothesis import given
from hypothesis import strategies as st


def request(id: str = "7", sequence: Any = 5, position: int | None = None, **more: Any) -> Any:
    made = schema.ModelInferRequest(model_name="m", id=id, **more)
    put(made, "sequence_id", sequence)
    put(made, "position", position)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 1, 2])
    made.raw_input_contents.append(b"12345678")
    return made


def put(made: Any, key: str, value: Any) -> None:
    """A parameter of a value's own type."""
    if value is not None:
        field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(made.parameters[key], field, value)


def held(found: wire.Found) -> tuple[str, Any, int | None, bytes]:
    position = wire.whole(found.position) if found.position else None
    return found.id[2:].decode(), wire.number_or_text(found.sequence), position, found.values


@given(
    st.text("abc", max_size=9),
    st.one_of(st.integers(1, (1 << 63) - 1), st.text("xyz~", min_size=1, max_size=40)),
    st.one_of(st.none(), st.integers(1, (1 << 63) - 1)),
    st.binary(max_size=300),
)
def test_a_request_is_taken_apart(id: str, sequence: Any, position: int | None, values: bytes) -> None:
    made = request(id, sequence, position)
    made.raw_input_contents[0] = values
    found = wire.find(made.SerializeToString())
    assert found is not None
    assert held(found) == (id, sequence, position, values)
    # what is around tells of nothing that was taken out
    other = wire.find(request("abc", 77, None if position is None else 77).SerializeToString())
    assert other is not None
    if len(values) == 8 and id and position is None:
        assert other.around == found.around


@pytest.mark.parametrize(
    "made",
    [
        request(sequence=None),
        request(id="é"),
        request(model_version="1" * 200),
        schema.ModelInferRequest(model_name="m"),
        schema.ModelInferRequest(),
    ],
)
def test_what_is_odd_is_left_alone(made: Any) -> None:
    assert wire.find(made.SerializeToString()) is None


@pytest.mark.parametrize("sequence", [0, -1, "", "é", True, 1.5])
def test_what_is_no_sequence_has_no_name(sequence: Any) -> None:
    found = wire.find(request(sequence=sequence).SerializeToString())
    assert found is None or wire.number_or_text(found.sequence) is None


def test_two_of_a_field_are_left_alone() -> None:
    whole = request().SerializeToString()
    for again in (b"\x1a\x019", b"\x0a\x01m", request().SerializeToString()):
        assert wire.find(again + whole) is None
    twice = schema.ModelInferRequest()
    put(twice, "sequence_id", 6)
    at = whole.index(b"\x22")
    assert wire.find(whole[:at] + twice.SerializeToString() + whole[at:]) is None
    several = request()
    several.raw_input_contents.append(b"more")
    assert wire.find(several.SerializeToString()) is None


@given(st.data())
def test_bytes_that_are_torn_or_changed_are_read_as_protobuf_does_or_not_at_all(data: st.DataObject) -> None:
    whole = bytearray(request("ab", data.draw(st.sampled_from([5, 1 << 40, "name"])), 3).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    message = bytes(whole[: data.draw(st.integers(0, len(whole)))]) if data.draw(st.booleans()) else bytes(whole)
    found = wire.find(message)
    if found is None or wire.number_or_text(found.sequence) is None:
        return
    position = wire.whole(found.position) if found.position else None
    if found.position and position is None:
        return
    try:
        read = schema.ModelInferRequest.FromString(message)
    except Exception:
        return  # what is around is learnt by protobuf, which refuses it
    key = read.parameters["sequence_id"].WhichOneof("parameter_choice")
    assert held(found) == (
        read.id,
        getattr(read.parameters["sequence_id"], key),
        read.parameters["position"].int64_param if "position" in read.parameters else None,
        read.raw_input_contents[0],
    )
