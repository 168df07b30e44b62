"""Where a network's rows and steps are, in what it takes and what it gives; what its first embedding knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cellar_models.own.handed import tensors_of
from cellar_models.own.subject import Call, Layout, Subject
from cellar_models.own.taps import tapped
from cellar_models.own.why import ExportError, Why


def find_axes(subject: Subject, rows: int, steps: int) -> None:
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


def find_vocabulary(subject: Subject, x: Tensor) -> int:
    """Ids that the embedding takes which reads the input itself; 0 where none does."""
    found: list[int] = []
    if x.dtype != torch.int64:
        return 0
    ids = sorted(x.flatten().tolist())

    def note(name: str, module: nn.Module, arguments: tuple[object, ...]) -> object:
        given = arguments[0]
        if isinstance(given, Tensor) and sorted(given.flatten().tolist()) == ids:
            assert isinstance(module, nn.Embedding)
            found.append(module.num_embeddings)
        return type(module).forward(module, given)

    embeddings: dict[str, nn.Module] = {
        name: each for name, each in subject.module.named_modules() if isinstance(each, nn.Embedding)
    }
    with tapped(subject.module, note, embeddings, is_packing=False):
        subject.run(x)
    return min(found, default=0)


def find_layout(subject: Subject, y: Tensor, rows: int, steps: int, more: int) -> Layout:
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
            row, time = by_row[0], by_step[0] if by_step else None
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


def check_rest(rest: object, calls: list[Call], subject: Subject) -> None:
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
