"""A server that generates in static batches (`python -m benchmarks.generating --models FOLDER --max-rows N`).

It speaks Generate of cellar.v1 for the zoo's `describe`. A batch takes all that wait, up to its rows, and runs to its
end: rows that have ended leave it, what comes meanwhile waits for the next one. With one row: the batch of one. Words
go out as they are drawn, by the same sampling as Cellar's, so that the same seed gives the same words.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import uvloop
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.sampling_pb2 import FINISH_END, FINISH_MAX_STEPS, FinishReason, Sampling
from cellar_server.codecs.dialogue_act import DialogueActCodec
from cellar_server.codecs.vocabulary import Vocabulary
from cellar_server.sampling.sampler import sample
from google.protobuf import json_format

from benchmarks.listening import listen


@dataclass(eq=False)
class Generation:
    """One call: its condition float32 [features], and how its words are drawn."""

    condition: np.ndarray
    values: dict[str, str]
    sampling: Sampling
    max_steps: int
    came: asyncio.Queue[Emission]
    is_dropped: bool = False


@dataclass(frozen=True)
class Emission:
    """A word, or the end where `finish` says so; the error of a failed run."""

    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    position: int = 0
    finish: FinishReason.ValueType = 0  # type: ignore[assignment]
    error: Exception | None = None


Deliver = Callable[[list[tuple[Generation, Emission]]], None]


class Generator:
    """The model's graphs, one thread. deliver: takes what a step emitted."""

    def __init__(self, folder: Path, deliver: Deliver) -> None:
        self.deliver = deliver
        self.manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.step, self.prime = (
            onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            for name in (self.manifest.step.file, self.manifest.prime.graph.file)
        )
        self.codec = DialogueActCodec(self.manifest.prime.dialogue_act)
        spec = self.manifest.generation
        self.vocabulary = Vocabulary(folder / spec.vocabulary_file, spec.separator)

    def run(self, batch: list[Generation]) -> None:
        """All of a batch to its end; words are emitted as they are drawn."""
        spec = self.manifest.generation
        conditions = np.stack([each.condition for each in batch])
        states = np.zeros((len(batch), self.manifest.state_size), np.float32)
        states = self.prime.run(None, {"x": conditions, "state": states})[0]
        asked = [each.sampling for each in batch]
        kinds = (("temperature", np.float32), ("top_k", np.int64), ("top_p", np.float32), ("seed", np.uint64))
        options = [np.array([getattr(each, name) for each in asked], kind) for name, kind in kinds]
        ids = np.full(len(batch), spec.begin_id)
        for position in range(spec.max_steps + 1):
            y, states = self.step.run(None, {"x": ids[:, None], "state": states})
            ids, drawn = sample(y[:, 0], *options, np.full(len(batch), position, np.uint64))
            kept, emitted = [], []
            for row, (each, id, log) in enumerate(zip(batch, ids.tolist(), drawn.tolist(), strict=True)):
                is_end, is_last = id == spec.end_id, position + 1 == each.max_steps
                finish = FINISH_END if is_end else FINISH_MAX_STEPS if is_last else 0
                emitted.append((each, Emission([] if is_end else [id], [] if is_end else [log], position, finish)))
                if not finish and not each.is_dropped:
                    kept.append(row)
            self.deliver(emitted)
            if not kept:
                return
            if len(kept) < len(batch):
                batch, ids, states = [batch[row] for row in kept], ids[kept], states[kept]
                options = [values[kept] for values in options]


class Worker:
    """A thread that runs batches of what waits, one after the other."""

    def __init__(self, generator: Generator, max_rows: int) -> None:
        self.generator, self.max_rows = generator, max_rows
        self.waiting: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < self.max_rows and not self.waiting.empty():
                batch.append(self.waiting.get())
            batch = [each for each in batch if not each.is_dropped]
            try:
                if batch:
                    self.generator.run(batch)
            except Exception as error:
                self.generator.deliver([(each, Emission(error=error)) for each in batch])


def hand_out(emitted: list[tuple[Generation, Emission]]) -> None:
    """In the event loop: each generation's word to the call that waits for it."""
    for generation, emission in emitted:
        generation.came.put_nowait(emission)


class Service(inference_pb2_grpc.InferenceServicer):
    """Generate over one worker."""

    def __init__(self, folder: Path, max_rows: int) -> None:
        loop = asyncio.get_running_loop()
        self.generator = Generator(folder, lambda emitted: loop.call_soon_threadsafe(hand_out, emitted) and None)
        self.worker = Worker(self.generator, max_rows)

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        condition, values = self.generator.codec.read(request.text)
        steps = request.sampling.max_steps or self.generator.manifest.generation.default_max_steps
        generation = Generation(condition, values, request.sampling, steps, asyncio.Queue())
        self.worker.waiting.put(generation)
        try:
            finish = 0
            while not finish:
                emission = await generation.came.get()
                if emission.error:
                    raise emission.error
                finish = emission.finish
                yield pb.GenerateResponse(
                    ids=emission.ids,
                    log_probabilities=emission.log_probabilities,
                    text=self._text(emission, values),
                    position=emission.position,
                    finish=emission.finish,
                    seed=request.sampling.seed,
                    version=1,
                )
        finally:
            generation.is_dropped = True

    def _text(self, emission: Emission, values: dict[str, str]) -> bytes:
        ids: Sequence[int] = emission.ids
        return self.generator.vocabulary.text(ids, values, emission.position == 0) if ids else b""


async def serve(folder: Path, max_rows: int) -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Service(folder, max_rows), server)
    await listen(server, "generations")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generating", description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder that holds describe/1")
    parser.add_argument("--max-rows", type=int, default=64, help="rows in one batch")
    given = parser.parse_args()
    uvloop.run(serve(given.models / "describe" / "1", given.max_rows))


if __name__ == "__main__":
    main()
