"""What a user's network is: where its rows and steps are, what it keeps between steps, and in which form it runs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from cellar_models.own.axes import check_rest, find_axes, find_layout, find_vocabulary
from cellar_models.own.culprit import diagnose
from cellar_models.own.forms import Form, in_order
from cellar_models.own.handed import copied, tensors_of
from cellar_models.own.keeping import convolutions, own_cells, start_row
from cellar_models.own.node import kind_of
from cellar_models.own.stepper import Stepper
from cellar_models.own.subject import Call, Subject
from cellar_models.own.why import ExportError, Why

_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


def study(
    subject: Subject, *, cells: tuple[type[nn.Module], ...] = (), whole_only: bool = False, tolerance: float = 1e-4
) -> Stepper:
    """The network as a step over a state row, found equal to itself over whole sequences. ExportError."""
    used = {size for p in subject.module.parameters() for size in p.shape} | set(subject.example.shape[2:])
    steps, more_steps = [prime for prime in _PRIMES if prime not in used][:2]
    rows = 3
    find_axes(subject, rows, steps)
    x = subject.sample(rows, steps, 0)
    subject.vocabulary = find_vocabulary(subject, x)
    x = subject.sample(rows, steps, 0)
    y, calls, rest = subject.record(x)
    again, _ = subject.run(x)
    if y.shape != again.shape or not torch.equal(torch.nan_to_num(y), torch.nan_to_num(again)):
        raise ExportError(
            Why.RANDOM, f"{Why.RANDOM.value} (a random first state, or dropout that evaluation mode leaves on)"
        )
    if not torch.isfinite(y.float()).all():
        raise ExportError(Why.FORWARD_FAILED, "inputs like the example give outputs that are not finite")
    ways = [name for name, each in subject.module.named_modules() if getattr(each, "bidirectional", False)]
    plain, padded = (set(), set()) if ways or whole_only else convolutions(calls, rows, steps)
    subject.layout = find_layout(subject, y, rows, steps, more_steps)
    if subject.state is None and subject.output is None and tensors_of(rest):
        check_rest(rest, calls, subject)
    _check_rows(subject, x, y, tolerance)
    if ways or whole_only:
        why = f"`{ways[0]}` is bidirectional" if ways else "you asked for it"
        subject.notes.append(f"whole sequences only, no sessions: {why}")
        return _whole(subject, x, y, rows, steps)
    return _stepwise(subject, cells, x, calls, (plain, padded), tolerance)


def _check_rows(subject: Subject, x: Tensor, y: Tensor, tolerance: float) -> None:
    layout = subject.layout
    assert layout is not None
    together = in_order(y, layout, *x.shape[:2])
    for row in range(2):
        alone = in_order(subject.run(x[row : row + 1])[0], layout, 1, x.shape[1])[0]
        if not close(together[row], alone, tolerance):
            raise ExportError(Why.MIXES_ROWS, f"{Why.MIXES_ROWS.value}: alone it gives another one")


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within `tolerance` of the largest expected value; NaN is never close."""
    scale = max(float(expected.abs().max()), 1e-12)
    return bool(((found.float() - expected.float()).abs().max() / scale) <= tolerance)


def expected_steps(subject: Subject, x: Tensor) -> Tensor:
    """What the network gives after each step [batch, time, ...]: a many-to-one network is asked after every prefix."""
    layout = subject.layout
    assert layout is not None
    if layout.time_axis is not None or layout.flat:
        return in_order(subject.run(x)[0], layout, *x.shape[:2])
    return torch.stack(
        [in_order(subject.run(x[:, :t])[0], layout, x.shape[0], t) for t in range(1, x.shape[1] + 1)], dim=1
    )


def rounding(subject: Subject, x: Tensor) -> float:
    """How far float32 alone moves the network's outputs, of the largest: against itself in float64; 0 where it does
    not run in float64."""
    exact = dataclasses.replace(subject, module=copied(subject.module).double())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        wanted = expected_steps(exact, x.double() if x.is_floating_point() else x)
    except ExportError:
        return 0.0
    finally:
        torch.set_default_dtype(before)
    found = expected_steps(subject, x)
    return float((found.double() - wanted.double()).abs().max() / wanted.abs().max().clamp(min=1e-12))


