"""A stream of sequences whose answers are not read is read no further; what it sent before its end is answered."""

from __future__ import annotations

import queue
import time
from typing import Any

import grpc
import numpy as np
from cellar_server.front.oip import schema

from tests.contract.conftest import Running


class Caller:
    """A ModelStreamInfer written and read by hand: one sequence of the counter."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=schema.ModelInferRequest.SerializeToString,
            response_deserializer=schema.ModelStreamInferResponse.FromString,
        )(iter(self._outbox.get, None), timeout=60)

    def send(self, sequence: int, number: int, steps: int, *, is_start: bool = False) -> None:
        request = schema.ModelInferRequest(model_name="counter", id=str(number))
        request.parameters["sequence_id"].int64_param = sequence
        request.parameters["sequence_start"].bool_param = is_start
        request.inputs.add(name="x", datatype="FP32", shape=[1, steps, 2])
        request.raw_input_contents.append(np.ones(2 * steps, np.float32).tobytes())
        self._outbox.put(request)

    def receive(self) -> Any:
        answer = next(self.call)
        assert not answer.error_message
        return answer.infer_response

    def end(self) -> None:
        self._outbox.put(None)


def chunks(running: Running) -> int:
    return running.server.registry.find("counter").counters().chunks


def test_a_stream_whose_answers_are_not_read_is_read_no_further(running_oip: Running) -> None:
    with grpc.insecure_channel(running_oip.address) as channel, grpc.insecure_channel(running_oip.address) as another:
        caller, other = Caller(channel), Caller(another)
        caller.send(7001, 0, 1, is_start=True)
        other.send(7002, 0, 1, is_start=True)
        for each in (caller, other):
            assert each.receive().id == "0"
        before = chunks(running_oip)
        for number in range(1, 301):  # 64 kB of answer each: more than the connection and the stream hold
            caller.send(7001, number, 8000)
        seen = -1
        while seen != (seen := chunks(running_oip) - before):
            time.sleep(0.3)
        assert seen < 300
        other.send(7002, 1, 1)
        assert other.receive().id == "1"  # others go on
        caller.end()
        assert [int(caller.receive().id) for _ in range(300)] == list(range(1, 301))
        assert next(caller.call, None) is None
        other.end()
        assert next(other.call, None) is None


def test_what_came_before_the_end_is_answered(running_oip: Running) -> None:
    with grpc.insecure_channel(running_oip.address) as channel:
        caller = Caller(channel)
        for sequence in range(40):
            caller.send(7100 + sequence, sequence, 1, is_start=True)
        started = {caller.receive().id for _ in range(40)}
        assert started == {str(sequence) for sequence in range(40)}
        for sequence in range(40):
            caller.send(7100 + sequence, 100 + sequence, 1 + sequence % 3)
        caller.end()
        answers = {response.infer_response.id: response.infer_response for response in caller.call}
        assert set(answers) == {str(100 + sequence) for sequence in range(40)}
        for sequence in range(40):
            values = np.frombuffer(answers[str(100 + sequence)].raw_output_contents[0], "<f4")
            assert values[-1] == 2 + sequence % 3
        assert caller.call.code() is grpc.StatusCode.OK
