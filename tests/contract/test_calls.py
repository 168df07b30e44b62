"""Unary calls: whole sequences, sessions, models, health, reflection; and the table of reasons."""

from __future__ import annotations

import re
from pathlib import Path

import cellar_proto.v1
import grpc
import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import GenerateRequest, PredictRequest, StepRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.models_pb2 import GetModelRequest, ListModelsRequest
from cellar_proto.v1.models_pb2_grpc import ModelsStub
from cellar_proto.v1.reason_pb2 import Error, Reason
from cellar_proto.v1.sessions_pb2 import (
    CloseSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    OpenSessionRequest,
)
from cellar_proto.v1.sessions_pb2_grpc import SessionsStub
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.front.status import CODES, ERROR_KEY
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub


def refusal(error: grpc.RpcError) -> Error:
    (value,) = [value for key, value in error.trailing_metadata() if key == ERROR_KEY]  # type: ignore[attr-defined]
    found = Error.FromString(value)
    assert error.code() == CODES[found.reason]  # type: ignore[attr-defined]
    return found


def test_every_reason_has_the_code_that_the_contract_states() -> None:
    text = (Path(cellar_proto.v1.__file__).parent / "reason.proto").read_text()
    stated = {name: code for code, name in re.findall(r"\[(\w+)\]\n\s+(\w+) = \d+;", text)}
    names = {name for name, number in Reason.items() if number}
    assert set(stated) == names == {Reason.Name(number) for number in CODES}
    for name, code in stated.items():
        assert CODES[Reason.Value(name)].name == code


