"""A scrape of a real server, read by Prometheus' own parser."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import StepRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config
from cellar_server.front.metrics import MODEL_METERS, SERVER_METERS, MetricsServer, ServerCollector
from cellar_server.runtime.base import StartupError
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Nothing(Collector):
    def collect(self) -> Iterator[object]:  # type: ignore[override]
        return iter(())


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    """A server that shows its metrics, with a broken model and a store."""
    folder = tmp_path_factory.mktemp("seen")
    zoo = folder / "zoo"
    write_counter(zoo)
    (write_counter(zoo, "broken") / "model.onnx").write_bytes(b"not a graph")
    running = Running(
        Config(
            listen="127.0.0.1:0",
            transport=transport,
            models=zoo,
            metrics_listen=":0",
            store=f"sqlite:///{folder / 'sessions.db'}",
            drain_s=2,
        )
    )
    yield running
    running.stop()


@pytest.fixture
def port(seen: Running) -> int:
    assert seen.server.metrics is not None
    return seen.server.metrics.port


def test_a_scrape_counts_what_was_done(seen: Running, port: int) -> None:
    ours = {"model": "counter", "version": "1"}
    before = scrape(port)
    with cellar_client.Client(seen.address) as client:
        with client.stream("counter") as stream:
            stream.open(4)
            for _ in range(5):
                stream.step(np.ones((4, 2), np.float32))
            during = scrape(port)
            stream.close_sessions()
        with pytest.raises(cellar_client.CellarError):
            client.predict("counter", np.full((1, 2), np.nan, np.float32))
        with pytest.raises(cellar_client.CellarError):
            client.predict("nowhere", np.ones((1, 2), np.float32))
    after = scrape(port)

    def grown(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after[key] - before.get(key, 0.0)

    assert value(during, "cellar_sessions_live", **ours) == 4
    assert value(during, "cellar_streams_open") == 1
    assert value(after, "cellar_sessions_live", **ours) == 0
    assert grown("cellar_sessions_opened_total", **ours) == 4
    assert grown("cellar_sessions_ended_total", reason="SESSION_CLOSED", **ours) == 4
    assert grown("cellar_steps_total", **ours) == grown("cellar_chunks_total", **ours) == 20
    assert grown("cellar_streams_opened_total") == 1
    assert grown("cellar_refusals_total", reason="NON_FINITE_INPUT", **ours) == 1
    assert grown("cellar_failed_calls_total", reason="MODEL_NOT_FOUND") == 1
    # each of the three counts of runs is the same, and so are rows
    runs = grown("cellar_runs_total", **ours)
    assert grown("cellar_run_rows_count", **ours) == grown("cellar_run_seconds_count", **ours) == runs >= 5
    assert grown("cellar_run_rows_sum", **ours) == grown("cellar_queue_seconds_count", **ours) == 20
    assert 0 < grown("cellar_run_seconds_sum", **ours) < 10
    assert value(after, "cellar_model_healthy", **ours) == 1
    assert value(after, "cellar_model_healthy", model="broken", version="1") == 0
    assert value(after, "cellar_ready") == 1
    assert value(after, "process_resident_memory_bytes") > 1e6


def test_rows_that_run_at_once_are_timed_and_counted(seen: Running, port: int) -> None:
    """One a message: they take the short way, and wait for nothing."""
    ours = {"model": "counter", "version": "1"}
    before = scrape(port)
    with cellar_client.Client(seen.address) as client, client.stream("counter") as stream:
        stream.open(1)
        for _ in range(6):
            stream.step(np.ones((1, 2), np.float32))
        after = scrape(port)

    def grown(name: str) -> float:
        return value(after, name, **ours) - value(before, name, **ours)

    assert grown("cellar_steps_total") == grown("cellar_runs_total") == 6
    assert grown("cellar_run_rows_count") == grown("cellar_run_rows_sum") == 6
    assert grown("cellar_run_seconds_count") == grown("cellar_queue_seconds_count") == 6
    assert grown("cellar_run_seconds_sum") > 0
    assert grown("cellar_queue_seconds_sum") == 0


def test_buckets_rise_to_the_count(seen: Running, port: int) -> None:
    with cellar_client.Client(seen.address) as client:
        client.predict("counter", np.ones((3, 2), np.float32))
    samples = scrape(port)
    for name in ("cellar_run_rows", "cellar_run_seconds", "cellar_queue_seconds", "cellar_first_emission_seconds"):
        bins = sorted(
            (float(dict(labels)["le"]), count)
            for (each, labels), count in samples.items()
            if each == f"{name}_bucket" and ("model", "counter") in labels
        )
        counts = [count for _, count in bins]
        assert counts == sorted(counts)
        assert bins[-1][0] == float("inf")
        assert counts[-1] == value(samples, f"{name}_count", model="counter", version="1")


def test_every_metric_that_is_declared_is_there_and_no_other(seen: Running, port: int) -> None:
    with cellar_client.Client(seen.address) as client, client.session("counter"):
        pass
    found = {name for name, _ in scrape(port) if name.startswith("cellar_")}
    declared = set()
    for meter in (*MODEL_METERS, *SERVER_METERS):
        endings = ("_bucket", "_count", "_sum") if meter.kind == "histogram" else ("",)
        declared |= {meter.name + ending for ending in endings}
    reasons = {meter.name for meter in (*MODEL_METERS, *SERVER_METERS) if meter.kind == "reasons"}
    assert found <= declared
    assert declared - found <= reasons  # a reason has a series once it happened


def test_a_scrape_is_answered_while_the_event_loop_is_busy(seen: Running, port: int) -> None:
    gate = threading.Event()
    entered = threading.Event()

    def block() -> None:
        entered.set()
        gate.wait(20)

    seen.loop.call_soon_threadsafe(block)
    assert entered.wait(10)
    try:
        assert value(scrape(port), "cellar_ready") == 1
    finally:
        gate.set()


def test_a_scraper_that_says_nothing_holds_up_nobody(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET /met")
        assert value(scrape(port), "cellar_ready") == 1


def test_the_port_is_on_the_loopback_and_free_again_at_the_end(tmp_path: Path) -> None:
    write_counter(tmp_path)
    running = Running(Config(listen="127.0.0.1:0", models=tmp_path, metrics_listen=":0", drain_s=1))
    metrics = running.server.metrics
    assert metrics is not None
    with pytest.raises(StartupError, match="cannot listen"):
        MetricsServer(f"127.0.0.1:{metrics.port}", Nothing())
    running.stop()
    assert not [
        thread for thread in threading.enumerate() if thread.name == f"metrics-{metrics.port}" and thread.is_alive()
    ]
    with pytest.raises(urllib.error.URLError):
        scrape(metrics.port)


def test_metrics_are_off_unless_asked_for(running: Running) -> None:
    assert running.server.metrics is None


@pytest.mark.parametrize("listen", ["9090", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(StartupError, match=r"metrics_listen.*not HOST:PORT"):
        Config(metrics_listen=listen)


def test_a_store_that_lags_is_seen(seen: Running, port: int) -> None:
    """What changed is not in the store at once, and is there soon."""
    ours = {"model": "counter", "version": "1"}
    stored = value(scrape(port), "cellar_stored_sessions_total", **ours)
    with cellar_client.Client(seen.address) as client, client.session("counter") as session:
        session.step(np.ones(2, np.float32))
        deadline = time.monotonic() + 20
        while value(samples := scrape(port), "cellar_sessions_unstored", **ours):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert value(samples, "cellar_store_lag_seconds", **ours) == 0
    assert value(samples, "cellar_stored_sessions_total", **ours) > stored
    assert value(samples, "cellar_store_failures_total", **ours) == 0


def test_the_collector_reads_while_engines_count(seen: Running) -> None:
    """A collector that reads while numbers change raises nothing and never shows a count that falls."""
    collector = ServerCollector(seen.server.registry, lambda: True)
    stop = threading.Event()

    def work() -> None:
        with cellar_client.Client(seen.address) as client, client.stream("counter") as stream:
            stream.open(8)
            while not stop.is_set():
                stream.step(np.ones((8, 2), np.float32))

    worker = threading.Thread(target=work)
    worker.start()
    last = -1.0
    try:
        for _ in range(50):
            families = {family.name: family for family in collector.collect()}
            (steps,) = [s.value for s in families["cellar_steps"].samples if s.labels["model"] == "counter"]
            assert steps >= last
            last = steps
    finally:
        stop.set()
        worker.join(20)
    assert last > 0


def test_reasons_are_names(seen: Running, port: int) -> None:
    names = {dict(labels)["reason"] for (_, labels) in scrape(port) if "reason" in dict(labels)}
    assert names <= set(Reason.keys())


@pytest.mark.parametrize("transport", ["aio", "auto"])
def test_a_step_that_fails_is_a_failed_call_and_a_refusal(tmp_path: Path, transport: str) -> None:
    """Whichever transport moves it: `auto` is the native one where it is built."""
    write_counter(tmp_path)
    ours = {"model": "counter", "version": "1", "reason": "POSITION_GAP"}
    running = Running(
        Config(listen="127.0.0.1:0", models=tmp_path, metrics_listen=":0", transport=transport, drain_s=1)
    )
    assert running.server.metrics is not None
    port = running.server.metrics.port
    before = scrape(port)
    with cellar_client.Client(running.address) as client, client.session("counter") as session:
        request = StepRequest(session_id=session.id, position=9, inputs=Tensor(data=b"\0" * 8), length=1)
        with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError):
            InferenceStub(channel).Step(request, timeout=10)
        after = scrape(port)
    failed = "cellar_failed_calls_total", frozenset({("reason", "POSITION_GAP")})
    assert after[failed] - before.get(failed, 0) == 1
    assert value(after, "cellar_refusals_total", **ours) == 1
    running.stop()
