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

    def inputs(self, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Of the next steps of rows [batch], the most first: [batch, time, ...], where they lie side by side in place;
        nothing is set beyond a row's own steps."""
        core, work = self.core, self.core.work
        runtime = core.model.runtime
        lots = work.lot[rows]
        first = work.offset[rows] + work.done[rows]
        q = int(steps[0])
        if lots[0] >= 0 and q == steps[-1] and (lots == lots[0]).all():
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
        for chosen, at, lot in self._by_lot(places, lots[places], first[places], steps[places]):
            x[chosen] = lot.inputs[at]
        core.counts.copy("gather", int(steps.sum()) * x[0, 0].nbytes)
        return x

    def keep(self, rows: np.ndarray, steps: np.ndarray, y: np.ndarray, keep: np.ndarray) -> None:
        """Puts the outputs of rows that take several runs beside their inputs."""
        core, work = self.core, self.core.work
        lots = work.lot[rows]
        first = work.offset[rows] + work.done[rows] - steps
        places = np.flatnonzero(keep)
        for chosen, at, lot in self._by_lot(places, lots[places], first[places], steps[places]):
            if lot.outputs is None:
                lot.outputs = np.empty((len(lot.inputs), *core.output_shape), np.float32)
            lot.outputs[at] = y[chosen]
        core.counts.copy("keep", int(steps[places].sum()) * y[0, 0].nbytes)

    def _by_lot(
        self, places: np.ndarray, lots: np.ndarray, first: np.ndarray, steps: np.ndarray
    ) -> Iterator[tuple[Any, Any, Lot]]:
        """Rows of a run at `places` [n] and where their steps lie in their lots: a row at a time where they are not
        equally many, or most have a lot of their own, which costs a tenth of looking for each lot's rows."""
        if not len(places):
            return
        found = self.core.work.lots
        numbers = lots.tolist()
        distinct = set(numbers)
        is_level = bool((steps == steps[0]).all())
        if 8 * len(distinct) > len(numbers) or not is_level:
            for place, number, at, q in zip(places.tolist(), numbers, first.tolist(), steps.tolist(), strict=True):
                yield (place, slice(0, q)), slice(at, at + q), found[number]
            return
        q = int(steps[0])
        for number in distinct:
            mine = np.flatnonzero(lots == number)
            yield (places[mine], slice(0, q)), first[mine, None] + np.arange(q), found[number]

    def outputs(self, rows: np.ndarray, steps: np.ndarray, y: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Every emission of ended rows, packed: float32 [sum(steps of all their runs), ...]."""
        if not len(rows):
            return self.core.no_outputs()
        if not begun.any() and (steps == y.shape[1]).all():
            return y.reshape(-1, *self.core.output_shape)
        work = self.core.work
        pieces = []
        for i, (w, q) in enumerate(zip(rows.tolist(), steps.tolist(), strict=True)):
            if begun[i]:
                at, outputs = int(work.offset[w]), work.lots[int(work.lot[w])].outputs
                assert outputs is not None
                pieces.append(outputs[at : at + int(work.steps[w])])
            else:
                pieces.append(y[i, :q])
        return self.core.pack(pieces)