def test_whole_sequences(channel: grpc.Channel) -> None:
    data = np.ones((6, 2), np.float32).tobytes()
    request = PredictRequest(model="counter", lengths=[1, 3, 2], inputs=Tensor(data=data))
    response = InferenceStub(channel).Predict(request, timeout=10)
    assert list(response.lengths) == [1, 3, 2]
    assert np.frombuffer(response.outputs.data, np.float32)[::2].tolist() == [1, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (PredictRequest(model="nothing"), "MODEL_NOT_FOUND"),
        (PredictRequest(model="counter", version=2), "MODEL_NOT_FOUND"),
        (PredictRequest(model="broken"), "MODEL_BROKEN"),
        (PredictRequest(model="counter"), "EMPTY_INPUT"),
        (PredictRequest(model="counter", inputs=Tensor(data=b"123456789")), "SHAPE_MISMATCH"),
        (PredictRequest(model="counter", lengths=[3], inputs=Tensor(data=bytes(8))), "SHAPE_MISMATCH"),
        (PredictRequest(model="counter", inputs=Tensor(data=bytes(8), dtype=4)), "DTYPE_MISMATCH"),
    ],
)
def test_predicting_what_cannot_be(channel: grpc.Channel, request_: PredictRequest, reason: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        InferenceStub(channel).Predict(request_, timeout=10)
    assert Reason.Name(refusal(caught.value).reason) == reason


def test_one_bad_sequence_among_good_ones(channel: grpc.Channel) -> None:
    values = np.ones((3, 2), np.float32)
    values[1] = np.nan
    request = PredictRequest(model="counter", lengths=[1, 1, 0, 1], inputs=Tensor(data=values.tobytes()))
    response = InferenceStub(channel).Predict(request, timeout=10)
    assert list(response.lengths) == [1, 0, 0, 1]
    assert [(e.row, Reason.Name(e.error.reason)) for e in response.errors] == [
        (1, "NON_FINITE_INPUT"),
        (2, "EMPTY_INPUT"),
    ]


def test_generating_with_a_model_that_cannot(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(InferenceStub(channel).Generate(GenerateRequest(model="counter"), timeout=10))
    assert Reason.Name(refusal(caught.value).reason) == "UNSUPPORTED"


def test_the_life_of_a_session(channel: grpc.Channel) -> None:
    stub = SessionsStub(channel)
    opened = stub.OpenSession(OpenSessionRequest(model="counter", request_token=b"t"), timeout=10)
    assert re.fullmatch(r"[0-9a-f]{32}", opened.id)
    assert opened.max_idle_s == 900
    forked = stub.ForkSession(ForkSessionRequest(id=opened.id, new_id="a fork"), timeout=10)
    assert forked.id == "a fork"
    listed = stub.ListSessions(ListSessionsRequest(model="counter", page_size=1), timeout=10)
    assert len(listed.sessions) == 1
    assert listed.next_page_token == listed.sessions[0].id
    for id in (opened.id, "a fork"):
        first = stub.CloseSession(CloseSessionRequest(id=id, request_token=b"x"), timeout=10)
        assert stub.CloseSession(CloseSessionRequest(id=id, request_token=b"x"), timeout=10) == first
    for id, reason in ((opened.id, "SESSION_CLOSED"), ("never", "SESSION_NOT_FOUND")):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetSession(GetSessionRequest(id=id), timeout=10)
        assert Reason.Name(refusal(caught.value).reason) == reason


@pytest.mark.parametrize("id", ["x" * 129, "käse", "line\nbreak"])
def test_ids_that_are_none(channel: grpc.Channel, id: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        SessionsStub(channel).OpenSession(OpenSessionRequest(model="counter", id=id), timeout=10)
    assert Reason.Name(refusal(caught.value).reason) == "INVALID_REQUEST"


def test_models_and_their_health(channel: grpc.Channel) -> None:
    models = ModelsStub(channel).ListModels(ListModelsRequest(), timeout=10).models
    assert [(m.manifest.name, Reason.Name(m.error.reason) if m.HasField("error") else "") for m in models] == [
        ("broken", "MODEL_BROKEN"),
        ("counter", ""),
        ("other", ""),
    ]
    assert ModelsStub(channel).GetModel(GetModelRequest(name="counter"), timeout=10).manifest.state_size == 2
    serving = {
        name: HealthStub(channel).Check(HealthCheckRequest(service=name), timeout=10).status
        for name in ("", "cellar.v1.Inference", "cellar.v1/counter", "cellar.v1/broken")
    }
    assert list(serving.values()) == [HealthCheckResponse.SERVING] * 3 + [HealthCheckResponse.NOT_SERVING]


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    requests = iter([ServerReflectionRequest(list_services="")])
    (response,) = ServerReflectionStub(channel).ServerReflectionInfo(requests, timeout=10)
    names = {service.name for service in response.list_services_response.service}
    assert {"cellar.v1.Inference", "cellar.v1.Sessions", "cellar.v1.Models", "grpc.health.v1.Health"} <= names


def test_a_step_without_a_stream(channel: grpc.Channel) -> None:
    inference, sessions = InferenceStub(channel), SessionsStub(channel)
    sessions.OpenSession(OpenSessionRequest(model="counter", id="unary"))
    one = Tensor(data=np.array([1, 2], "<f4").tobytes())

    def step(**options: object) -> tuple[int, list[float]]:
        answer = inference.Step(StepRequest(session_id="unary", **options), timeout=5)  # type: ignore[arg-type]
        return answer.position, np.frombuffer(answer.outputs.data, "<f4").tolist()

    assert step(inputs=one) == (1, [1, 2])
    assert step(inputs=one, position=1) == (2, [2, 4])
    assert step(inputs=one, position=1) == (2, [2, 4])  # sent again: the stored answer
    two = Tensor(shape=[2, 2], data=np.array([1, 0, 1, 0], "<f4").tobytes())
    assert step(inputs=two, priority="BULK") == (4, [3, 4, 4, 4])
    for bad, reason in (
        (StepRequest(session_id="nobody", inputs=one), Reason.SESSION_NOT_FOUND),
        (StepRequest(session_id="unary", inputs=one, position=9), Reason.POSITION_GAP),
        (StepRequest(session_id="unary", inputs=two, length=3), Reason.SHAPE_MISMATCH),
        (StepRequest(session_id="unary"), Reason.EMPTY_INPUT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            inference.Step(bad)
        assert refusal(caught.value).reason == reason
    assert sessions.CloseSession(CloseSessionRequest(id="unary")).position == 4
