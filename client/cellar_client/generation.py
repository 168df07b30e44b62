"""What a generation's client knows of it, whatever carries it."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.inference_pb2 import GenerateRequest, GenerateResponse
from cellar_proto.v1.sampling_pb2 import FinishReason, Sampling
from cellar_proto.v1.tensor_pb2 import Tensor

from cellar_client.errors import CellarError, SessionNotFound
from cellar_client.messages import Token
from cellar_client.replay import Patience


def generate_request(
    model: str,
    condition: str | bytes | np.ndarray,
    options: Sampling,
    session_id: str,
    position: int,
    version: int,
    num_alternatives: int = 0,
    next_id: int | None = None,
) -> GenerateRequest:
    is_text = isinstance(condition, str | bytes)
    return GenerateRequest(
        model=model,
        version=version,
        text=(condition.encode() if isinstance(condition, str) else condition) if is_text else b"",
        condition=None if is_text else Tensor(data=np.ascontiguousarray(condition).tobytes()),
        sampling=options,
        session_id=session_id,
        position=position,
        num_alternatives=num_alternatives,
        next_id=next_id,
    )


class GenerationBook:
    """A generation that survives its call: what it emits follows from its condition, options and seed, so a broken call
    is made again, and goes on behind the last emission held.

    `text` so far, `seed`, `finish` ("end", "max_steps", "stop"; "" while it goes on), `position`: emissions held;
    `alternatives`: (id, log-probability) of the most likely ids of the last step, the end's too, where asked for.
    """

    def __init__(self, request: GenerateRequest, timeout_s: float, num_servers: int = 1) -> None:
        self._request = request
        self._patience = Patience(timeout_s, num_servers)
        self._was_broken = False
        self._is_chosen = request.HasField("next_id")  # what it emits follows from more than its condition
        self.text = ""
        self.seed: int | None = None
        self.finish = ""
        self.position = request.position
        self.alternatives: list[tuple[int, float]] = []

    def _tokens(self, response: GenerateResponse) -> list[Token]:
        """The new emissions of one message. A message's text stands with its last emission."""
        self.seed = response.seed
        if response.finish:
            self.finish = FinishReason.Name(response.finish).removeprefix("FINISH_").lower()
        if response.HasField("alternatives"):
            others = response.alternatives
            self.alternatives = list(zip(others.ids, others.log_probabilities, strict=True))
        n = len(response.ids)
        held = self.position - response.position
        if n and held >= n:
            return []  # of a generation that was begun again
        text = response.text.decode("utf-8")
        self.text += text
        self.position = response.position + n
        return [
            Token(id, text if i == n - 1 else "", log_probability, response.position + i)
            for i, (id, log_probability) in enumerate(zip(response.ids, response.log_probabilities, strict=True))
        ]

    def _pause_s(self, error: CellarError) -> float:
        """How long to wait before the call is made again, which the request is ready for then; or the error."""
        if isinstance(error, SessionNotFound) and self._was_broken and not self._is_chosen:
            self._request.position = 0  # a server without a store was started again
            return 0.0
        pause_s = self._patience.pause_s(error)
        self._was_broken = True
        if self.seed is not None:
            self._request.sampling.seed = self.seed
        if self._request.session_id:
            if self.position > self._request.position:
                self._request.ClearField("next_id")
            self._request.position = self.position
        return pause_s
