"""A whole sequence that comes alone runs at once: what `Predicts` and `Runs` do by way of the queue, by numbers."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.manifest_pb2 import Mode

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.messages import PredictRows, RowsReply
from cellar_server.sessions.predicts import Predicts
from cellar_server.sessions.run import OVERLAP_S, Run
from cellar_server.sessions.runs import Runs

# Of a sequence that is short whatever a step may cost; of longer ones the books of the queue are the smaller part.
MAX_STEPS = 1024


class LoneSequences:
    """Takes what came one a call where it is a single sequence, nothing else waits, it is short, and nothing is odd
    about it. An operation on a column costs a microsecond and more however short it is, and the queue has a hundred."""

    def __init__(self, core: Core, predicts: Predicts, runs: Runs) -> None:
        self.core = core
        self.predicts = predicts
        self.runs = runs
        takes_none = predicts.content.is_coded or core.only_generates
        is_one = core.model.manifest.mode == Mode.ONE_TO_ONE
        self._most = 0 if takes_none else 1 if is_one else MAX_STEPS
        self._nothing = np.zeros(1, np.uint64)
        self._version = np.full(1, core.model.manifest.version)
        self._running: PredictRows | None = None

    def run(self, requests: list[PredictRows], now: float) -> bool:
        """Whether what came was taken; then it is answered."""
        if len(requests) != 1 or len(requests[0].call) != 1:
            return False
        core, content, rows = self.core, self.predicts.content, requests[0]
        q = int(rows.size[0]) // content.unit_bytes
        if core.scheduler.has_ready or core.is_draining or not self._is_usual(rows, q) or q > self._most:
            return False
        cost_s = float(core.scheduler.cost(1, q))
        if cost_s >= OVERLAP_S or (rows.deadline is not None and rows.deadline[0] <= now):
            return False
        if not core.work.num_free or core.work.num_lot_bytes + rows.data.nbytes > core.config.max_queue_bytes:
            return False
        x = content.array(rows.data, q)
        if not content.is_good(x):
            return False
        core.counts.copy("read", rows.data.nbytes)
        core.counts.queue_rows += 1
        core.counts.queue.add(0.0)
        self._running = rows
        run = Run(rows.call, np.array([q]), x[None], core.model.runtime.start[None], cost_s)
        outcome = self.runs.compute(run)
        if isinstance(outcome, CellarError):
            self.fail(outcome)
            return True
        self.runs.count(run)
        y = outcome[0][0] if rows.all_emissions else outcome[0][0, -1:]
        nothing, lengths = self._nothing, np.array([len(y)])
        starts = nothing.view(np.int64)
        core.replies.append(RowsReply(rows.to, nothing, nothing, starts, self._version, lengths, y, call=rows.call))  # type: ignore[arg-type]
        self._running = None
        return True

    def fail(self, error: CellarError) -> None:
        """Refuses what was taken and not answered."""
        rows, self._running = self._running, None
        if rows is not None:
            self.predicts.refuse_rows(rows, error)

    def _is_usual(self, rows: PredictRows, q: int) -> bool:
        """It has q steps of what the model takes, however it says so."""
        content, given = self.predicts.content, rows.frame.inputs
        if not q or q * content.unit_bytes != int(rows.size[0]) or (given.dtype and given.dtype != content.wire_dtype):
            return False
        length, first_axis = int(rows.length[0]), int(rows.first_axis[0])
        if length not in (-1, q):
            return False
        return first_axis == q and tuple(given.shape) == content.unit_shape if first_axis >= 0 else not given.shape
