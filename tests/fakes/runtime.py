"""Runtimes whose hidden state is a counter: any mix-up of sessions is a wrong number."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.manifest_pb2 import (
    MANY_TO_MANY_ALIGNED,
    MANY_TO_MANY_ENCODER_DECODER,
    ONE_TO_MANY,
    Generation,
    Manifest,
    Prime,
    StatePart,
    StepSpec,
)
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from cellar_server.zoo import Model


class CounterRuntime:
    """y_t is the running sum of x and the state its last value. Exact for whole numbers, however cut.

    runs: (rows, steps) of each run; fail_on: numbers of the runs (from 0) that raise.
    """

    def __init__(self, fail_on: frozenset[int] = frozenset()) -> None:
        self.state_size = 1
        self.start = np.zeros(1, np.float32)
        self.input_dtype = np.dtype(np.float32)
        self.input_shape = (1,)
        self.output_shape = (1,)
        self.runs: list[tuple[int, int]] = []
        self.fail_on = fail_on

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.runs.append(x.shape[:2])
        if len(self.runs) - 1 in self.fail_on:
            raise RuntimeError("a secret of the runtime")
        y = (state[:, None, :] + np.cumsum(x, axis=1)).astype(np.float32)
        return y, y[:, -1].copy()

    def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        raise AssertionError("a counter has no prime")


class CounterGenerator(CounterRuntime):
    """Emits id + 1 after id, modulo 10; 9 ends. The condition is added to the first id."""

    def __init__(self, fail_on: frozenset[int] = frozenset()) -> None:
        super().__init__(fail_on)
        self.input_dtype = np.dtype(np.int64)
        self.input_shape = ()
        self.output_shape = (10,)

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.runs.append(x.shape[:2])
        if len(self.runs) - 1 in self.fail_on:
            raise RuntimeError("a secret of the runtime")
        ids = (x + 1 + state.astype(np.int64)) % 10
        y = np.where(np.arange(10) == ids[..., None], 2.0, 0.0).astype(np.float32)
        return y, np.zeros_like(state)

    def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        return state + condition.reshape(state.shape)


def counter_model(runtime: CounterRuntime | None = None, name: str = "counter") -> Model:
    """A many-to-many model on a CounterRuntime."""
    manifest = Manifest(
        format=1,
        name=name,
        version=1,
        mode=MANY_TO_MANY_ALIGNED,
        state_size=1,
        input=StepSpec(dtype=FLOAT32, shape=[1]),
        output=StepSpec(dtype=FLOAT32, shape=[1]),
        parts=[StatePart(name="sum", offset=0, shape=[1])],
    )
    return Model(manifest, runtime or CounterRuntime())


def generator_model(runtime: CounterGenerator | None = None) -> Model:
    """A one-to-many model on a CounterGenerator; the condition is one float32."""
    manifest = Manifest(
        format=1,
        name="generator",
        version=1,
        mode=ONE_TO_MANY,
        state_size=1,
        input=StepSpec(dtype=INT64, vocabulary=10),
        output=StepSpec(dtype=FLOAT32, shape=[10]),
        parts=[StatePart(name="sum", offset=0, shape=[1])],
        generation=Generation(begin_id=0, end_id=9, default_max_steps=50, max_steps=100),
    )
    manifest.prime.condition.CopyFrom(StepSpec(dtype=FLOAT32, shape=[1]))
    return Model(manifest, runtime or CounterGenerator())


class Summer(CounterGenerator):
    """A CounterGenerator primed with a sequence: the running sum of its ids, modulo 10, goes to the first emission.

    primes: (rows, steps) of each priming run; fail_prime_on: numbers of those (from 0) that raise.
    """

    def __init__(self, fail_prime_on: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.primes: list[tuple[int, int]] = []
        self.fail_prime_on = fail_prime_on

    def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        assert condition.dtype == np.int64
        self.primes.append(condition.shape)
        if len(self.primes) - 1 in self.fail_prime_on:
            raise RuntimeError("a secret of the runtime")
        return (state + condition.sum(axis=1, keepdims=True)).astype(np.float32) % 10


def summer_model(runtime: Summer | None = None, **prime: object) -> Model:
    """A model on a Summer, whose condition is a sequence of ids below 10; prime: more fields of the manifest's."""
    model = generator_model(runtime or Summer())
    manifest = Manifest()
    manifest.CopyFrom(model.manifest)
    manifest.mode = MANY_TO_MANY_ENCODER_DECODER
    manifest.prime.CopyFrom(Prime(is_recurrent=True, condition=StepSpec(dtype=INT64, vocabulary=10), **prime))
    return Model(manifest, model.runtime)
