"""What a user's network is: where its rows and steps are, what it keeps between steps, and in which form it runs."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from cellar_models.own.culprit import diagnose
from cellar_models.own.node import kind_of
from cellar_models.own.stepper import Form, Stepper, in_order
from cellar_models.own.subject import Call, Layout, Subject, copied, tensors_of
from cellar_models.own.taps import as_it_is, tapped
from cellar_models.own.why import ExportError, Why

_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


def study(
    subject: Subject, *, cells: tuple[type[nn.Module], ...] = (), whole_only: bool = False, tolerance: float = 1e-4
) -> Stepper:
    """The network as a step over a state row, found equal to itself over whole sequences. ExportError."""
    used = {size for p in subject.module.parameters() for size in p.shape} | set(subject.example.shape[2:])
    steps, more_steps = [prime for prime in _PRIMES if prime not in used][:2]
    rows = 3
    _find_axes(subject, rows, steps)
    x = subject.sample(rows, steps, 0)
    subject.vocabulary = _vocabulary(subject, x)
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
    plain, padded = (set(), set()) if ways or whole_only else _convolutions(calls, rows, steps)
    subject.layout = _layout(subject, y, rows, steps, more_steps)
    if subject.state is None and subject.output is None and tensors_of(rest):
        _check_rest(rest, calls, subject)
    _check_rows(subject, x, y, tolerance)
    if ways or whole_only:
        why = f"`{ways[0]}` is bidirectional" if ways else "you asked for it"
        subject.notes.append(f"whole sequences only, no sessions: {why}")
        return _whole(subject, x, y, rows, steps)
    return _stepwise(subject, cells, x, calls, (plain, padded), tolerance)


def _find_axes(subject: Subject, rows: int, steps: int) -> None:
    """Which of the input's first two axes is the batch: the one that the first layer takes for it."""
    x = subject.sample(rows, steps, 0)
    calls: list[Call] = []
    try:
        _, calls, _ = subject.record(x)
    except ExportError:
        subject.is_time_first = True
        try:
            subject.record(subject.sample(rows, steps, 0))
        except ExportError:
            subject.is_time_first = False
            subject.record(x)  # says why
        return
    if not calls:
        return
    first = calls[0]
    if first.rows == steps:
        subject.is_time_first = True
        subject.notes.append(f"axis 0 of the network's input is time: `{first.name}` has batch_first=False")
    elif first.rows % rows:
        raise ExportError(Why.MIXES_ROWS, f"`{first.name}` is given a batch of {first.rows} for {rows} sequences")


def _vocabulary(subject: Subject, x: Tensor) -> int:
    """Ids that the embedding takes which reads the input itself; 0 where none does."""
    found: list[int] = []
    if x.dtype != torch.int64:
        return 0
    ids = sorted(x.flatten().tolist())

    def note(name: str, module: nn.Module, arguments: tuple[object, ...]) -> object:
        given = arguments[0]
        if isinstance(given, Tensor) and sorted(given.flatten().tolist()) == ids:
            found.append(module.num_embeddings)  # type: ignore[arg-type]
        return type(module).forward(module, given)

    embeddings = {name: each for name, each in subject.module.named_modules() if isinstance(each, nn.Embedding)}
    with tapped(subject.module, note, embeddings, is_packing=False):
        subject.run(x)
    return min(found, default=0)


def _layout(subject: Subject, y: Tensor, rows: int, steps: int, more: int) -> Layout:
    """Where rows and steps are in the output, from two lengths and two numbers of rows."""
    other, _ = subject.run(subject.sample(rows + 1, more, 0))
    one, two = list(y.shape), list(other.shape)
    if len(one) == len(two):
        flat = [a for a in range(len(one)) if (one[a], two[a]) == (rows * steps, (rows + 1) * more)]
        by_row = [a for a in range(len(one)) if (one[a], two[a]) == (rows, rows + 1)]
        by_step = [a for a in range(len(one)) if (one[a], two[a]) == (steps, more)]
        rest = [a for a in range(len(one)) if a not in (*flat, *by_row, *by_step)]
        same = all(one[a] == two[a] for a in rest)
        if same and flat == [0] and not by_row and not by_step:
            return Layout(0, 0, tuple(one[1:]), _flat_order(subject, rows, steps, y))
        if same and len(by_row) == 1 and len(by_step) <= 1 and not flat:
            row, time = by_row[0], (by_step or [None])[0]
            # a leading axis of one, as in h_n[-1:], is not part of an emission
            step = [one[a] for a in rest if not (a < row and one[a] == 1)]
            return Layout(row, time, tuple(step))
    raise ExportError(
        Why.OUTPUT_LAYOUT,
        f"for {rows} sequences of {steps} steps the output is {one}, for {rows + 1} of {more} it is {two}: "
        f"{Why.OUTPUT_LAYOUT.value}",
    )


def _flat_order(subject: Subject, rows: int, steps: int, y: Tensor) -> str:
    x = subject.sample(rows, steps, 0)
    x[0] = subject.sample(rows, steps, 9)[0]
    changed = (
        ((subject.run(x)[0] != y).flatten(1).any(1) if y.dim() > 1 else subject.run(x)[0] != y).nonzero().flatten()
    )
    return "rows" if int(changed.max()) < steps else "steps"


