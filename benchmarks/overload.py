"""More load than the server can carry: how many answers still come in time (`python -m benchmarks.overload`).

Open loop: one-step chunks are due at a fixed rate, whatever the server does, each with a deadline that counts from when
it was due. The capacity is measured first, closed-loop, with the same frames over the same streams. A chunk counts when
its answer is read within the deadline. The client is this process, the server another one.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc
from cellar_proto.v1.reason_pb2 import Reason

from benchmarks import network
from benchmarks.serving import served
from benchmarks.wire import OPTIONS, Wire

# Frames in flight of each stream while the capacity is measured.
DEPTH = 4


@dataclass
class Group:
    """Sessions that step together, one frame a time."""

    handles: list[int]
    positions: list[int]


@dataclass
class Tally:
    """Rows by what became of them. refused_ms: delays that refusals told; late: answered after the deadline; unsent:
    their deadline was over, or the refusal's delay was not, before they were sent; latencies_s: of those in time."""

    offered: int = 0
    in_time: int = 0
    late: int = 0
    unsent: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    refused_ms: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


class Lane:
    """One stream: a queue of what is due, a writer and a reader."""

    def __init__(self, load: Overload, call: grpc.aio.StreamStreamCall) -> None:
        self.load, self.call = load, call
        self.free: collections.deque[Group] = collections.deque()
        self.due: asyncio.Queue[float] = asyncio.Queue()
        self.sent: dict[int, tuple[Group, float, list[int]]] = {}  # by frame: group, when due, rows unanswered
        self.number = 1
        self.not_before = 0.0
        self.wakes = asyncio.Event()

    async def open(self, groups: int, rows: int) -> None:
        for _ in range(groups):
            await self.call.write(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model=network.NAME, count=rows)))
            opened = (await self.call.read()).opened
            if opened.errors or len(opened.handles) != rows:
                raise RuntimeError(str(opened))
            self.free.append(Group(list(opened.handles), [0] * rows))

    async def write(self) -> None:
        """Sends what is due, in order, to whichever group is free."""
        load = self.load
        while True:
            due = await self.due.get()
            while not self.free:
                self.wakes.clear()
                await self.wakes.wait()
            left_s = due + load.deadline_s - time.perf_counter()
            if left_s <= 0.001 or (load.honours and time.perf_counter() < self.not_before):
                load.tally.unsent += load.rows
                continue
            group = self.free.popleft()
            self.number += 1
            frame = pb.Frame(frame_id=self.number, handles=group.handles, positions=group.positions)
            frame.timeouts_ms.append(max(1, int(1000 * left_s)))
            frame.inputs.data = load.data
            self.sent[self.number] = (group, due, list(range(load.rows)))
            await self.call.write(pb.StreamRequest(frame=frame))

    async def read(self) -> None:
        while True:
            reply = await self.call.read()
            if reply is grpc.aio.EOF:
                raise RuntimeError("the stream ended")
            now, tally = time.perf_counter(), self.load.tally
            if reply.HasField("frame_error"):
                self._refuse(reply.frame_error.error, self.load.rows, now)
                self._free(reply.frame_error.frame_id)
                continue
            answer = reply.answer
            frame_ids = list(answer.frame_ids)
            if len(frame_ids) == 1:
                frame_ids *= len(answer.handles)
            errors = {error.row: error.error for error in answer.errors}
            for i, frame_id in enumerate(frame_ids):
                group, due, left = self.sent[frame_id]
                row = left[0] if group.handles[left[0]] == answer.handles[i] else group.handles.index(answer.handles[i])
                left.remove(row)
                if i in errors:
                    self._refuse(errors[i], 1, now)
                else:
                    group.positions[row] = answer.positions[i]
                    if now - due <= self.load.deadline_s:
                        tally.in_time += 1
                        tally.latencies_s.append(now - due)
                    else:
                        tally.late += 1
                if not left:
                    self._free(frame_id)

    def _refuse(self, error: pb.Error, rows: int, now: float) -> None:
        tally = self.load.tally
        tally.refused[Reason.Name(error.reason)] += rows
        if error.retry_after_ms:
            tally.refused_ms.append(error.retry_after_ms)
            self.not_before = now + error.retry_after_ms / 1000

    def _free(self, frame_id: int) -> None:
        self.free.append(self.sent.pop(frame_id)[0])
        self.wakes.set()
        if self.load.is_closed:
            self.due.put_nowait(time.perf_counter())


