"""A columnar frame as it was sent, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellar_client.book import rows_of
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, from_error

# What a kept frame counts for beside its chunks.
FRAME_BYTES = 1024


@dataclass
class FrameAnswer:
    """The answer to one frame, its rows in the order of the frame.

    outputs: float32 [sum(lengths), ...]; lengths: emissions of each row [N]; positions: of each session after its
    chunk [N]; errors: by row, whose length is 0.
    """

    frame_id: int
    outputs: Emissions
    lengths: np.ndarray
    positions: np.ndarray
    errors: dict[int, CellarError] = field(default_factory=dict)

    def rows(self) -> list[Emissions]:
        """The emissions of each row."""
        ends = np.cumsum(self.lengths)
        return [self.outputs[end - n : end] for end, n in zip(ends.tolist(), self.lengths.tolist(), strict=True)]

    def check(self) -> FrameAnswer:
        """Itself, or the first row's error."""
        for error in self.errors.values():
            raise error
        return self


class Sent:
    """A frame as it was sent, and what came back of it.

    number: what the caller knows it by; rows: places of its sessions in the stream [n]; starts, lengths: of the chunks
    [n]; wire_ids: which message may still answer a row [n], 0 for an answered one; pieces, errors: by row.
    """

    __slots__ = (
        "aliases",
        "data",
        "ends",
        "errors",
        "is_answered",
        "is_bulk",
        "left",
        "lengths",
        "num_bytes",
        "number",
        "pieces",
        "positions",
        "rows",
        "starts",
        "timeout_ms",
        "wire_ids",
    )

    def __init__(
        self,
        number: int,
        rows: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        data: bytes,
        *,
        ends: bool,
        is_bulk: bool,
        timeout_ms: int,
    ) -> None:
        self.number = number
        self.rows, self.starts, self.lengths, self.data = rows, starts, lengths, data
        self.ends, self.is_bulk, self.timeout_ms = ends, is_bulk, timeout_ms
        self.wire_ids = np.full(len(rows), number, np.int64)
        self.left = len(rows)
        self.pieces: dict[int, Emissions] = {}
        self.errors: dict[int, CellarError] = {}
        self.positions = starts.copy()
        self.num_bytes = len(data) + FRAME_BYTES
        self.is_answered = False
        self.aliases = {number}  # every message that it went out in

    def chunks(self, chosen: np.ndarray) -> bytes:
        """The chunks of some rows behind one another."""
        total = int(self.lengths.sum())
        if len(chosen) == len(self.rows) or not total:
            return self.data
        unit = len(self.data) // total
        ends = np.cumsum(self.lengths) * unit
        starts = ends - self.lengths * unit
        return b"".join(self.data[starts[i] : ends[i]] for i in chosen.tolist())


def rows_repeated(found: tuple[str, int, Any]) -> int:
    """How many rows of a frame of answered chunks, sent again, a message answers; the first error is raised."""
    kind, wire_id, message = found
    if kind == "frame_error":
        raise from_error(message.error)
    return len(rows_of(message, wire_id))