def _check_rest(rest: object, calls: list[Call], subject: Subject) -> None:
    """What is returned beside the first output must be the layers' hidden state; that is served as such."""
    sizes = {getattr(call.module, "hidden_size", 0) for call in calls} | {
        getattr(call.module, "proj_size", 0) for call in calls
    }
    for tensor in tensors_of(rest):
        if tensor.dim() < 2 or tensor.shape[-1] not in sizes:
            raise ExportError(
                Why.SEVERAL_OUTPUTS,
                f"beside its first output it returns one of shape {list(tensor.shape)}: {Why.SEVERAL_OUTPUTS.value}",
            )
    subject.notes.append("what the network returns beside its first output is its hidden state: kept, not emitted")


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
            if isinstance(each, cells) or (not cells and name in _own_cells(subject, rows))
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
                stepper.start = _start(subject, stepper, x)
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


def _convolutions(calls: list[Call], rows: int, steps: int) -> tuple[set[str], set[str]]:
    """Names of convolutions over something else than time, and of those whose input comes padded on the left."""
    plain, padded = set(), set()
    for call in calls:
        if not isinstance(call.module, nn.Conv1d):
            continue
        conv, (batch, _, length) = call.module, call.x.shape
        overlap = conv.dilation[0] * (conv.kernel_size[0] - 1)
        if batch != rows:
            plain.add(call.name)
            continue
        pad = conv.padding if isinstance(conv.padding, str) else conv.padding[0]
        if conv.stride[0] != 1:
            raise ExportError(
                Why.CHANGES_LENGTH, f"`{call.name}` has stride {conv.stride[0]}: {Why.CHANGES_LENGTH.value}"
            )
        if pad == "same" or (pad not in (0, "valid") and pad != overlap):
            raise ExportError(
                Why.LOOKS_AHEAD,
                f"`{call.name}` has padding {pad!r} with a kernel of {conv.kernel_size[0]}, so that an output needs "
                f"later inputs. Causal: pad {overlap} zeros on the left and none on the right",
            )
        if pad in (0, "valid"):
            if length == steps:
                raise ExportError(
                    Why.CHANGES_LENGTH,
                    f"`{call.name}` has no padding and gives {overlap} steps fewer than it takes. Causal: {overlap} "
                    "zeros padded on the left",
                )
            if length != steps + overlap or bool(call.x[:, :, :overlap].any()):
                raise ExportError(
                    Why.LOOKS_AHEAD, f"`{call.name}` is padded otherwise than by {overlap} zeros on the left"
                )
            padded.add(call.name)
        elif conv.padding_mode != "zeros":
            raise ExportError(Why.LOOKS_AHEAD, f"`{call.name}` pads with {conv.padding_mode}, not with zeros")
    return plain, padded


def _own_cells(subject: Subject, rows: int) -> set[str]:
    """Modules of the user's own that are cells: called once a step, given at one step what they gave at the last."""
    outputs: dict[str, list[list[Tensor]]] = {}
    inputs: dict[str, list[list[Tensor]]] = {}

    def note(name: str, module: nn.Module, arguments: tuple[object, ...]) -> object:
        found = type(module).forward(module, *arguments)
        inputs.setdefault(name, []).append([t for each in arguments[1:] for t in tensors_of(each)])
        outputs.setdefault(name, []).append(tensors_of(found))
        return found

    candidates = {
        name: each
        for name, each in subject.module.named_modules()
        if name and not type(each).__module__.startswith("torch.") and not isinstance(each, nn.ModuleList)
    }
    with tapped(subject.module, note, candidates, is_packing=False):
        subject.run(subject.sample(rows, 2, 0))
    found = set()
    for name, given in inputs.items():
        if len(given) == 2 and given[1] and all(any(t is o for o in outputs[name][0]) for t in given[1]):
            found.add(name)
    return {name for name in found if not any(name.startswith(f"{other}.") for other in found)}


def _start(subject: Subject, stepper: Stepper, x: Tensor) -> Tensor:
    """The row [S] that a sequence starts from: what the network hands its layers at the first step."""
    if stepper.form is Form.GIVEN:
        return subject.start_row()
    start = torch.zeros(stepper.state_size)
    seen: dict[str, Tensor] = {}
    for seed in (0, 5):
        found = _given_hidden(subject, stepper, subject.sample(x.shape[0], 1, seed))
        for name, rows in found.items():
            for row in rows:
                known = seen.setdefault(name, row)
                if not torch.allclose(known, row, rtol=1e-5, atol=1e-6):
                    raise ExportError(
                        Why.START_FROM_INPUT,
                        f"the first state of `{name.rsplit('.', 1)[0]}` is computed from the input (an encoder, say, "
                        "or a first frame): a session must start before any input is there",
                    )
    at = 0
    for name, shape in stepper.parts:
        size = math.prod(shape)
        if name in seen:
            start[at : at + size] = seen[name].flatten()
        at += size
    return start


def _given_hidden(subject: Subject, stepper: Stepper, x: Tensor) -> dict[str, Tensor]:
    """By part: the hidden state [rows, ...] that each layer is handed for a sequence of one step."""
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(layer: str, module: nn.Module, arguments: tuple[object, ...]) -> object:
        counts[layer] = counts.get(layer, 0) + 1
        name = layer if counts[layer] < 2 else f"{layer}#{counts[layer]}"
        hidden = [t.detach().clone() for each in arguments[1:] for t in tensors_of(each)]
        is_layer = isinstance(module, nn.RNNBase)
        for k, tensor in enumerate(hidden if not isinstance(module, nn.Conv1d) else []):
            letter = "hc"[k] if kind_of(module) else str(k)
            if is_layer and (layer not in stepper.growing or stepper.form is Form.FOLDED):
                for j in range(tensor.shape[0]):
                    found[f"{name}.{j}.{letter}"] = tensor[j]
            else:
                found[f"{name}.{letter}"] = tensor.movedim(1, 0) if is_layer else tensor
        return as_it_is(module, arguments)

    with torch.no_grad(), tapped(subject.module, note, stepper.taps):
        subject.run(x)
    return found
