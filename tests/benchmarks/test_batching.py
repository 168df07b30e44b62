"""The three schedulers that Cellar is measured beside give right answers, and batch as they say."""

import queue
import sys

import numpy as np
import pytest
from cellar_proto.v1 import inference_pb2 as pb

from benchmarks import network
from benchmarks.batching import BUCKETS, Buckets, Job, Network, Waiting, Worker, policy, start_state
from benchmarks.ceiling import Ceiling
from benchmarks.serving import started
from benchmarks.wire import Wire

LENGTHS = [5, 1, 40, 5, 7, 330, 2, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("networks")
    network.write_ceiling(made / "bare.onnx")
    network.write_ceiling(made / "padded.onnx", is_padded=True)
    return made


def jobs(lengths=LENGTHS):
    rng = np.random.default_rng(4)
    return [Job(rng.standard_normal((n, network.WIDTH), np.float32), start_state()) for n in lengths]


def lengths_of(taken):
    return [len(job.x) for job in taken]


def drained(chosen, waiting):
    for job in waiting:
        chosen.add(job)
    runs = []
    while len(chosen):
        runs.append(lengths_of(chosen.take()))
    assert chosen.take() == []
    return runs


def test_the_batch_of_one_runs_each_alone_in_order():
    assert drained(policy("one", 64), jobs()) == [[n] for n in LENGTHS]


def test_padded_batches_take_what_waits_in_order():
    assert drained(Waiting(3), jobs()) == [LENGTHS[:3], LENGTHS[3:6], LENGTHS[6:]]


def test_buckets_take_similar_lengths_and_the_oldest_first():
    assert drained(Buckets(2), jobs()) == [[5, 5], [1, 2], [40], [7, 5], [330]]


def test_every_length_has_a_bucket():
    assert sorted(drained(Buckets(8), jobs([1, 384, 385, 9999]))) == [[1], [384], [385, 9999]]
    assert tuple(sorted(BUCKETS)) == BUCKETS


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [1]])
def test_a_padded_run_answers_each_as_if_alone_and_keeps_its_state(folder, lengths):
    runner, waiting = Network(folder / "bare.onnx", folder / "padded.onnx"), jobs(lengths)
    runner.run(waiting)
    ceiling = Ceiling(folder / "bare.onnx")
    for job in waiting:
        np.testing.assert_allclose(job.outputs, ceiling.alone(job.x), rtol=0, atol=1e-6)
    following = [Job(job.x, job.state) for job in waiting]
    runner.run(following)
    for job in following:
        twice = ceiling.alone(np.concatenate([job.x, job.x]))[len(job.x) :]
        np.testing.assert_allclose(job.outputs, twice, rtol=0, atol=1e-6)


def test_a_worker_runs_batches_skips_what_was_given_up_and_survives_a_failure():
    delivered, runs = queue.SimpleQueue(), []

    def run(batch):
        runs.append(lengths_of(batch))
        if any(len(job.x) == 7 for job in batch):
            raise ValueError("no sevens")

    worker = Worker(run, policy("one", 1), delivered.put)
    waiting = jobs([3, 4, 7, 5])
    waiting[1].is_dropped = lambda: True
    worker.put(waiting)
    done = [delivered.get(timeout=20) for _ in range(3)]
    worker.stop()
    assert runs == [[3], [7], [5]]
    assert [type(job.error) for batch in done for job in batch] == [type(None), ValueError, type(None)]


@pytest.mark.parametrize("scheduler", ["one", "padded", "buckets"])
def test_a_server_answers_sequences_and_streams(folder, scheduler):
    ceiling, sequences = Ceiling(folder / "bare.onnx"), [job.x for job in jobs()]
    words = [sys.executable, "-m", "benchmarks.comparison", scheduler, "--models", str(folder), "--max-rows", "4"]
    with started(words) as server, Wire(server.address) as wire:
        request = predict_request(sequences)
        answer = wire.inference.Predict(request, timeout=20)
        assert list(answer.lengths) == LENGTHS
        got = np.frombuffer(answer.outputs.data, "<f4").reshape(-1, network.WIDTH)
        wanted = np.concatenate([ceiling.alone(sequence) for sequence in sequences])
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
        for at, part in enumerate(stream_answers(wire, sequences[:2], cuts=3)):
            np.testing.assert_allclose(part, ceiling.alone(np.tile(sequences[at], (3, 1))), rtol=0, atol=1e-6)


def predict_request(sequences):
    request = pb.PredictRequest(model=network.NAME, lengths=[len(sequence) for sequence in sequences])
    request.inputs.data = np.concatenate(sequences).tobytes()
    return request


def stream_answers(wire, sequences, cuts):
    """Each sequence `cuts` times over on a stream of its own session, all in the same frames."""
    requests = queue.SimpleQueue()
    replies = wire.inference.Stream(iter(requests.get, None), timeout=20)
    requests.put(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model=network.NAME, count=len(sequences))))
    handles = list(next(replies).opened.handles)
    lengths = [len(sequence) for sequence in sequences]
    parts = [[] for _ in sequences]
    for cut in range(cuts):
        frame = pb.Frame(frame_id=2 + cut, handles=handles, positions=[cut * n for n in lengths], lengths=lengths)
        frame.inputs.data = np.concatenate(sequences).tobytes()
        requests.put(pb.StreamRequest(frame=frame))
        answer = next(replies).answer
        assert list(answer.positions) == [(cut + 1) * n for n in lengths]
        values = np.frombuffer(answer.outputs.data, "<f4").reshape(-1, network.WIDTH)
        for part, value in zip(parts, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
            part.append(value)
    requests.put(None)
    return [np.concatenate(part) for part in parts]
