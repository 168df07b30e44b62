"""The conditions of generations: a text or the numbers of a request, read and checked."""

from __future__ import annotations

import math

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.sessions.content import NAMES
from cellar_server.sessions.messages import GenerateRequest
from cellar_server.zoo import Model


class Conditions:
    """Reads the conditions of one model. max_chunk: the most bytes of text, or steps of a sequence, that are taken."""

    def __init__(self, model: Model, max_chunk: int) -> None:
        self._model = model
        self._max_chunk = max_chunk

    def read(self, request: GenerateRequest) -> tuple[np.ndarray, dict[str, str], int]:
        """The condition's numbers, the values that its placeholders stand for, and the first step's input. Numbers:
        [time, ...] where priming is recurrent, else [...]. INVALID_CONDITION, EMPTY_INPUT, TOO_LARGE and others."""
        manifest = self._model.manifest
        begin_id = manifest.generation.begin_id
        if not manifest.prime.is_recurrent:
            return (*self._read_vector(request), begin_id)
        sequence = self._read_sequence(request)
        if manifest.prime.is_prompt:
            return sequence[:-1], {}, int(sequence[-1])
        return sequence, {}, begin_id

    def _read_sequence(self, request: GenerateRequest) -> np.ndarray:
        """Steps of a condition that is a sequence: [time, ...], at least one."""
        model, prime = self._model, self._model.manifest.prime
        spec, most = prime.condition, min(prime.max_steps or self._max_chunk, self._max_chunk)
        if model.source is not None:
            if request.condition:
                raise CellarError(Reason.INVALID_CONDITION, "the model takes its condition as text")
            if len(request.text) > self._max_chunk:
                raise CellarError(
                    Reason.TOO_LARGE,
                    f"the condition has {len(request.text)} bytes; at most {self._max_chunk} are taken",
                )
            _check_text(request.text)
            values = model.source.take(b"", request.text, True)[0]
        else:
            dtype = np.dtype(NAMES[spec.dtype])
            size = math.prod(spec.shape) * dtype.itemsize
            if request.text or len(request.condition) % size:
                raise CellarError(
                    Reason.SHAPE_MISMATCH,
                    f"the condition is {len(request.condition)} bytes; a step of {dtype} {list(spec.shape)} is {size}",
                )
            values = np.frombuffer(request.condition, dtype).reshape(-1, *spec.shape)
            _check_values(values, spec.vocabulary)
        if prime.is_prompt:
            values = np.append(np.int64(model.manifest.generation.begin_id), values)
        elif not len(values):
            raise CellarError(Reason.EMPTY_INPUT, "the condition is empty")
        if prime.HasField("end_id"):
            values = np.append(values, prime.end_id)
        if len(values) > most:
            raise CellarError(Reason.TOO_LARGE, f"the condition has {len(values)} steps; at most {most} are taken")
        return values

    def _read_vector(self, request: GenerateRequest) -> tuple[np.ndarray, dict[str, str]]:
        """A condition that is one vector or one text, and the values of its placeholders."""
        model = self._model
        manifest = model.manifest
        if not manifest.HasField("prime"):
            if request.text or request.condition:
                raise CellarError(Reason.INVALID_CONDITION, "the model takes no condition")
            return np.zeros(0, np.float32), {}
        if model.condition is not None:
            if request.condition:
                raise CellarError(Reason.INVALID_CONDITION, "the model takes its condition as text")
            if not request.text:
                raise CellarError(Reason.EMPTY_INPUT, f"the condition is empty; it is {model.condition.expected}")
            _check_text(request.text)
            return model.condition.read(request.text)
        spec = manifest.prime.condition
        dtype = np.dtype(NAMES[spec.dtype])
        expected = math.prod(spec.shape) * dtype.itemsize
        if request.text:
            raise CellarError(Reason.SHAPE_MISMATCH, f"the condition is {dtype} {list(spec.shape)}, not text")
        if len(request.condition) != expected:
            raise CellarError(
                Reason.SHAPE_MISMATCH,
                f"the condition is {len(request.condition)} bytes; {dtype} {list(spec.shape)} is {expected}",
            )
        values = np.frombuffer(request.condition, dtype).reshape(tuple(spec.shape))
        _check_values(values, spec.vocabulary)
        return values, {}


def _check_text(text: bytes) -> None:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CellarError(Reason.INVALID_TEXT, f"the condition is not UTF-8 at byte {error.start}") from None


def _check_values(values: np.ndarray, vocabulary: int) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise CellarError(Reason.NON_FINITE_INPUT, "the condition holds NaN or an infinity")
    if vocabulary and not ((values >= 0) & (values < vocabulary)).all():
        raise CellarError(Reason.OUT_OF_VOCABULARY, f"the condition has an id outside 0..{vocabulary - 1}")
