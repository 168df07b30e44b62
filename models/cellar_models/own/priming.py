"""A prime graph held against itself: its tensors, rows, cuts where it is recurrent, and NaN."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from cellar_proto.v1.manifest_pb2 import Manifest

from cellar_models.own.proof import ONNX_TYPES, STEPS, check_open, find_place
from cellar_models.verify import CUTS, ROWS, VerifyError, cut_sizes, open_session


@dataclass
class Priming:
    """An opened prime graph: run(condition [batch, (time,) ...], rows float32 [batch, S]) -> primed rows."""

    session: onnxruntime.InferenceSession
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> Priming:
        """VerifyError unless names, dtypes, open axes and sizes are the manifest's."""
        graph, spec = manifest.prime.graph, manifest.prime.condition
        session = open_session(folder / graph.file)
        if len(session.get_inputs()) != 2:
            raise VerifyError(f"{graph.file} takes {len(session.get_inputs())} inputs; a prime takes two")
        num_open = 2 if manifest.prime.is_recurrent else 1
        for name, dtype, opened, rest in (
            (graph.input, ONNX_TYPES[spec.dtype], num_open, list(spec.shape)),
            (graph.state_input, "tensor(float)", 1, [manifest.state_size]),
            (graph.state_output, "tensor(float)", 1, [manifest.state_size]),
        ):
            check_open(find_place(session, graph.file, name), dtype, opened, rest)
        return cls(session, manifest)

    def run(self, condition: np.ndarray, rows: np.ndarray) -> np.ndarray:
        graph = self.manifest.prime.graph
        given = {graph.input: condition, graph.state_input: np.ascontiguousarray(rows)}
        primed: np.ndarray = self.session.run([graph.state_output], given)[0]
        return primed

    def check(self, condition: np.ndarray, rows: np.ndarray, tolerance: float) -> str:
        """What was found at 1 to 256 rows and, where it is recurrent, in cuts; VerifyError where it does not hold."""
        rng = np.random.default_rng(0)
        whole = self.run(condition, rows)
        if whole.shape != rows.shape:
            raise VerifyError(f"{self.manifest.prime.graph.file} gives a state of {list(whole.shape)}")
        if not np.isfinite(whole).all():
            raise VerifyError("a condition that is finite gives a state that is not")
        largest, is_same, farthest = max(float(np.abs(whole).max()), 1e-12), True, 0.0
        for num_rows in ROWS:
            for cut in (STEPS, *CUTS[:-1], 0) if self.manifest.prime.is_recurrent else (STEPS,):
                found, at = rows[:num_rows], 0
                steps = condition.shape[1] if self.manifest.prime.is_recurrent else STEPS
                for size in cut_sizes(steps, cut, rng):
                    part = condition[:num_rows]
                    found = self.run(part[:, at : at + size] if self.manifest.prime.is_recurrent else part, found)
                    at += size
                difference = float(np.abs(found - whole[:num_rows]).max()) / largest
                if not difference <= tolerance:
                    how = f" in cuts of {cut or 'random'} steps" if self.manifest.prime.is_recurrent else ""
                    raise VerifyError(
                        f"{num_rows} rows{how}: primed states differ by {difference:.2e} of the largest number "
                        f"(bound {tolerance:g})"
                    )
                is_same &= difference == 0.0
                farthest = max(farthest, difference)
        self._check_containment(condition[:7], rows[:7])
        same = "the same bits" if is_same else f"within {farthest:.1e} of the largest"
        how = ", whole and in cuts of 1 to 16 steps" if self.manifest.prime.is_recurrent else ""
        return f"{same} at {', '.join(map(str, ROWS))} rows{how}; NaN of a batch-mate changes no other row"

    def _check_containment(self, condition: np.ndarray, rows: np.ndarray) -> None:
        whole, others = self.run(condition, rows), np.arange(7) != 3
        bad_rows = rows.copy()
        bad_rows[3] = np.nan
        bad = condition.copy()
        if condition.dtype.kind == "f":
            bad[3] = np.nan
        for what, found in (("condition", self.run(bad, rows)), ("state", self.run(condition, bad_rows))):
            if not np.array_equal(found[others], whole[others]):
                raise VerifyError(f"a batch-mate whose {what} is nan changes the other rows' states")
