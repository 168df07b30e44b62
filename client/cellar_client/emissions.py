"""What a model answered: an array that knows its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np


class Emissions(np.ndarray):
    """float32 [emissions, ...] (or [...] for a mode with one answer), with the classes' names where there are some.

    `labels` is the most likely class of each emission, `label` that of the last one.
    """

    classes: tuple[str, ...]

    def __new__(cls, values: Any, classes: tuple[str, ...] = ()) -> Emissions:
        made = np.asarray(values, np.float32).view(cls)
        made.classes = classes
        return made

    def __array_finalize__(self, source: Any) -> None:
        self.classes = getattr(source, "classes", ())

    if TYPE_CHECKING:

        def __getitem__(self, key: Any) -> Any:
            """Emissions with the same classes, or a number."""

    def __repr__(self) -> str:
        values = super().__repr__()
        has_labels = bool(self.classes) and self.ndim > 0 and self.size > 0 and self.shape[-1] == len(self.classes)
        return f"{values[:-1]}, label={self.label!r})" if has_labels else values

    @property
    def labels(self) -> list[str]:
        """The most likely class of each emission; AttributeError for models without classes."""
        if not self.classes or not self.ndim or self.shape[-1] != len(self.classes):
            raise AttributeError("these emissions have no classes")
        return [self.classes[i] for i in np.asarray(self).reshape(-1, len(self.classes)).argmax(axis=1)]

    @property
    def label(self) -> str:
        """The most likely class of the last emission."""
        return self.labels[-1]
