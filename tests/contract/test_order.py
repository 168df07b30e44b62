"""What comes before what, whatever carries it: chunks of a stream, and what is told when a server stops."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import StreamRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_server.config import Config
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter


def _frame(handle: int, position: int) -> StreamRequest:
    frame = StreamRequest().frame
    frame.frame_id, frame.handles[:], frame.positions[:], frame.lengths[:] = position + 2, [handle], [position], [1]
    frame.inputs.data = np.ones(2, np.float32).tobytes()
    return StreamRequest(frame=frame)


def test_the_first_chunks_of_a_stream_keep_their_order(tmp_path: Path, transport: str) -> None:
    write_counter(tmp_path / "zoo")
    running = Running(Config(listen="127.0.0.1:0", models=tmp_path / "zoo", transport=transport, drain_s=5))
    opening = StreamRequest()
    opening.open.frame_id, opening.open.model, opening.open.count = 1, "counter", 1
    try:
        with grpc.insecure_channel(running.address) as channel:
            for _ in range(60):
                requests: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
                call = InferenceStub(channel).Stream(iter(requests.get, None), timeout=20)
                requests.put(opening)
                handle = next(call).opened.handles[0]
                for position in range(4):
                    requests.put(_frame(handle, position))
                seen = []
                while len(seen) < 4:
                    answer = next(call).answer
                    assert not answer.errors
                    seen += answer.positions
                assert seen == [1, 2, 3, 4]
                requests.put(None)
                call.cancel()
    finally:
        running.stop()


def test_readiness_is_false_before_the_engines_stop_and_streams_are_told_after_the_store_let_go(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_counter(tmp_path / "zoo")
    store = {"store": f"sqlite:///{tmp_path}/s.db", "drain_s": 5}
    running = Running(Config(listen="127.0.0.1:0", models=tmp_path / "zoo", transport=transport, **store))
    server, told = running.server, []
    (engine,) = server.registry.engines.values()

    def noting(owner: Any, name: str, what: str) -> None:
        before = getattr(owner, name)

        def noted(*arguments: Any) -> Any:
            told.append((what, *arguments[:2]) if what == "health" else (what,))
            return before(*arguments)

        monkeypatch.setattr(owner, name, noted)

    noting(server.health, "set", "health")
    noting(engine, "stop", "engine")
    noting(server._store, "close", "store")
    noting(server.registry.streams, "end_all", "streams")
    running.stop()
    order = [each[0] for each in told]
    assert told[0] == ("health", "", HealthCheckResponse.NOT_SERVING)
    assert order.index("engine") > max(i for i, what in enumerate(order) if what == "health")
    assert order[-3:] == ["engine", "store", "streams"]
