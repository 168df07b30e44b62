"""What a user hands in: networks in wrappers, single steps, nested states."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cellar_models.own.why import ExportError, Why


def unwrapped(module: Any) -> nn.Module:
    """The network inside torch.compile and the parallel wrappers; ExportError for what is no module."""
    for name in ("_orig_mod", "module"):
        if type(module).__name__ in ("OptimizedModule", "DataParallel", "DistributedDataParallel"):
            module = getattr(module, name, module)
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(module, nn.Module):
        raise ExportError(Why.SCRIPTED, f"{type(module).__name__}: {Why.SCRIPTED.value}")
    return module


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of weights that are computed (weight_norm, parametrisations): of their values then."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in part.__dict__.values():
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, Tensor) and not each.is_leaf:
                    memo[id(each)] = each.detach().clone()
    return copy.deepcopy(module, memo)


class Unrolled(nn.Module):
    """A network of one step, forward(x [batch, ...], *state) -> (y, *state), run over time."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *state: Any) -> Any:
        outputs = []
        for t in range(x.shape[1]):
            y, *state = self.module(x[:, t], *state)
            outputs.append(y)
        return torch.stack(outputs, dim=1), *state


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [tensor for each in value for tensor in tensors_of(each)]
    return []


def filled(like: Any, tensors: list[Tensor]) -> Any:
    """The nesting of `like` with these tensors; they are taken from the list's start."""
    if isinstance(like, Tensor):
        return tensors.pop(0)
    return type(like)([filled(each, tensors) for each in like])
