"""Prometheus metrics: read from the engines' own counts when somebody asks, on a port and threads of their own."""

from __future__ import annotations

import logging
import platform
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cellar_proto.v1.reason_pb2 import Reason
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cellar_server import __version__
from cellar_server.engine import Engine
from cellar_server.front.registry import Registry
from cellar_server.front.status import FAILED_CALLS
from cellar_server.runtime.base import StartupError
from cellar_server.sessions.histogram import Histogram

log = logging.getLogger("cellar_server")

# Seconds that a scrape may keep the server waiting for its next byte.
PATIENCE_S = 10.0
# Upper bounds of the bins of rows per run.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


# Reasons that have a series before they happen: of one that begins with its first count no increase is seen.
ALWAYS = (
    Reason.OVERLOADED,
    Reason.DEADLINE_EXCEEDED,
    Reason.RUN_FAILED,
    Reason.INTERNAL,
    Reason.STORE_FAILED,
    Reason.LEASE_LOST,
    Reason.UNAUTHENTICATED,
)


@dataclass(frozen=True)
class Meter:
    """One metric. kind: counter, gauge, histogram, or reasons (a counter with the label `reason`); name: as it is
    scraped, of a histogram without its ending; read: its value, where it is told of each model."""

    name: str
    kind: str
    help: str
    read: Callable[[Engine], Any] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        by_model = ("model", "version") if self.read is not None else ()
        return (*by_model, "reason") if self.kind == "reasons" else by_model


MODEL_METERS = (
    Meter("cellar_model_healthy", "gauge", "1: the model serves; 0: it is broken, stalled or its engine has died",
          lambda e: float(e.is_healthy)),
    Meter("cellar_sessions_live", "gauge", "Open sessions", lambda e: e.num_sessions),
    Meter("cellar_sessions_limit", "gauge", "Sessions that may be open (max_sessions)", lambda e: e.max_sessions),
    Meter("cellar_sessions_opened_total", "counter", "Sessions opened, forks and imports among them",
          lambda e: e.counts().sessions_opened),
    Meter("cellar_sessions_ended_total", "reasons", "Sessions that ended, by what their id answers from then on",
          lambda e: e.counts().sessions_ended),
    Meter("cellar_sessions_spilled_total", "counter", "Sessions put into the store to make room for others",
          lambda e: e.counts().sessions_spilled),
    Meter("cellar_sessions_taken_up_total", "counter", "Sessions taken up from the store",
          lambda e: e.counts().sessions_taken_up),
    Meter("cellar_sessions_handed_over_total", "counter", "Sessions given to another server",
          lambda e: e.counts().sessions_handed_over),
    Meter("cellar_steps_total", "counter", "Steps computed for callers", lambda e: e.counts().steps),
    Meter("cellar_twin_steps_total", "counter", "Rows run a second time beside a lone row, for its bits",
          lambda e: e.twin_steps),
    Meter("cellar_runs_total", "counter", "Calls of the runtime on the step graph", lambda e: e.counts().runs),
    Meter("cellar_prime_runs_total", "counter", "Calls of the runtime on the prime graph",
          lambda e: e.counts().prime_runs),
    Meter("cellar_run_rows", "histogram", "Rows in a run", lambda e: _rows_per_run(e.counts().runs_by_rows)),
    Meter("cellar_run_seconds", "histogram", "Seconds that a run took", lambda e: e.counts().run),
    Meter("cellar_queue_seconds", "histogram",
          "Seconds that a chunk or sequence waited from its admission to its first run", lambda e: e.counts().queue),
    Meter("cellar_queue_rows", "gauge", "Rows of work that wait or run", lambda e: e.queue_rows),
    Meter("cellar_queue_rows_limit", "gauge", "Rows of work that may wait or run (max_queue_rows)",
          lambda e: e.max_queue_rows),
    Meter("cellar_generations_live", "gauge", "Generations that run or wait for their reader",
          lambda e: e.num_generations),
    Meter("cellar_generations_total", "counter", "Generations begun", lambda e: e.counts().generations),
    Meter("cellar_first_emission_seconds", "histogram",
          "Seconds from the admission of a generation's call to its first new emission",
          lambda e: e.counts().first_emission),
    Meter("cellar_chunks_total", "counter", "Chunks taken in", lambda e: e.counts().chunks),
    Meter("cellar_chunks_replayed_total", "counter", "Chunks sent again and answered without being computed again",
          lambda e: e.counts().chunks_replayed),
    Meter("cellar_chunks_deduplicated_total", "counter",
          "Of the replayed chunks those that were sent again while they waited or ran",
          lambda e: e.counts().chunks_joined),
    Meter("cellar_chunks_failed_total", "counter", "Chunks refused or failed", lambda e: e.counts().chunks_failed),
    Meter("cellar_refusals_total", "reasons", "Rows, calls and sessions that the model's engine refused or failed",
          lambda e: e.counts().refusals),
    Meter("cellar_stored_answer_bytes", "gauge", "Bytes of answers kept for retries", lambda e: e.stored_answer_bytes),
    Meter("cellar_store_lag_seconds", "gauge", "Age of the oldest change that is not in the store",
          lambda e: e.store_lag_s),
    Meter("cellar_sessions_unstored", "gauge", "Sessions and ends of sessions that are not in the store as they stand",
          lambda e: e.num_unstored),
    Meter("cellar_stored_sessions_total", "counter", "Sessions and ends written to the store",
          lambda e: e.counts().stored_sessions),
    Meter("cellar_store_failures_total", "counter", "Writes to the store that failed",
          lambda e: e.counts().store_failures),
)  # fmt: skip
SERVER_METERS = (
    Meter(
        "cellar_ready",
        "gauge",
        "1: it serves, every engine is healthy and no model is saturated",
    ),
    Meter("cellar_streams_open", "gauge", "Streams of frames that are open"),
    Meter("cellar_streams_opened_total", "counter", "Streams of frames that were opened"),
    Meter("cellar_failed_calls_total", "reasons", "Calls that ended with an error, of this process"),
    Meter("cellar_build_info", "gauge", "1; the labels say which versions run"),
)

