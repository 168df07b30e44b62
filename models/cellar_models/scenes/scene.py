"""A scene: three boxes with items in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What an edge is, in the units of the data: a box is 100 wide and high.
EDGE = 100


@dataclass(frozen=True)
class Item:
    """A thing in a box: x, y of its upper left corner, with y growing downwards."""

    x: int
    y: int
    size: int
    shape: str
    color: str

    @property
    def sides(self) -> frozenset[str]:
        """The walls that it touches."""
        found = {
            "left": self.x <= 0,
            "right": self.x + self.size >= EDGE,
            "top": self.y <= 0,
            "bottom": self.y + self.size >= EDGE,
        }
        return frozenset(side for side, touches in found.items() if touches)


Box = tuple[Item, ...]
Scene = tuple[Box, ...]
_COLORS = {"#0099ff": "blue", "blue": "blue", "yellow": "yellow", "black": "black"}


def scene_of(structure: list[list[dict[str, Any]]]) -> Scene:
    """A scene from the data's structured_rep; the items of a box from the lowest to the highest."""
    boxes = []
    for box in structure:
        items = [
            Item(
                int(each["x_loc"]),
                int(each["y_loc"]),
                int(each["size"]),
                str(each["type"]),
                _COLORS[str(each["color"]).lower()],
            )
            for each in box
        ]
        boxes.append(tuple(sorted(items, key=lambda item: -item.y)))
    return tuple(boxes)


def is_towers(scene: Scene) -> bool:
    """Whether the boxes hold one stack of blocks each."""
    return all(item.shape == "square" and item.x == 40 and item.size == 20 for box in scene for item in box)
