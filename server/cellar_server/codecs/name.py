"""Names to condition vectors."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1 import manifest_pb2
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError


class NameCodec:
    """Reads one of a model's names into a vector with a one at its place."""

    def __init__(self, spec: manifest_pb2.NameCodec) -> None:
        self._place = {name: i for i, name in enumerate(spec.names)}
        if len(self._place) != len(spec.names):
            raise ValueError("a name stands twice in the condition's names")
        self.expected = f"one of {', '.join(self._place)}"

    def read(self, text: bytes) -> tuple[np.ndarray, dict[str, str]]:
        """float32 [names], and no placeholders. INVALID_TEXT, INVALID_CONDITION."""
        try:
            name = text.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise CellarError(Reason.INVALID_TEXT, f"the name is not UTF-8 at byte {error.start}") from None
        if name not in self._place:
            raise CellarError(Reason.INVALID_CONDITION, f"the condition is {self.expected}")
        vector = np.zeros(len(self._place), np.float32)
        vector[self._place[name]] = 1.0
        return vector, {}