WITH_ALWAYS = ("cellar_refusals_total", "cellar_failed_calls_total")


class _Rows(Histogram):
    """Runs by their rows as a histogram."""

    def __init__(self, runs_by_rows: Mapping[int, int]) -> None:
        super().__init__(ROWS)
        for rows, runs in runs_by_rows.items():
            place = next((i for i, bound in enumerate(ROWS) if rows <= bound), len(ROWS))
            self.bins[place] += runs
            self.total += rows * runs


def _rows_per_run(runs_by_rows: dict[int, int]) -> Histogram:
    return _Rows(runs_by_rows.copy())


class ServerCollector(Collector):
    """Everything that a server knows of itself, as it stands when it is asked; reads only, from any thread."""

    def __init__(self, registry: Registry, is_serving: Callable[[], bool]) -> None:
        self._registry = registry
        self._is_serving = is_serving
        names = ("grpcio", "onnxruntime", "numpy", "protobuf")
        self._build = {"version": __version__, "python": platform.python_version()}
        self._build |= {name: version(name) for name in names}

    def collect(self) -> Iterator[Metric]:
        engines = self._registry.engines.copy()
        broken = [key for key in self._registry.broken.copy() if key not in engines]
        for meter in MODEL_METERS:
            assert meter.read is not None
            family = _family(meter)
            for (name, number), engine in sorted(engines.items()):
                _add(family, meter, (name, str(number)), meter.read(engine))
            if meter.name == "cellar_model_healthy":
                for name, number in sorted(broken):
                    family.add_metric((name, str(number)), 0.0)
            yield family
        is_ready = self._is_serving() and all(engine.is_healthy for engine in engines.values())
        values = (
            float(is_ready),
            self._registry.streams_open,
            self._registry.streams_opened,
            FAILED_CALLS,
        )
        for meter, value in zip(SERVER_METERS, values, strict=False):
            family = _family(meter)
            _add(family, meter, (), value)
            yield family
        yield InfoMetricFamily("cellar_build", SERVER_METERS[-1].help, value=self._build)


def _family(meter: Meter) -> Any:
    kinds = {
        "counter": CounterMetricFamily,
        "reasons": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    return kinds[meter.kind](meter.name, meter.help, labels=meter.labels)


def _add(family: Any, meter: Meter, labels: tuple[str, ...], value: Any) -> None:
    if meter.kind == "reasons":
        counted = value.copy()
        if meter.name in WITH_ALWAYS:
            counted = dict.fromkeys(ALWAYS, 0) | counted
        for reason, count in sorted(counted.items()):
            family.add_metric((*labels, Reason.Name(reason)), count)
    elif meter.kind == "histogram":
        counts = value.cumulative()
        buckets = [(str(float(bound)), count) for bound, count in zip(value.bounds, counts[:-1], strict=True)]
        family.add_metric(labels, [*buckets, ("+Inf", counts[-1])], value.total)
    else:
        family.add_metric(labels, value)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no events."""


class _Http(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without asking a name server for the host's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes in the middle is no event either."""
        log.debug("a scrape failed", exc_info=True)


class _Http6(_Http):
    address_family = socket.AF_INET6


class MetricsServer:
    """Answers GET /metrics at HOST:PORT, which Config has checked to be one, from its making to `close`. `port` is the
    one that was taken for 0. StartupError where it cannot listen."""

    def __init__(self, listen: str, collector: Collector) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        try:
            kind = _Http6 if ":" in host else _Http
            self._http = make_server(host, int(port), make_wsgi_app(registry), kind, _Handler)
        except OSError as error:
            raise StartupError(f"metrics_listen: cannot listen on {listen}: {error.strerror}") from None
        self.port = int(self._http.server_port)
        self._thread = threading.Thread(target=self._http.serve_forever, name=f"metrics-{self.port}", daemon=True)
        self._thread.start()
        log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, self.port)

    def close(self) -> None:
        """Ends it; the port is free afterwards."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
