"""Sessions of a real server end at their own limits."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator

import grpc
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sessions_pb2 import CloseSessionRequest, GetSessionRequest, OpenSessionRequest, SessionOptions
from cellar_proto.v1.sessions_pb2_grpc import SessionsStub

from tests.contract.test_calls import refusal


class Ends(logging.Handler):
    """The ids of sessions that the log says have expired."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: set[str] = set()
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        if "expired" in record.getMessage():
            with self._changed:
                self._ids.add(record.session)  # type: ignore[attr-defined]
                self._changed.notify_all()

    def wait_for(self, id: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: id in self._ids, 20), "it does not expire"


@pytest.fixture
def ends() -> Iterator[Ends]:
    log, handler = logging.getLogger("cellar_server"), Ends()
    before = log.level
    log.addHandler(handler)
    log.setLevel("INFO")
    yield handler
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.mark.parametrize("limits", [{"max_idle_s": 0.2}, {"max_age_s": 0.2}])
def test_a_session_ends_at_its_limit_beside_one_that_does_not(
    channel: grpc.Channel, ends: Ends, limits: dict[str, float]
) -> None:
    sessions = SessionsStub(channel)
    far = uuid.uuid4().hex
    sessions.OpenSession(OpenSessionRequest(model="counter", id=far, options=SessionOptions(max_idle_s=1e6)))
    for id in (uuid.uuid4().hex, uuid.uuid4().hex):
        sessions.OpenSession(OpenSessionRequest(model="counter", id=id, options=SessionOptions(**limits)))
        ends.wait_for(id)
        with pytest.raises(grpc.RpcError) as caught:
            sessions.GetSession(GetSessionRequest(id=id))
        assert refusal(caught.value).reason == Reason.SESSION_EXPIRED
    assert sessions.GetSession(GetSessionRequest(id=far)).id == far
    sessions.CloseSession(CloseSessionRequest(id=far))
