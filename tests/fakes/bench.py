"""Sessions driven by hand: no thread, no network, a clock that stands until it is told to move."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.directory import Directory
from cellar_server.sessions.messages import AnswerReply, FrameReply, FrameRequest
from cellar_server.sessions.sessions import Sessions
from cellar_server.zoo import Model


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """One model's sessions with stream 1, and what they replied."""

    def __init__(self, model: Model, *, store: Any = None, **config: Any) -> None:
        self.clock = Clock()
        self.directory = Directory()
        defaults = {
            "max_sessions": 256,
            "max_queue_rows": 512,
            "store": "memory" if store is None else "sqlite:///fake",
        }
        self.config = Config(**{**defaults, **config})
        number = self.directory.add_engine(self)
        self.name = model.manifest.name
        self.sessions = Sessions(
            model,
            self.config,
            self.directory,
            number,
            clock=self.clock,
            cost=Cost(1e-5, 1e-5, 1e-5),
            first_ticket=7,
            store=store,
        )
        self.replies: deque[Any] = deque()
        self._frame_id = 0

    def open(self, count: int = 1, stream: int = 1) -> list[int]:
        """Handles of new sessions."""
        return [opened.handle for opened in self.sessions.open([], count=count, stream=stream)]

    def send(
        self,
        handles: list[int],
        positions: list[int],
        chunks: list[list[float]],
        stream: int = 1,
        **columns: Any,
    ) -> int:
        """Admits one frame of float32 chunks; its number."""
        self._frame_id += 1
        data = np.array([v for chunk in chunks for v in chunk], np.float32).tobytes()
        frame = Frame(
            frame_id=self._frame_id,
            handles=handles,
            positions=positions,
            lengths=[len(chunk) for chunk in chunks],
            inputs=Tensor(data=data),
            **columns,
        )
        self.sessions.admit([FrameRequest("me", stream, frame, self._frame_id)])
        return self._frame_id

    def run(self, limit: int = 100_000) -> int:
        """Runs until nothing is ready; how many runs it took."""
        runs = 0
        while self.sessions.has_ready and runs < limit:
            self.sessions.run()
            runs += 1
        return runs

    def take(self) -> dict[tuple[int, int], np.ndarray | CellarError]:
        """What was answered since the last call, by (handle, start): emissions, or the error."""
        answers: dict[tuple[int, int], np.ndarray | CellarError] = {}
        for reply in self.sessions.take_replies():
            if isinstance(reply, FrameReply):
                answers[-1, reply.frame_id] = reply.error
            elif isinstance(reply, AnswerReply):
                errors = dict(reply.errors)
                at = 0
                for row, (handle, start, length) in enumerate(
                    zip(reply.handles, reply.starts, reply.lengths, strict=True)
                ):
                    answers[handle, start] = errors.get(row, reply.outputs[at : at + length].ravel().copy())
                    at += length
            else:
                self.replies.append(reply)
        return answers


def reason_of(error: object) -> str:
    assert isinstance(error, CellarError), error
    return Reason.Name(error.reason)
