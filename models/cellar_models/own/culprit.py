"""What in a network looks along the time axis where a step cannot: found by what it computes, named by its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cellar_models.own.forms import in_order
from cellar_models.own.handed import tensors_of
from cellar_models.own.node import kind_of
from cellar_models.own.subject import Subject
from cellar_models.own.why import ExportError, Why

_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "cumsum", "cumprod", "cummax",
    "cummin", "prod", "var", "std", "sort", "topk", "median", "var_mean", "std_mean", "norm",
    "linalg_vector_norm", "any", "all",
}  # fmt: skip
_SOFTMAX = {"_softmax", "_log_softmax", "softmax", "log_softmax"}


class _Watch(TorchDispatchMode):
    """Notes every operation that looks along an axis as long as the sequence: (kind, operation, layer)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.path: list[str] = []
        self.inside = 0  # depth within recurrent layers, which may look along time
        self.found: list[tuple[Why, str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            why = self._why(func.overloadpacket.__name__, args, kwargs or {})
            if why is not None:
                self.found.append((why, func.overloadpacket.__name__, self.path[-1] if self.path else ""))
        return func(*args, **(kwargs or {}))

    def _why(self, name: str, args: Any, more: Any) -> Why | None:
        if name == "arange" and self.steps in args:
            return Why.COUNTS_STEPS
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None:
            return None
        if "scaled_dot_product" in name or "attention" in name:
            return Why.ATTENTION if self.steps in first.shape else None
        if name in _SOFTMAX:
            if first.shape[args[1]] != self.steps:
                return None
            # scores of attention are one number a pair of steps, or one a step; classes are not
            others = [size for axis, size in enumerate(first.shape) if axis not in (0, args[1] % first.dim())]
            return Why.ATTENTION if self.steps in others or set(others) <= {1} else Why.NORMALISES_OVER_TIME
        if name in _REDUCTIONS:
            axes = args[1] if len(args) > 1 else more.get("dim")
            if isinstance(axes, float) or axes is None or axes == []:
                axes = range(first.dim())
            axes = [axes] if isinstance(axes, int) else list(axes)
            if any(isinstance(axis, int) and first.dim() and first.shape[axis] == self.steps for axis in axes):
                return Why.POOLS_OVER_TIME
        if name in ("bmm", "mm", "matmul") and first.shape[-1] == self.steps:
            return Why.ATTENTION if name == "bmm" else Why.POOLS_OVER_TIME
        if name == "native_layer_norm" and self.steps in list(args[1]):
            return Why.NORMALISES_OVER_TIME
        if name in ("native_group_norm",) and first.shape[2:] and self.steps in first.shape[2:]:
            return Why.NORMALISES_OVER_TIME
        if name in ("flip", "roll") and any(first.shape[axis] == self.steps for axis in args[-1]):
            return Why.NOT_CAUSAL
        if name == "constant_pad_nd":
            padded = [first.dim() - 1 - k for k in range(len(args[1]) // 2) if any(args[1][2 * k : 2 * k + 2])]
            return Why.SHIFTS if any(first.shape[axis] == self.steps for axis in padded) else None
        if "pool" in name and self.steps in first.shape[2:]:
            return Why.POOLS_OVER_TIME
        return None


def diagnose(subject: Subject, rows: int, steps: int, growing: set[str]) -> ExportError | None:
    """Why the network's steps are not its whole sequence, with the layer that is to blame; None where nothing shows."""
    watch = _Watch(steps)
    hooks = []
    for name, each in subject.module.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            watch.path.append(name)
            watch.inside += bool(kind_of(module))

        def leave(module: nn.Module, args: Any, found: Any, name: str = name) -> None:
            watch.path.pop()
            watch.inside -= bool(kind_of(module))

        hooks += [each.register_forward_pre_hook(enter), each.register_forward_hook(leave)]
    x = subject.sample(rows, steps, 0)
    # the fused paths of evaluation mode hide what is inside of them
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with watch:
            subject.run(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    names = dict(subject.module.named_modules())
    later = _first_that_sees_later_inputs(subject, rows, steps)
    order = [Why.ATTENTION, Why.NORMALISES_OVER_TIME, Why.NOT_CAUSAL, Why.POOLS_OVER_TIME, Why.COUNTS_STEPS, Why.SHIFTS]
    for why, operation, path in sorted(watch.found, key=lambda each: order.index(each[0])):
        place = f"`{path}` ({type(names[path]).__name__})" if path else f"{type(subject.module).__name__}.forward"
        also = ", and an output depends on later inputs" if later is not None and why is not Why.NOT_CAUSAL else ""
        return ExportError(
            why,
            f"{place} computes {operation.strip('_')} over the steps of a sequence: {why.value}{also}. "
            "whole_only=True serves it for whole sequences",
        )
    if later is not None:
        return ExportError(Why.NOT_CAUSAL, f"`{later or type(subject.module).__name__}`: {Why.NOT_CAUSAL.value}")
    return None


def _first_that_sees_later_inputs(subject: Subject, rows: int, steps: int) -> str | None:
    """The first layer whose output at earlier steps changes with a later input while its own input there does not;
    "" for the network's own forward; None where the network is causal."""
    layout = subject.layout
    assert layout is not None
    x = subject.sample(rows, steps, 0)
    other = x.clone()
    other[:, -2:] = subject.sample(rows, steps, 8)[:, -2:]
    seen: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
    for each in (x, other):
        calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

        def note(module: nn.Module, args: Any, found: Any, *, name: str, calls: Any = calls) -> None:
            calls.append((name, [t.clone() for t in tensors_of(args)], [t.clone() for t in tensors_of(found)]))

        hooks = [
            module.register_forward_hook(lambda m, a, f, name=name, note=note: note(m, a, f, name=name))
            for name, module in subject.module.named_modules()
        ]
        try:
            y, _ = subject.run(each)
        finally:
            for hook in hooks:
                hook.remove()
        calls.append(
            ("", [], [in_order(y, layout, rows, steps)] if layout.time_axis is not None or layout.flat else [])
        )
        seen.append(calls)
    for (name, ins, outs), (_, other_ins, other_outs) in zip(*seen, strict=False):
        if _agree(ins, other_ins, steps) and not _agree(outs, other_outs, steps):
            return name
    return None


def _agree(one: list[Tensor], other: list[Tensor], steps: int) -> bool:
    """The same values at all steps but the last two, in every tensor with an axis of the steps."""
    for a, b in zip(one, other, strict=False):
        axes = [axis for axis, size in enumerate(a.shape) if size == steps]
        if a.shape == b.shape and len(axes) == 1 and a.is_floating_point():
            a, b = (t.narrow(axes[0], 0, steps - 2) for t in (a, b))
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(a.abs().max()))):
                return False
    return True
