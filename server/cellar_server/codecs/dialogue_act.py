"""Dialogue acts to condition vectors."""

from __future__ import annotations

import numpy as np
from cellar_proto import acts
from cellar_proto.v1 import manifest_pb2
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError


class DialogueActCodec:
    """Reads `act(slot='value';slot=value;slot)` into the features that the model was trained on."""

    expected = "a dialogue act, as inform(name='Aromi';food='Chinese')"

    def __init__(self, spec: manifest_pb2.DialogueActCodec) -> None:
        self._place = {name: i for i, name in enumerate(spec.features)}
        self._copied, self._closed = frozenset(spec.copied_slots), frozenset(spec.closed_slots)

    def read(self, text: bytes) -> tuple[np.ndarray, dict[str, str]]:
        """float32 [F], and what each placeholder token stands for. INVALID_TEXT, INVALID_CONDITION."""
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CellarError(Reason.INVALID_TEXT, f"the act is not UTF-8 at byte {error.start}") from None
        try:
            names, values = acts.features(decoded, self._copied, self._closed)
        except ValueError as error:
            raise CellarError(Reason.INVALID_CONDITION, str(error)) from None
        if names[0] not in self._place:
            known = ", ".join(sorted(name[4:] for name in self._place if name.startswith("act=")))
            raise CellarError(Reason.INVALID_CONDITION, f"act {names[0][4:]!r} is not among {known}")
        vector = np.zeros(len(self._place), np.float32)
        for name in names:
            place = self._place.get(name)
            if place is None:
                raise CellarError(
                    Reason.INVALID_CONDITION, f"the model knows no {name.removeprefix('slot=').replace(':', ' = ')!r}"
                )
            vector[place] = 1.0
        return vector, values
