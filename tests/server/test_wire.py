"""Messages read as rows without protobuf: what protobuf reads, or nothing."""

from __future__ import annotations

import pytest
from cellar_proto.v1 import inference_pb2 as pb
from cellar_server.transport import wire
from hypothesis import given
from hypothesis import strategies as st


def _frame(size: int = 8) -> bytes:
    made = pb.StreamRequest(frame=pb.Frame(frame_id=300, handles=[7], positions=[2], lengths=[1]))
    made.frame.inputs.data = b"\x1a" * size
    return made.SerializeToString()


def test_a_torn_message_is_no_row_and_spoils_none() -> None:
    whole = _frame(24)
    torn = b"\x12" + bytes([whole[1] - 4]) + whole[2:-4]
    for _ in range(2):
        assert wire.read_frame(torn) is None
        row = wire.read_frame(whole)
        assert row is not None
        assert (row.frame_id, row.handle, row.position, row.length, row.data) == (300, 7, 2, 1, b"\x1a" * 24)


def test_what_is_kept_of_callers_bytes_is_bounded() -> None:
    for timeout in range(1, 500):
        step = pb.StepRequest(session_id="one", timeout_ms=timeout)
        step.inputs.data = bytes(8)
        found = wire.read_step(step.SerializeToString())
        assert found is not None
        assert (found[0].timeout_ms, found[1]) == (timeout, b"one")
    assert all(len(behind) <= 64 for _, behind in wire._known.values())
    assert wire.read_step(step.SerializeToString() + b"\x7a\x40" + bytes(64)) is None  # an unknown field


def test_an_id_that_is_no_text_spoils_no_other() -> None:
    bad = b"\x0a\x01\xff\x1a\x0a\x1a\x08" + bytes(8)
    good = b"\x0a\x01a" + bad[3:]
    assert wire.read_step(bad) is not None
    assert wire.read_step(good) is not None


@given(st.integers(0, 63).flatmap(lambda bits: st.integers(0, (1 << bits) - 1)), st.integers(1, 3))
def test_numbers_of_any_size_are_what_protobuf_writes(number: int, length: int) -> None:
    made = pb.StreamRequest(frame=pb.Frame(frame_id=number, handles=[7], positions=[number]))
    made.frame.inputs.data = bytes(8)
    row = wire.read_frame(made.SerializeToString())
    assert row is not None
    assert (row.frame_id, row.position) == (number, number)
    values = bytes(4 * 2 * length)
    answer = pb.Answer(frame_ids=[number], handles=[7], starts=[number], positions=[number], lengths=[length])
    answer.outputs.dtype = 1
    answer.outputs.shape.extend([length, 2])
    answer.outputs.data = values
    written = wire.answer(number, (7).to_bytes(8, "little"), number, number, wire.outputs(length, (2,)), values, b"")
    assert written == pb.StreamResponse(answer=answer).SerializeToString()


@pytest.mark.parametrize("long", [b"\x81\x80\x00", b"\x81\x00", b"\x81\x80\x80\x00", b"\x81" * 4 + b"\x00"])
def test_a_number_longer_than_it_must_be_is_left_to_protobuf(long: bytes) -> None:
    whole = _frame()
    plain = b"\x08\xac\x02"
    assert whole[2:5] == plain
    body = b"\x08" + long + whole[5:]
    assert pb.StreamRequest.FromString(b"\x12" + bytes([len(body)]) + body).frame.frame_id
    assert wire.read_frame(b"\x12" + bytes([len(body)]) + body) is None