def moved_from(given: nn.Module, subject: Subject, x: Tensor) -> float:
    """How far the network's outputs are from those that it gave with the weights of `given`, of the largest."""
    wanted = expected_steps(dataclasses.replace(subject, module=given), x)
    return float((expected_steps(subject, x) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def _whole(subject: Subject, x: Tensor, y: Tensor, rows: int, steps: int) -> Stepper:
    if any(getattr(each, "proj_size", 0) and kind_of(each) for each in subject.module.modules()):
        raise ExportError(Why.EXPORTER, "a layer with proj_size has no ONNX node, and whole sequences need one")
    if subject.counts(2) != subject.counts(4):
        raise ExportError(Why.EXPORTER, "it loops over the steps in Python, which cannot be written for every length")
    stepper = Stepper(subject, Form.WHOLE, cells={}, growing=set(), plain=set(), padded=set())
    return stepper


def _stepwise(
    subject: Subject,
    cells: tuple[type[nn.Module], ...],
    x: Tensor,
    calls: list[Call],
    convolutions: tuple[set[str], set[str]],
    tolerance: float,
) -> Stepper:
    rows, steps = x.shape[:2]
    plain, padded = convolutions
    one, two = subject.counts(1), subject.counts(2)
    growing = {name for name in two if two[name] > one[name]}
    own = (
        {
            name: each
            for name, each in subject.module.named_modules()
            if isinstance(each, cells) or (not cells and name in own_cells(subject, rows))
        }
        if cells or not growing
        else {}
    )
    keeps = [call for call in calls if kind_of(call.module) or call.name not in plain]
    if not keeps and not own and subject.state is None:
        diagnosis = diagnose(subject, rows, steps, growing)
        if diagnosis is not None:
            raise diagnosis
        why = Why.HIDDEN_LOOP if _remembers(subject, x, tolerance) else Why.NO_STATE
        raise ExportError(why, f"{type(subject.module).__name__}: {why.value}")
    expected = expected_steps(subject, x)
    projects = any(getattr(call.module, "proj_size", 0) for call in calls if kind_of(call.module))
    forms = [] if projects or own or not keeps else [Form.FOLDED]
    forms += [Form.GIVEN] if subject.state is not None else [Form.LOOP, Form.FED]
    refusal: ExportError | None = None
    for form in forms:
        stepper = Stepper(subject, form, cells=own, growing=growing | set(own), plain=plain, padded=padded)
        try:
            if form in (Form.LOOP, Form.FED) and any(one[name] > 1 for name in growing):
                name = next(name for name in growing if one[name] > 1)
                raise ExportError(Why.LOOP_ORDER, f"`{name}` is called {one[name]} times in a step")
            with torch.no_grad():
                stepper.find_parts(x if form is Form.FOLDED else x[:, :1])
                if form is Form.FOLDED and subject.state is not None and stepper.state_size != len(subject.start_row()):
                    continue  # it hands over more than its layers keep
                stepper.start = start_row(subject, stepper, x)
                if _is_equal(stepper, x, expected, tolerance):
                    return stepper
        except ExportError as error:
            refusal = error if error.why is not Why.FORWARD_FAILED else refusal
            if error.why is Why.START_FROM_INPUT:
                raise
        except (RuntimeError, IndexError, TypeError, ValueError):
            continue  # a form that does not fit the network; if none does, `diagnose` says why
    fans = [call for call in calls if kind_of(call.module) and call.rows != rows and not subject.is_time_first]
    if fans:
        text = f"`{fans[0].name}` is given {fans[0].rows} sequences for {rows}: {Why.FANS_OUT.value}"
        raise ExportError(Why.FANS_OUT, text)
    found = diagnose(subject, rows, steps, growing)
    raise (
        found
        or refusal
        or ExportError(
            Why.PARITY,
            f"{Why.PARITY.value}, and no layer could be found to blame: what it keeps is not in its recurrent layers",
        )
    )


def _remembers(subject: Subject, x: Tensor, tolerance: float) -> bool:
    """A later output depends on the first input."""
    other = x.clone()
    other[:, 0] = subject.sample(x.shape[0], x.shape[1], 7)[:, 0]
    return not close(expected_steps(subject, other)[:, 1:], expected_steps(subject, x)[:, 1:], tolerance)


def _is_equal(stepper: Stepper, x: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whole, step by step and in cuts from the start row: the same as the network over the whole sequence."""
    for sizes in ([x.shape[1]], [1] * x.shape[1], [2, 1, x.shape[1] - 3]):
        state, made, at = stepper.start.expand(len(x), -1), [], 0
        for size in sizes:
            y, state = stepper.over(x[:, at : at + size], state)
            made.append(y)
            at += size
        if not close(torch.cat(made, 1), expected, tolerance):
            return False
    return True
