"""The workloads, by name: each gives its section's title and measures its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.report import Line
from benchmarks.stand import Stand
from benchmarks.workloads import arrivals, bits, files, generations, messages, opening, sequences, triton


@dataclass(frozen=True)
class Workload:
    title: str
    measure: Callable[[Stand], Iterator[Line]]


WORKLOADS = {
    "control": Workload("Control: the same server twice", messages.control),
    "bits": Workload("float32 under load has the bits of the batch of one", bits.compare_bits),
    "frames": Workload("One shared stream", messages.frames),
    "messages": Workload("A stream a session, a step a message", messages.streams),
    "unary": Workload("Unary calls", messages.unary),
    "chunks": Workload("Chunks of 16", messages.chunks),
    "deadlines": Workload("Chunks of 16 every 160 ms: streams without a miss", messages.deadlines),
    "sizes": Workload("16 to 1,024 sessions", messages.sizes),
    "many": Workload("From 64 to 4,096 sessions", messages.many),
    "mixed": Workload("Whole sequences of mixed length, saturated", sequences.mixed),
    "equal": Workload("Whole sequences of equal length, saturated (control: nothing to win)", sequences.equal),
    "arrivals": Workload("Whole sequences of mixed length that arrive at random", arrivals.arriving),
    "hold": Workload("The highest load at which p99 stays under 50 ms", arrivals.holding),
    "beside": Workload("Nine short sequences to one long", arrivals.beside),
    "overload": Workload("Overload", arrivals.overload),
    "generate": Workload("Generations that join late", generations.generating),
    "triton": Workload("Beside Triton", triton.beside_triton),
    "opening": Workload("Opening and closing sessions", opening.opening),
    "predict": Workload("Files of sequences", files.predicting),
    "score": Workload("The scoring command", files.scoring),
    "memory": Workload("Memory", files.memory),
}
