"""Lines for machines and lines for people: what they say, and what they never say."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import grpc
import pytest
from cellar_proto.v1.inference_pb2 import PredictRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config, from_args
from cellar_server.log import FIELDS, Console, JsonLines, about, set_up
from cellar_server.runtime.base import StartupError

from tests.fakes.bench import Bench
from tests.fakes.runtime import CounterRuntime, counter_model

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the server logs in JSON while the test runs."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("cellar_server")
    before = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    yield out
    root.removeHandler(handler)
    root.setLevel(before)


def test_a_fault_says_its_model_and_the_id_that_the_caller_got(lines: io.StringIO) -> None:
    bench = Bench(counter_model(CounterRuntime(fail_on=frozenset({0}))))
    (handle,) = bench.open()
    bench.send([handle], [0], [[41.5]])
    bench.run()
    (error,) = bench.take().values()
    (line,) = [json.loads(each) for each in lines.getvalue().splitlines()]
    assert (line["model"], line["version"], line["error_id"]) == ("counter", 1, error.error_id)
    assert (line["level"], line["logger"]) == ("error", "cellar_server.sessions")
    assert "a secret of the runtime" in line["exception"]
    assert "41.5" not in lines.getvalue()


def test_a_session_that_expires_is_named_with_its_caller_apart(lines: io.StringIO) -> None:
    bench = Bench(counter_model())
    bench.sessions.open(["anna\x1fmine"], max_idle_s=5.0)
    bench.clock.now += 6
    bench.sessions.expire()
    (line,) = [json.loads(each) for each in lines.getvalue().splitlines()]
    assert (line["session"], line["caller"], line["model"]) == ("mine", "anna", "counter")


def test_a_refused_call_is_a_line_of_debug_with_its_request(running, lines: io.StringIO) -> None:  # type: ignore[no-untyped-def]
    metadata = (
        ("x-request-id", "order-7"),
        ("traceparent", TRACEPARENT),
        ("authorization", "Bearer hush-hush"),
    )
    data = Tensor(data=b"\x2a" * 8)
    with grpc.insecure_channel(running.address) as channel:
        for model in ("nowhere", "counter"):
            with pytest.raises(grpc.RpcError):
                InferenceStub(channel).Predict(
                    PredictRequest(model=model, lengths=[3], inputs=data), metadata=metadata, timeout=10
                )
    said = [json.loads(each) for each in lines.getvalue().splitlines()]
    assert [(line["reason"], line["request"], line["trace"]) for line in said] == [
        ("MODEL_NOT_FOUND", "order-7", TRACEPARENT.split("-")[1]),
        ("SHAPE_MISMATCH", "order-7", TRACEPARENT.split("-")[1]),
    ]
    assert "hush" not in lines.getvalue()


def test_a_request_id_that_is_long_or_odd_is_not_taken_over(running, lines: io.StringIO) -> None:  # type: ignore[no-untyped-def]
    with grpc.insecure_channel(running.address) as channel:
        for odd in ("x" * 129, "two words"):
            with pytest.raises(grpc.RpcError):
                InferenceStub(channel).Predict(
                    PredictRequest(model="nowhere", lengths=[1]),
                    metadata=(("x-request-id", odd), ("traceparent", "00-zz")),
                    timeout=10,
                )
    for line in lines.getvalue().splitlines():
        assert not {"request", "trace"} & json.loads(line).keys()


def test_the_console_names_caller_and_request_behind_the_message() -> None:
    record = logging.LogRecord("cellar_server", logging.INFO, "", 0, "model %s", ("m",), None)
    record.__dict__.update(about(model="m", caller="anna", request="r1"))
    assert Console().format(record).endswith("INFO    model m (caller=anna request=r1)")


def test_fields_are_those_that_are_declared() -> None:
    assert about(session="", model="m", version=0) == {"model": "m", "version": 0}
    with pytest.raises(TypeError, match="payload"):
        about(payload=b"")
    # none may hide what every record has
    assert not set(FIELDS) & logging.LogRecord("", 0, "", 0, "", (), None).__dict__.keys()


def test_the_format_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert from_args(["--log-format", "json"], {}).log_format == "json"
    with pytest.raises(StartupError, match="not one of console, json"):
        Config(log_format="xml")
    loggers = [logging.getLogger(name) for name in ("cellar_server", "opentelemetry")]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    try:
        set_up("warning", "json")
        logging.getLogger("cellar_server.x").info("unheard")
        logging.getLogger("cellar_server.x").warning("heard")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["message"] == "heard"
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
