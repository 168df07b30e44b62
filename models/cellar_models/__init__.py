"""Training, evaluation and export of recurrent networks; the only part that needs torch.

`cellar_models.export(network, "models", name=..., example=...)` takes a network of your own into a models folder.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellar_models.own.entry import Exported, export
    from cellar_models.own.why import ExportError, Why

# before anything imports ONNX Runtime (docs/decisions/0097)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["ExportError", "Exported", "Why", "export"]

_PLACES = {"export": "entry", "Exported": "entry", "ExportError": "why", "Why": "why"}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only where it is asked for
    if name in _PLACES:
        return getattr(importlib.import_module(f"cellar_models.own.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'cellar_models' has no attribute {name!r}")
