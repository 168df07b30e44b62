"""What rows of work bring and take: their inputs into a run, and their outputs, which wait for their last one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cellar_server.scheduler.work import Kind, Lot
from cellar_server.sessions.core import Core


class Lots:
    """The steps of a run in the lots that its rows point into."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def inputs(self, rows: np.ndarray, q: int) -> np.ndarray:
        """Of the next q steps of rows [batch]: [batch, q, ...], where they lie side by side in place."""
        core, work = self.core, self.core.work
        runtime = core.model.runtime
        lots = work.lot[rows]
        first = work.offset[rows] + work.done[rows]
        if lots[0] >= 0 and (lots == lots[0]).all():
            inputs = work.lots[int(lots[0])].inputs
            at, n = int(first[0]), len(rows)
            if n == 1 or (first == np.arange(at, at + n * q, q)).all():
                return inputs[at : at + n * q].reshape(n, q, *inputs.shape[1:])
            x = inputs[first[:, None] + np.arange(q)]
            core.counts.copy("gather", x.nbytes)
            return x
        if work.kind[rows[0]] == Kind.PRIMING:
            like = work.lots[int(lots[0])].inputs
            x = np.empty((len(rows), q, *like.shape[1:]), like.dtype)
        else:
            x = np.empty((len(rows), q, *runtime.input_shape), runtime.input_dtype)
        fed_back = work.kind[rows] == Kind.GENERATION
        if fed_back.any():
            x[fed_back, 0] = work.last[rows[fed_back]]
        places = np.flatnonzero(~fed_back)
        for chosen, at, lot in self._by_lot(places, lots[places], first[places], q):
            x[chosen] = lot.inputs[at]
        core.counts.copy("gather", x.nbytes)
        return x

    def keep(self, rows: np.ndarray, q: int, y: np.ndarray, keep: np.ndarray) -> None:
        """Puts the outputs of rows that take several runs beside their inputs."""
        core, work = self.core, self.core.work
        lots = work.lot[rows]
        first = work.offset[rows] + work.done[rows] - q
        places = np.flatnonzero(keep)
        for chosen, at, lot in self._by_lot(places, lots[places], first[places], q):
            if lot.outputs is None:
                lot.outputs = np.empty((len(lot.inputs), *core.output_shape), np.float32)
            lot.outputs[at] = y[chosen]
        core.counts.copy("keep", len(places) * y[0].nbytes)

    def _by_lot(
        self, places: np.ndarray, lots: np.ndarray, first: np.ndarray, q: int
    ) -> Iterator[tuple[Any, Any, Lot]]:
        """Rows of a run at `places` [n] and where their q steps lie in their lots: a row at a time where most have a
        lot of their own, which costs a tenth of looking for each lot's rows."""
        found = self.core.work.lots
        numbers = lots.tolist()
        distinct = set(numbers)
        if 8 * len(distinct) > len(numbers):
            for place, number, at in zip(places.tolist(), numbers, first.tolist(), strict=True):
                yield place, slice(at, at + q), found[number]
            return
        for number in distinct:
            mine = np.flatnonzero(lots == number)
            yield places[mine], first[mine, None] + np.arange(q), found[number]

    def outputs(self, rows: np.ndarray, q: int, y: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Every emission of ended rows, packed: float32 [sum(steps), ...]."""
        if not len(rows):
            return self.core.no_outputs()
        if not begun.any():
            return y.reshape(len(rows) * q, *self.core.output_shape)
        work = self.core.work
        pieces = []
        for i, w in enumerate(rows.tolist()):
            if begun[i]:
                at, outputs = int(work.offset[w]), work.lots[int(work.lot[w])].outputs
                assert outputs is not None
                pieces.append(outputs[at : at + int(work.steps[w])])
            else:
                pieces.append(y[i])
        return self.core.pack(pieces)
