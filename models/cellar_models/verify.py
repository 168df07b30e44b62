"""Does an artefact compute its equations, in eager, TorchScript and ONNX form, however cut and batched?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from cellar_models.network import Network

ROWS = (1, 2, 7, 64, 256)
CUTS = (1, 2, 5, 16)
TOLERANCE = 1e-5


class VerifyError(ValueError):
    """An artefact differs from its equations, or between its forms, by more than the tolerance."""


@dataclass
class Report:
    """What was found. differences: largest difference over the largest output, by form; is_bit_identical: the same
    bits at all rows and cuts; min_rows, min_steps: the fewest from which on the bits agree (1 where always);
    ms_per_step: one step of one row in ONNX Runtime, the fastest of many runs."""

    differences: dict[str, float] = field(default_factory=dict)
    is_bit_identical: bool = True
    min_rows: int = 1
    min_steps: int = 1
    ms_per_step: float = 0.0

    @property
    def max_relative_error(self) -> float:
        return max(self.differences.values())

    def conclude(self, differing_rows: set[int], differing_steps: set[int]) -> None:
        """From the rows and the steps of runs whose bits differ from the whole batch's, beside 0: which are needed."""
        self.is_bit_identical = len(differing_rows) == len(differing_steps) == 1
        later = [rows for rows in ROWS if rows > max(differing_rows)]
        self.min_rows = later[0] if later and len(differing_rows) > 1 else 1
        self.min_steps = 2 if len(differing_steps) > 1 else 1


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def verify(network: Network, folder: Path, seed: int = 0) -> Report:
    """Holds the graphs in `folder` to the network's equations; VerifyError where one fails.

    Rows 1, 2, 7, 64, 256 by 16 steps, whole, in equal cuts of 1, 2, 5 and 16 steps and in random ones: none of these
    sizes is the one that the graphs were made with. A network that needs the whole sequence is not cut.
    """
    rng = np.random.default_rng(seed)
    step = open_session(folder / "model.onnx")
    script = torch.jit.load(str(folder / "model.pt"))
    _check_axes(step)
    network.eval()
    x = network.example(max(ROWS), max(CUTS), rng)
    start = np.zeros((max(ROWS), network.state_size), np.float32)
    report = Report()

    def note(form: str, found: np.ndarray, expected: np.ndarray) -> None:
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
        report.differences[form] = max(report.differences.get(form, 0.0), difference)
        if not difference <= TOLERANCE:
            raise VerifyError(f"{network.name}: {form} differs by {difference:.2e} of the largest output")

    if network.has_prime:
        condition = network.example_condition(max(ROWS), rng)
        with torch.no_grad():
            primed = network.prime(torch.from_numpy(condition), torch.from_numpy(start)).numpy()
        note("prime, ONNX Runtime", open_session(folder / "prime.onnx").run(None, _feed(condition, start))[0], primed)
        with torch.no_grad():
            scripted = torch.jit.load(str(folder / "prime.pt"))(torch.from_numpy(condition), torch.from_numpy(start))
        note("prime, TorchScript", scripted.numpy(), primed)
        if network.is_prime_recurrent:
            note("prime, eager", primed, network.prime_equations(condition, start.astype(np.float64)))
            _verify_prime(network, folder, condition, start, primed, rng, note)
        start = primed
    expected, expected_state = network.equations(x, start.astype(np.float64))
    with torch.no_grad():
        for form, function in (("eager", network), ("TorchScript", script)):
            y, state = function(torch.from_numpy(x), torch.from_numpy(start))
            note(form, y.numpy(), expected)
            note(f"{form}, state", state.numpy(), expected_state)
    whole = {}
    for rows in ROWS:
        y, state = step.run(None, _feed(x[:rows], start[:rows]))
        whole[rows] = y
        note("ONNX Runtime", y, expected[:rows])
        note("ONNX Runtime, state", state, expected_state[:rows])
    reference = whole[max(ROWS)]
    differing_rows, differing_steps = {0}, {0}
    for rows in ROWS:
        if not np.array_equal(whole[rows], reference[:rows]):
            differing_rows.add(rows)
        for cut in () if network.is_whole_only else (*CUTS, 0):
            y = in_cuts(step, x[:rows], start[:rows], cut_sizes(16, cut, rng))
            note("ONNX Runtime, cut", y, expected[:rows])
            if not np.array_equal(y, reference[:rows]):
                (differing_rows if rows in differing_rows else differing_steps).add(
                    rows if rows in differing_rows else 1
                )
    report.conclude(differing_rows, differing_steps)
    one = _feed(x[:1, :1], start[:1])
    report.ms_per_step = fastest_ms(lambda: step.run(None, one))
    return report


def _verify_prime(
    network: Network,
    folder: Path,
    condition: np.ndarray,
    start: np.ndarray,
    primed: np.ndarray,
    rng: np.random.Generator,
    note: Callable[[str, np.ndarray, np.ndarray], None],
) -> None:
    """A sequence taken in gives the same, however cut and beside however many others."""
    session = open_session(folder / "prime.onnx")
    for rows in ROWS:
        for cut in (*CUTS, 0):
            state, at = start[:rows], 0
            for size in cut_sizes(condition.shape[1], cut, rng):
                state = session.run(None, _feed(condition[:rows, at : at + size], state))[0]
                at += size
            note("prime, ONNX Runtime, cut", state, primed[:rows])


def fastest_ms(run: Callable[[], object]) -> float:
    """Milliseconds of the fastest of at most 2,000 runs in at most half a second: what other work on the machine adds
    to a run is never less than nothing."""
    taken: list[float] = []
    until = time.perf_counter() + 0.5
    while len(taken) < 2000 and (time.perf_counter() < until or len(taken) < 3):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return 1000 * min(taken)


def _feed(x: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x, "state": state}


def in_cuts(session: onnxruntime.InferenceSession, x: np.ndarray, state: np.ndarray, sizes: list[int]) -> np.ndarray:
    outputs, at = [], 0
    for size in sizes:
        y, state = session.run(None, _feed(x[:, at : at + size], state))
        outputs.append(y)
        at += size
    return np.concatenate(outputs, axis=1)


def cut_sizes(total: int, cut: int, rng: np.random.Generator) -> list[int]:
    """Steps of each piece of `total` steps: `cut` and what is left, or, for 0, from 1 to 7 at random."""
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(int(min(cut or rng.integers(1, 8), total - sum(sizes))))
    return sizes


def _check_axes(session: onnxruntime.InferenceSession) -> None:
    """VerifyError unless batch and time are open on every input and output."""
    for place, num_open in zip([*session.get_inputs(), *session.get_outputs()], [2, 1, 2, 1], strict=True):
        for axis, size in enumerate(place.shape[:num_open]):
            if isinstance(size, int):
                raise VerifyError(f"axis {axis} of {place.name} is fixed at {size}")
