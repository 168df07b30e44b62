"""The native load generator: what its lines say, and that it drives a server."""

import sys

import numpy as np
import pytest

from benchmarks import generator, network
from benchmarks.generator import Generator, GeneratorError, parse
from benchmarks.serving import served, started
from benchmarks.wire import Wire

LINE = (
    '{"seconds":2,"asked_s":1.5,"sent":9,"messages":8,"steps":16,"in_time_messages":7,"in_time_steps":14,"cpu_s":0.1,'
    '"latency_ms":{"count":8,"p50":1,"p90":2,"p99":3,"p999":4,"max":5},"gap_ms":{"count":0},"late_ms":{"count":0},'
    '"errors":{"22":1,"grpc-14":2}}'
)


def test_a_window_is_read_with_its_reasons_by_name():
    window = parse(LINE)
    assert (window.steps_per_s, window.messages_per_s) == (8.0, 4.0)
    assert (window.latency.p99, window.latency.max, window.gap.count) == (3, 5, 0)
    assert window.errors == {"OVERLOADED": 1, "grpc-14": 2}


@pytest.mark.parametrize("line", ["", '{"error":"a stream ended"}'])
def test_an_end_of_the_generator_is_an_error(line):
    with pytest.raises(GeneratorError, match="ended"):
        parse(line)


def test_a_line_of_another_shape_is_refused():
    with pytest.raises(TypeError):
        parse(LINE.replace("cpu_s", "cpu"))


@pytest.fixture(scope="module")
def program():
    if why := generator.missing():
        pytest.skip(why)
    return generator.build()


@pytest.mark.slow
def test_it_drives_every_kind_of_load_and_counts_what_the_server_counts(program, tmp_path):
    network.write_entry(tmp_path / "zoo")
    arrivals = np.stack([np.linspace(0, 0.2, 40), np.arange(1, 41)], axis=1)
    with Generator(program) as made, served(tmp_path / "zoo") as server:
        loads = {
            "stream": made.open("stream", server.address, streams=3, sessions=2, steps=4, depth=2, channels=2),
            "timed": made.open("stream", server.address, streams=3, period_s=0.05),
            "unary": made.open("unary", server.address, sessions=3, steps=2),
            "predict": made.open("predict", server.address),
            "churn": made.open("churn", server.address, streams=2, sessions=5),
        }
        windows = {name: load.window(0.3) for name, load in loads.items() if name != "predict"}
        windows["predict"] = loads["predict"].window(0.3, arrivals, tmp_path / "saved")
        for name, window in windows.items():
            assert not window.errors, name
            assert window.latency.count == window.messages == window.sent > 0, name
            assert 0 < window.latency.p50 <= window.latency.p99 <= window.latency.max, name
        steps = {name: window.steps / window.messages for name, window in windows.items()}
        assert (steps["stream"], steps["timed"], steps["unary"], steps["churn"]) == (8, 1, 2, 5)
        assert windows["timed"].sent == windows["timed"].late.count == 3 * 6
        assert windows["predict"].steps == arrivals[:, 1].sum()
        saved = np.fromfile(tmp_path / "saved", np.float32).reshape(-1, 2)
        assert sorted(saved[:, 0]) == list(range(1, 41))
        assert (saved[:, 1] > 0).all()
        for load in loads.values():
            load.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "load"), [("raw", "stream"), ("parsed", "stream"), ("raw", "unary"), ("sync", "unary")]
)
def test_it_drives_the_echo_servers(program, kind, load):
    with Generator(program) as made, started([sys.executable, "-m", "benchmarks.echo", kind]) as echo:
        options = {"streams": 2, "sessions": 3} if load == "stream" else {"sessions": 3}
        window = made.open(load, echo.address, opens=0, **options).window(0.2)
        assert not window.errors
        assert window.latency.count == window.messages == window.sent > 0


@pytest.mark.slow
def test_a_refusal_is_counted_by_its_reason(program, tmp_path):
    network.write_entry(tmp_path / "zoo")
    with Generator(program) as made, served(tmp_path / "zoo") as server:
        load = made.open("predict", server.address, model="no-such-model")
        window = load.window(0.1, np.array([[0.0, 3.0], [0.01, 4.0]]))
        assert window.errors == {"MODEL_NOT_FOUND": 2}
        assert window.messages == 0


@pytest.mark.slow
def test_what_is_not_answered_in_time_is_cancelled_and_said(program, tmp_path):
    network.write_entry(tmp_path / "zoo")
    with Generator(program) as made, served(tmp_path / "zoo") as server:
        load = made.open("predict", server.address)
        window = load.window(0.5, np.tile([0.0, 330.0], (400, 1)), drain_s=0)
        assert window.errors["undrained"] > 0
        assert window.messages + sum(window.errors.values()) == window.sent > 0
        assert load.window(0.1, np.array([[0.0, 3.0]])).messages == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "sequences"),
    [
        ("oip-stream", {"streams": 3}, 3),
        ("oip-stream", {"streams": 2, "sessions": 3}, 6),
        ("oip-unary", {"sessions": 4}, 4),
    ],
)
def test_it_speaks_the_open_inference_protocol(program, tmp_path, kind, options, sequences):
    network.write_entry(tmp_path / "zoo")
    with Generator(program) as made, served(tmp_path / "zoo") as server:
        load = made.open(kind, server.address, steps=4, **options)
        for _ in range(2):
            window = load.window(0.2)
            assert not window.errors, window.said
            assert window.latency.count == window.messages == window.sent > sequences
            assert window.steps == 4 * window.messages
        load.close()
        # its sequences have ended
        with Wire(server.address) as wire:
            assert wire.counters(network.NAME).sessions_live == 0
        wrong = made.open(kind, server.address, model="no-such-model", **options).window(0.1)
        assert sum(wrong.errors.values()) == sequences == wrong.sent
        assert "MODEL_NOT_FOUND" in wrong.said
        lost = made.open(kind, server.address, **options)
        lost.begin(20)
        server.process.kill()
        assert sum(lost.end().errors.values()) == sequences
