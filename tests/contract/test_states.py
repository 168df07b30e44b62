"""Exported and imported sessions, over the wire."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sessions_pb2 import (
    CloseSessionRequest,
    ExportSessionRequest,
    ImportSessionRequest,
    OpenSessionRequest,
)
from cellar_proto.v1.sessions_pb2_grpc import SessionsStub
from cellar_proto.v1.state_pb2 import SessionState

from tests.contract.test_calls import refusal


@pytest.fixture
def sessions(channel: grpc.Channel) -> SessionsStub:
    return SessionsStub(channel)


@pytest.fixture
def state(sessions: SessionsStub) -> SessionState:
    """The state of a new session, which is closed again."""
    id = uuid.uuid4().hex
    sessions.OpenSession(OpenSessionRequest(model="counter", id=id))
    state = sessions.ExportSession(ExportSessionRequest(id=id))
    sessions.CloseSession(CloseSessionRequest(id=id))
    return state


def test_a_state_describes_itself(state: SessionState) -> None:
    assert (state.format, state.model, state.version, state.position) == (1, "counter", 1, 0)
    assert [(part.name, part.offset, list(part.shape)) for part in state.parts] == [("sums", 0, [2])]
    assert np.frombuffer(state.row, "<f4").tolist() == [0, 0]
    assert len(state.model_sha256) == 32


def _nan(state: SessionState) -> None:
    state.row = np.array([np.nan, 0], "<f4").tobytes()


def _answer(state: SessionState) -> None:
    state.answers.add(start=0, length=1, emissions=2, outputs=bytes(4))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: setattr(s, "format", 9), "format 9"),
        (lambda s: setattr(s, "version", 0), "names no model version"),
        (lambda s: setattr(s, "model_sha256", bytes(32)), "other weights"),
        (lambda s: setattr(s, "row", bytes(4)), "row is 4 bytes; the model's is 8"),
        (lambda s: setattr(s.parts[0], "name", "product"), "parts"),
        (lambda s: setattr(s, "tail", b"x"), "keeps no tail"),
        (lambda s: setattr(s, "position", 1 << 63), "position"),
        (_nan, "NaN"),
        (_answer, "stored answer"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(
    sessions: SessionsStub, state: SessionState, change: Callable[[SessionState], None], what: str
) -> None:
    change(state)
    with pytest.raises(grpc.RpcError, match=what) as caught:
        sessions.ImportSession(ImportSessionRequest(state=state, id="x"))
    assert refusal(caught.value).reason == Reason.STATE_INCOMPATIBLE


def test_the_same_token_makes_a_second_import_the_same_import(sessions: SessionsStub, state: SessionState) -> None:
    request = ImportSessionRequest(state=state, id="imported-once", request_token=b"1" * 16)
    first, again = sessions.ImportSession(request), sessions.ImportSession(request)
    assert (first.id, first.position) == (again.id, again.position) == ("imported-once", 0)
    with pytest.raises(grpc.RpcError) as caught:
        sessions.ImportSession(ImportSessionRequest(state=state, id="imported-once", request_token=b"2" * 16))
    assert refusal(caught.value).reason == Reason.SESSION_EXISTS
    sessions.CloseSession(CloseSessionRequest(id="imported-once"))


def test_an_unknown_session_cannot_be_exported(sessions: SessionsStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        sessions.ExportSession(ExportSessionRequest(id="nobody"))
    assert refusal(caught.value).reason == Reason.SESSION_NOT_FOUND
