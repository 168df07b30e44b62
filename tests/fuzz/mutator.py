"""Mutated messages: sound ones, spoilt by field or by byte."""

from __future__ import annotations

import random
from typing import Any

from cellar_proto.v1.inference_pb2 import CloseSessions, Frame, OpenSessions, StreamRequest
from cellar_proto.v1.tensor_pb2 import Tensor

NUMBERS = (0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 256, 4096, 16_385, 2**31 - 1, 2**31, 2**32 - 1)
LARGE = (2**62, 2**63 - 1, 2**63, 2**64 - 1)
BYTES = (
    b"",
    b"\0" * 8,
    b"\xff" * 8,
    b"\x00\x00\xc0\x7f" * 2,
    b"\x00\x00\x80\x7f" * 2,
    b"1234",
    b"\xed\xa0\x80",
    bytes(64),
)


class Mutator:
    """Makes StreamRequests for a stream with these open handles; what is drawn follows from the seed."""

    def __init__(self, seed: int, handles: list[int], model: str, positions: dict[int, int] | None = None) -> None:
        self.rng = random.Random(seed)
        self.handles = handles
        self.model = model
        self.positions = {} if positions is None else positions  # where sessions stand, as answers say it

    def message(self) -> bytes:
        """One message, serialised: in one of three only its bytes are spoilt, in one of ten nothing is."""
        rng = self.rng
        request = self._sound()
        kind = rng.random()
        if kind < 0.6:
            for _ in range(rng.randint(1, 3)):
                self._spoil(getattr(request, request.WhichOneof("kind")))
        data = request.SerializeToString()
        if kind >= 0.6 and kind < 0.9:
            data = self._spoil_bytes(bytearray(data))
        return data

    def _sound(self) -> StreamRequest:
        rng = self.rng
        kind = rng.random()
        if kind < 0.03:
            return StreamRequest(open=OpenSessions(frame_id=1, model=self.model, count=rng.randint(1, 3)))
        if kind < 0.05:
            return StreamRequest(close=CloseSessions(frame_id=1, handles=[rng.randrange(2**64)]))
        chosen = rng.sample(self.handles, rng.choice([1, 1, 2, 3, min(40, len(self.handles))]))
        frame = Frame(
            frame_id=rng.randrange(1000), handles=chosen, positions=[self.positions.get(h, 0) for h in chosen]
        )
        lengths = [rng.randint(1, 3)] * len(chosen)
        frame.lengths.extend(lengths if rng.random() < 0.5 else lengths[:1])
        frame.inputs.CopyFrom(Tensor(data=bytes(8 * sum(lengths))))
        if rng.random() < 0.3:
            frame.timeouts_ms.append(rng.choice(NUMBERS))
        return StreamRequest(frame=frame)

    def _spoil(self, message: Any) -> None:
        """Changes one field, of whatever type it is."""
        rng = self.rng
        field = rng.choice(message.DESCRIPTOR.fields)
        if field.message_type is not None:
            if not field.is_repeated:
                self._spoil(getattr(message, field.name))
            return
        if field.is_repeated:
            values = getattr(message, field.name)
            action = rng.random()
            if action < 0.3 and len(values):
                del values[rng.randrange(len(values)) :]
            elif action < 0.6 and len(values):
                values[rng.randrange(len(values))] = self._value(field)
            else:
                values.extend([self._value(field)] * rng.choice((1, 2, 5, 50)))
            return
        setattr(message, field.name, self._value(field))

    def _value(self, field: Any) -> Any:
        rng = self.rng
        if field.cpp_type == field.CPPTYPE_STRING:
            return (
                rng.choice(BYTES)
                if field.type == field.TYPE_BYTES
                else rng.choice(("", "x", "\0", "é" * 40, "counter"))
            )
        if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
            return rng.choice((0.0, -1.0, 1e300, float("nan"), float("inf")))
        if field.cpp_type == field.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if field.cpp_type in (field.CPPTYPE_UINT64, field.CPPTYPE_INT64):
            return rng.choice(NUMBERS + LARGE[:2] if field.cpp_type == field.CPPTYPE_INT64 else NUMBERS + LARGE)
        most = 2**31 - 1 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM) else 2**32 - 1
        return min(rng.choice(NUMBERS), most)

    def _spoil_bytes(self, data: bytearray) -> bytes:
        rng = self.rng
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            action = rng.random()
            if action < 0.5 and at < len(data):
                data[at] = rng.randrange(256)
            elif action < 0.7:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            elif action < 0.85:
                del data[at : at + rng.randint(1, 8)]
            else:
                del data[at:]
        return bytes(data)
