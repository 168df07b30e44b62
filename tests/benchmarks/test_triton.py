"""Triton's arm without Triton: its model beside the batch of one, its repository, and deaths of its process."""

import importlib.util
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import network
from benchmarks.ceiling import Ceiling
from benchmarks.generator import parse
from benchmarks.triton import server as triton_server
from benchmarks.triton.arm import TritonArm
from benchmarks.triton.server import MODEL, DeathError, Triton, batchings, configs, write_repository
from tests.benchmarks.test_generator import LINE

START, END = 1, 2

# says what tritonserver says, and waits for its end
TRITONSERVER = """#!/usr/bin/env python3
import signal, subprocess, sys
subprocess.Popen(["sleep", "120"])  # an interpreter of the backend, which outlives a death
port = next(word.partition("=")[2] for word in sys.argv if word.startswith("--grpc-port="))
print(f'"Started GRPCInferenceService at 127.0.0.1:{port}"', file=sys.stderr, flush=True)
signal.pause()
"""


class Request:
    """One request of a sequence, as the Python backend hands it over."""

    def __init__(self, sequence, flags, x):
        self.sequence, self.flagged, self.x = sequence, flags, x

    def correlation_id(self):
        return self.sequence

    def flags(self):
        return self.flagged


@pytest.fixture
def model(monkeypatch, tmp_path):
    """The file that Triton runs, over a fake of the module that Triton gives it."""
    backend = SimpleNamespace(
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
        Tensor=lambda name, values: values,
        InferenceResponse=lambda tensors: tensors[0],
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request.x),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    spec = importlib.util.spec_from_file_location("triton_model", MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write_repository(tmp_path / "repository")
    made = module.TritonPythonModel()
    made.initialize({"model_repository": str(tmp_path / "repository" / "oldest-0"), "model_version": "1"})
    return made


def test_sequences_that_share_runs_have_the_bits_of_the_batch_of_one(model, tmp_path):
    ceiling = Ceiling(tmp_path / "repository" / "oldest-0" / "1" / "bare.onnx")
    rng = np.random.default_rng(2)
    sequences = rng.standard_normal((3, 12, network.WIDTH), np.float32)
    got = [[] for _ in sequences]
    for at in range(0, 12, 3):
        flags = START if at == 0 else END if at == 9 else 0
        requests = [Request(7 + i, flags, x[None, at : at + 3]) for i, x in enumerate(sequences)]
        # a slot of the direct strategy without a request
        requests.insert(1, Request(0, 0, requests[0].x))
        answers = model.execute(requests)
        del answers[1]
        for emissions, answer in zip(got, answers, strict=True):
            emissions.append(answer[0])
    for emissions, sequence in zip(got, sequences, strict=True):
        assert np.array_equal(np.concatenate(emissions), ceiling.alone(sequence))
    assert not model.rows
    again = model.execute([Request(7, START, sequences[0][None])])[0][0]
    assert np.array_equal(again, ceiling.alone(sequences[0]))


def test_every_strategy_and_delay_is_in_the_repository(tmp_path):
    write_repository(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(configs())
    for name in configs():
        assert (tmp_path / name / "1" / "model.py").read_text() == MODEL.read_text()
    assert "minimum_slot_utilization: 1.0" in configs()["direct-64-100"]
    assert "max_batch_size: 256" in configs()["direct-256-0"]
    assert batchings(1) == batchings(64) != batchings(65) == batchings(256)
    assert len(batchings(64)) == 6


@pytest.fixture
def venv(tmp_path):
    """As the wheel lies in a virtual environment, with a fake server."""
    home = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "pytriton" / "tritonserver"
    for folder in ("bin", "backends/python", "python_backend_stubs/3.11"):
        (home / folder).mkdir(parents=True)
    (home / "python_backend_stubs" / "3.11" / "triton_python_backend_stub").write_text("")
    (home / "bin" / "tritonserver").write_text(TRITONSERVER)
    (home / "bin" / "tritonserver").chmod(0o755)
    return tmp_path / "venv"


def test_where_the_wheel_is_not_installed_it_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nvidia-pytriton is not installed"):
        Triton(tmp_path, tmp_path)


def test_a_death_is_counted_and_another_process_runs(venv, tmp_path, monkeypatch):
    monkeypatch.setattr(triton_server, "MAX_DEATHS", 1)
    with Triton(venv, tmp_path / "made") as server:
        first = server.served
        assert not server.has_died({})
        first.process.send_signal(signal.SIGSEGV)
        assert server.has_died({"lost": 64})
        assert (server.num_deaths, first.process.poll()) == (1, -signal.SIGSEGV)
        assert server.served.process.poll() is None
        assert server.cpu_s() >= 0
        server.served.process.send_signal(signal.SIGSEGV)
        with pytest.raises(DeathError):
            server.has_died({"lost": 1})
    assert server.served.is_gone()


class Loads:
    """Opens loads whose windows are told beforehand."""

    def __init__(self, windows):
        self.windows, self.num_opened, self.num_closed = list(windows), 0, 0

    def open(self):
        self.num_opened += 1
        return self

    def window(self, *arguments):
        return self.windows.pop(0)

    def close(self):
        self.num_closed += 1


class Mortal:
    """A server that has died where a window has errors."""

    num_deaths = 0

    def cpu_s(self):
        return 0.0

    def has_died(self, errors):
        self.num_deaths += "lost" in errors
        return "lost" in errors


def test_a_window_that_a_death_ended_is_measured_again_on_a_new_load():
    whole = replace(parse(LINE), errors={})
    loads, server = Loads([whole, replace(whole, messages=1, errors={"lost": 3}), whole]), Mortal()
    arm = TritonArm(load=loads.open(), server=server, reopen=loads.open, num_deaths=0)
    assert [arm.window(1.0), arm.window(1.0)] == [whole, whole]
    assert (loads.num_opened, loads.num_closed, arm.num_deaths) == (2, 1, 1)
    assert arm.num_messages == 2 * whole.messages
