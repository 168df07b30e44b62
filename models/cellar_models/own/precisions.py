"""The other precisions of an entry, each held to itself as float32 is, and to float32 by the bound that it states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from cellar_proto.v1.manifest_pb2 import Graph, Manifest, Parity, Variant

from cellar_models.own.proof import Step, check_containment, check_round_trip, compare, measure_ms
from cellar_models.verify import ROWS, Report, VerifyError


def check_promise(parity: Parity, report: Report, *, is_whole_only: bool) -> str:
    """What was found about bits, in words; VerifyError where the manifest promises more."""
    needs = (report.min_rows > max(1, parity.min_rows), report.min_steps > max(1, parity.min_steps))
    if (parity.is_bit_identical and not report.is_bit_identical) or (parity.min_rows and any(needs)):
        raise VerifyError("the manifest promises the same bits, and they differ between numbers of rows or cuts")
    same = "the same bits" if report.is_bit_identical else f"within {report.max_relative_error:.1e} of the largest"
    how = "" if is_whole_only else ", whole and in cuts of 1 to 16 steps"
    return f"{same} at {', '.join(map(str, ROWS))} rows{how}"


def check_variant(
    check: Callable[[str, Callable[[], str]], bool],
    folder: Path,
    manifest: Manifest,
    variant: Variant,
    exact: Step,
    x: np.ndarray,
    start: np.ndarray,
) -> None:
    """One precision's lines of a validation, made by `check(name, what)`; exact: the float32 graph."""
    said = variant.precision
    opened: list[Step] = []

    def open_graph() -> str:
        if not said or not variant.step_file:
            raise VerifyError("a variant lacks precision or step_file")
        graph = Graph()
        graph.CopyFrom(manifest.step)
        graph.file = variant.step_file
        step = Step.open(folder, graph)
        step.check_signature(manifest)
        opened.append(step)
        return f"{variant.step_file} has float32's tensors, batch and time open"

    if not check(f"{said or 'variant'}: graph", open_graph):
        return
    step, parity = opened[0], variant.parity

    def distance() -> str:
        if not parity.tolerance:
            raise VerifyError("the manifest states no bound for it (variants.parity.tolerance)")
        expected, _ = exact.run(x, start)
        found, _ = step.run(x, start)
        if not np.isfinite(found).all():
            raise VerifyError("inputs that are finite give outputs that are not")
        far = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
        if not far <= parity.tolerance:
            raise VerifyError(
                f"outputs differ by {far:.1e} of the largest; the manifest's bound is {parity.tolerance:g}"
            )
        return f"within {far:.1e} of the largest output after {x.shape[1]} steps (bound {parity.tolerance:g})"

    def cuts() -> str:
        # what a form promises of its bits is judged after that; here only something else altogether is refuted
        report = compare(step, x, start, parity.tolerance or 1.0, is_whole_only=manifest.is_whole_only)
        return check_promise(parity, report, is_whole_only=manifest.is_whole_only)

    def round_trip() -> str:
        check_round_trip(folder, step, x, start)
        return "goes on to the bit"

    def batch_mates() -> str:
        check_containment(step, x, start)
        return "NaN and far numbers change no bit of the other rows"

    check(f"{said}: from float32", distance)
    check(f"{said}: rows and cuts", cuts)
    if not manifest.is_whole_only:
        check(f"{said}: round trip", round_trip)
    check(f"{said}: batch-mates", batch_mates)

    def speed() -> str:
        one, many = (measure_ms(step, x, start, rows) for rows in (1, 64))
        return f"{one:.3f} ms a step of one row, {many:.3f} ms of 64 rows"

    check(f"{said}: speed", speed)
