"""The server that generates in static batches says what Cellar says, a batch after the other."""

import queue
import sys

import numpy as np
import pytest
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1.sampling_pb2 import FINISH_END, FINISH_MAX_STEPS, Sampling

from benchmarks import samples
from benchmarks.generating import Generation, Generator, Worker
from benchmarks.serving import ZOO, served, started
from benchmarks.wire import Wire

MODEL = ZOO / "describe" / "1"


def generations(generator, count, max_steps=60):
    return [
        Generation(*generator.codec.read(act.encode()), Sampling(temperature=1, seed=seed), max_steps, None)
        for seed, act in enumerate(samples.acts()[:count])
    ]


def words(emitted):
    """Ids of each generation by its seed, and how it ended."""
    ids, ends = {}, {}
    for generation, emission in emitted:
        ids.setdefault(generation.sampling.seed, []).extend(emission.ids)
        ends[generation.sampling.seed] = emission.finish
    return ids, ends


def test_a_batch_says_what_each_says_alone():
    emitted = []
    generator = Generator(MODEL, emitted.extend)
    generator.run(generations(generator, 8))
    together, ends = words(emitted)
    assert set(ends.values()) == {FINISH_END}
    for each in generations(generator, 8):
        emitted.clear()
        generator.run([each])
        assert words(emitted)[0][each.sampling.seed] == together[each.sampling.seed]


def test_it_ends_at_its_most_steps_and_where_its_caller_is_gone():
    emitted = []
    generator = Generator(MODEL, emitted.extend)
    batch = generations(generator, 2, max_steps=2)
    batch[1].is_dropped = True
    generator.run(batch)
    ids, ends = words(emitted)
    assert (len(ids[0]), ends[0]) == (2, FINISH_MAX_STEPS)
    assert len(ids[1]) == 1


def test_who_comes_while_a_batch_runs_waits_for_its_end():
    delivered = queue.SimpleQueue()
    generator = Generator(MODEL, delivered.put)
    worker = Worker(generator, max_rows=2)
    for each in generations(generator, 5):
        worker.waiting.put(each)
    ended, begun = [], {}
    while len(ended) < 5:
        for generation, emission in delivered.get(timeout=60):
            begun.setdefault(generation.sampling.seed, len(ended))
            if emission.finish:
                ended.append(generation.sampling.seed)
    # nobody begins while more than one of an earlier batch still runs
    for number, seed in enumerate(sorted(begun)):
        assert begun[seed] >= number - 1


def test_a_failed_batch_fails_alone():
    delivered = queue.SimpleQueue()
    generator = Generator(MODEL, delivered.put)
    worker = Worker(generator, max_rows=1)
    bad, good = generations(generator, 2)
    bad.condition = np.zeros(3, np.float32)
    worker.waiting.put(bad)
    worker.waiting.put(good)
    [(_, emission)] = delivered.get(timeout=60)
    assert emission.error
    assert delivered.get(timeout=60)[0][0] is good


@pytest.mark.slow
def test_its_server_answers_as_cellar_does():
    static = [sys.executable, "-m", "benchmarks.generating", "--models", str(ZOO), "--max-rows", "16"]
    said = []
    with served(ZOO) as ours, started(static) as theirs:
        for server in (ours, theirs):
            with Wire(server.address) as wire:
                answers = []
                for seed, act in enumerate(samples.acts()[:6]):
                    sampling = Sampling(temperature=1, seed=seed)
                    request = pb.GenerateRequest(model="describe", text=act.encode(), sampling=sampling)
                    messages = list(wire.inference.Generate(request, timeout=60))
                    text = b"".join(message.text for message in messages)
                    ids = [id for message in messages for id in message.ids]
                    answers.append((text, ids, messages[-1].finish))
                said.append(answers)
    assert said[0] == said[1]
