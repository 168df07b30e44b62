"""Asking a server with tritonclient, briefly."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from tritonclient.utils import InferenceServerException


def tensor(values: Any, name: str = "x") -> tritonclient.InferInput:
    values = np.asarray(values)
    kind = {"f": "FP32", "i": "INT64", "O": "BYTES"}[values.dtype.kind]
    made = tritonclient.InferInput(name, list(values.shape), kind)
    made.set_data_from_numpy(values.astype(np.float32) if kind == "FP32" else values)
    return made


def text(*values: str) -> tritonclient.InferInput:
    return tensor(np.array([[value.encode()] for value in values], dtype=object), "text")


def ask(client: Any, model: str, given: tritonclient.InferInput, output: str = "y", **options: Any) -> np.ndarray:
    return client.infer(model, [given], **options).as_numpy(output)


def refusal(client: Any, model: str, given: tritonclient.InferInput, **options: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given], **options)
    return f"{caught.value.status()} {caught.value.message()}"


class Stream:
    """A tritonclient stream and what came back on it."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.client = client
        self.replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.replies.put((result, error)), **options)

    def take(self) -> tuple[Any, Any]:
        return self.replies.get(timeout=20)


@contextmanager
def stream(client: Any, **options: Any) -> Iterator[Stream]:
    made = Stream(client, **options)
    try:
        yield made
    finally:
        client.stop_stream()