class Overload:
    """`num_streams` streams, each with `groups` groups of `rows` sessions."""

    def __init__(self, address: str, *, num_streams: int, groups: int, rows: int, deadline_s: float) -> None:
        self.address, self.num_streams, self.groups, self.rows = address, num_streams, groups, rows
        self.deadline_s = deadline_s
        self.honours = self.is_closed = False
        self.tally = Tally()
        self.data = np.random.default_rng(0).standard_normal((rows, network.WIDTH)).astype("<f4").tobytes()

    async def open(self) -> None:
        self.channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
        stub = inference_pb2_grpc.InferenceStub(self.channel)
        self.lanes = [Lane(self, stub.Stream()) for _ in range(self.num_streams)]
        for lane in self.lanes:
            await lane.open(self.groups, self.rows)
        self._tasks = [asyncio.ensure_future(each) for lane in self.lanes for each in (lane.write(), lane.read())]

    async def capacity(self, seconds: float) -> float:
        """Rows a second, DEPTH frames in flight on each stream."""
        kept_s, self.deadline_s = self.deadline_s, 60.0
        self.is_closed = True
        for lane in self.lanes:
            for _ in range(DEPTH):
                lane.due.put_nowait(time.perf_counter())
        await self._sleep(seconds / 4)
        before, begun = self.tally.in_time, time.perf_counter()
        await self._sleep(seconds)
        found = (self.tally.in_time - before) / (time.perf_counter() - begun)
        self.is_closed = False
        await self._drain()
        self.deadline_s = kept_s
        return found

    async def offer(self, rows_per_s: float, seconds: float, *, honours: bool) -> Tally:
        """Rows due at a fixed rate for so long, and what became of them."""
        self.tally, self.honours = Tally(), honours
        for lane in self.lanes:
            lane.not_before = 0.0
        begun = time.perf_counter()
        frames, total = 0, int(rows_per_s * seconds / self.rows)
        while frames < total:
            # all that has become due since the last look, each with its own time
            until = min(total, int((time.perf_counter() - begun) * rows_per_s / self.rows))
            for number in range(frames, until):
                self.lanes[number % len(self.lanes)].due.put_nowait(begun + number * self.rows / rows_per_s)
            self.tally.offered += (until - frames) * self.rows
            frames = until
            await self._sleep(0.001)
        await self._drain()
        return self.tally

    async def _sleep(self, seconds: float) -> None:
        """A pause in which a lane that failed is heard."""
        await asyncio.sleep(seconds)
        for task in self._tasks:
            if task.done():
                task.result()

    async def _drain(self) -> None:
        while any(lane.sent or not lane.due.empty() for lane in self.lanes):
            await self._sleep(0.01)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for lane in self.lanes:
            lane.call.cancel()
        await self.channel.close()


async def measure(address: str, given: argparse.Namespace) -> list[dict[str, object]]:
    """One result for each factor and each way with refusals."""
    load = Overload(
        address, num_streams=given.streams, groups=given.groups, rows=given.rows, deadline_s=given.deadline_ms / 1000
    )
    await load.open()
    results = []
    capacity = await load.capacity(given.seconds)
    with Wire(address) as wire:
        for factor in given.factors:
            for honours in (False, True):
                before = wire.counters(network.NAME)
                begun = time.perf_counter()
                tally = await load.offer(factor * capacity, given.seconds, honours=honours)
                took_s = time.perf_counter() - begun
                after = wire.counters(network.NAME)
                latencies = np.sort(tally.latencies_s) if tally.latencies_s else np.zeros(1)
                results.append(
                    {
                        "capacity_rows_per_s": round(capacity),
                        "factor": factor,
                        "honours_delay": honours,
                        "goodput": round(tally.in_time / min(took_s, given.seconds) / capacity, 3),
                        "offered": tally.offered,
                        "in_time": tally.in_time,
                        "late": tally.late,
                        "unsent": tally.unsent,
                        "refused": dict(tally.refused),
                        "delay_ms_median": float(np.median(tally.refused_ms)) if tally.refused_ms else 0.0,
                        "p50_ms": round(1e3 * float(latencies[len(latencies) // 2]), 1),
                        "p99_ms": round(1e3 * float(latencies[int(0.99 * (len(latencies) - 1))]), 1),
                        "steps_computed": after.steps - before.steps,
                        "seconds": round(took_s, 2),
                    }
                )
                print(json.dumps(results[-1]), flush=True)
    await load.close()
    return results


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--hidden", type=int, default=512, help="width of the two LSTM layers")
    parser.add_argument("--rows", type=int, default=16, help="one-step chunks in a frame")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--groups", type=int, default=64, help="frames that one stream can have in flight")
    parser.add_argument("--deadline-ms", type=float, default=250.0)
    parser.add_argument("--factors", type=float, nargs="+", default=[2.0, 3.5], help="load as multiples of capacity")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> list[dict[str, object]]:
    options = arguments(given)
    with tempfile.TemporaryDirectory(prefix="cellar-overload-") as made:
        zoo = Path(made) / "zoo"
        network.write_entry(zoo, options.hidden)
        with served(zoo) as server:
            return asyncio.run(measure(server.address, options))


if __name__ == "__main__":
    main()
