"""What a generation's client knows of it, whatever carries it."""

from __future__ import annotations

from collections import deque

import numpy as np
from cellar_proto.v1.inference_pb2 import GenerateRequest, GenerateResponse
from cellar_proto.v1.sampling_pb2 import FinishReason, Sampling
from cellar_proto.v1.tensor_pb2 import Tensor

from cellar_client.calls import Calls
from cellar_client.errors import CellarError, SessionNotFound, typed
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
    text = condition.encode() if isinstance(condition, str) else condition
    return GenerateRequest(
        model=model,
        version=version,
        text=text if isinstance(text, bytes) else b"",
        condition=None if isinstance(text, bytes) else Tensor(data=np.ascontiguousarray(text).tobytes()),
        sampling=options,
        session_id=session_id,
        position=position,
        num_alternatives=num_alternatives,
        next_id=next_id,
    )


class GenerationBook:
    """A generation that survives its call: what it emits follows from its condition, options and seed, so a broken call
    is made again, and goes on behind the last emission held.

    `id`: of the session in which the server keeps it, "" where it does not; `text` so far, `seed`, `finish` ("end",
    "max_steps", "stop"; "" while it goes on), `position`: emissions held; `alternatives`: (id, log-probability) of the
    most likely ids of the last step, the end's too, where asked for.
    """

    def __init__(self, request: GenerateRequest, timeout_s: float, num_servers: int = 1) -> None:
        self._request = request
        self._patience = Patience(timeout_s, num_servers)
        self._was_broken = False
        self._first = request.position
        self._is_chosen = request.HasField("next_id")  # what it emits follows from more than its condition
        # of this call: what its messages have said, and how much of `text` stands before where it began
        self._said, self._num_before = "", 0
        self.text = ""
        self.seed: int | None = None
        self.finish = ""
        self.position = request.position
        self.alternatives: list[tuple[int, float]] = []

    @property
    def id(self) -> str:
        """By which `generate` goes on with it and `fork_session` copies it; "" where the server does not keep it."""
        return self._request.session_id

    @property
    def is_ended(self) -> bool:
        """Nothing follows the emissions held: `finish` says why."""
        return bool(self.finish)

    def __repr__(self) -> str:
        kept = f"{self.id!r} " if self.id else ""
        how = self.finish or "goes on"
        return f"{type(self).__name__}({kept}of {self._request.model}, position {self.position}, {how}: {self.text!r})"

    def _tokens(self, response: GenerateResponse) -> list[Token]:
        """The new emissions of one message, which may begin with some that are held, where a call was made again. A
        message's text, or what of it is new, stands with its last emission."""
        self.seed = response.seed
        if response.finish:
            self.finish = FinishReason.Name(response.finish).removeprefix("FINISH_").lower()
        if response.HasField("alternatives"):
            others = response.alternatives
            self.alternatives = list(zip(others.ids, others.log_probabilities, strict=True))
        n = len(response.ids)
        if n and response.position + n <= self._first:
            return []  # from before what was asked for
        self._said += response.text.decode("utf-8")
        held = max(0, self.position - response.position)
        if n and held >= n:
            return []
        text = self._said[len(self.text) - self._num_before :]
        self.text += text
        self.position = response.position + n
        each = enumerate(zip(response.ids, response.log_probabilities, strict=True))
        return [
            Token(id, text if i == n - 1 else "", log_probability, response.position + i)
            for i, (id, log_probability) in each
            if i >= held
        ]

    def _pause_s(self, error: CellarError) -> float:
        """How long to wait before the call is made again, which the request is ready for then; or the error."""
        if isinstance(error, SessionNotFound) and self._was_broken and not self._is_chosen:
            self._request.position = 0  # a server without a store was started again
            self._said, self._num_before = "", 0
            return 0.0
        pause_s = self._patience.pause_s(error)
        self._was_broken = True
        if self.seed is not None:
            self._request.sampling.seed = self.seed
        if self._request.session_id:
            if self.position > self._request.position:
                self._request.ClearField("next_id")
            self._request.position = self.position
            self._num_before = len(self.text)
        self._said = ""
        return pause_s


class GenerationCore(GenerationBook):
    """A running generation: tokens, one by one. See GenerationBook for its attributes."""

    def __init__(self, client: Calls, request: GenerateRequest, timeout_s: float) -> None:
        super().__init__(request, timeout_s, len(client._links))
        self._client = client
        self._ready: deque[Token] = deque()
        self._begin()

    def _begin(self) -> None:
        client = self._client
        self._link = client._links.current
        metadata = client._metadata if self._request.session_id else client._free_metadata
        self._call = self._link.inference.Generate(self._request, timeout=self._patience.left_s, metadata=metadata)
        self._messages = client._transport.messages(self._call)

    async def _token(self) -> Token | None:
        """The next emission; None behind the last one. A call that breaks when the end was told is not made again."""
        transport = self._client._transport
        while not self._ready:
            try:
                with typed():
                    response = await transport.next(self._messages)
            except CellarError as error:
                if self.is_ended:
                    return None
                await transport.pause(self._pause_s(error))
                self._client._links.leave(self._link, error, self._patience.num_pauses)
                self._begin()
                continue
            if response is None:
                return None
            self._ready.extend(self._tokens(response))
        return self._ready.popleft()
