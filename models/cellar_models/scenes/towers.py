"""What is said of towers, and of blocks by their place in one."""

from __future__ import annotations

import re

from cellar_models.scenes.scene import Box, Scene, is_towers
from cellar_models.scenes.words import COLOR, NUM, OfBox, OfNumber, Truth, both, number


def of_towers(text: str) -> Truth | None:
    """Towers are counted by what they are like."""
    match = re.fullmatch(
        rf"(?:{NUM}|(each|every|all|all 3|none))(?: of (?:3 )?)? ?(?:(\d) block )?(?:{COLOR} )?tower(.*)", text
    )
    if match:
        test = _tower(match[6].strip()) if match[6].strip() else (lambda box: True)
        size, color = match[4], match[5]
        if size:
            test = both(lambda box: len(box) == int(size), test)
        if color:
            test = both(lambda box: all(item.color == color for item in box), test)
        if test is None:
            return None
        if match[3]:
            count: OfNumber = (lambda n: n == 0) if match[3] == "none" else (lambda n: n == 3)
        else:
            count = number(match[1], match[2])
        return lambda scene: is_towers(scene) and count(sum(test(box) for box in scene))
    match = re.fullmatch(r"(?:(\d) block )?tower (with (?:exactly )?\d block )?(with .*)", text)
    if match and (match[1] or match[2]):
        one = _tower((match[2] or f"with {match[1]} block").strip())
        other = _tower(match[3])
        if one is None or other is None:
            return None

        def test_scene(scene: Scene) -> bool:
            meant = [box for box in scene if one(box)]
            return is_towers(scene) and bool(meant) and all(other(box) for box in meant)

        return test_scene
    return None


def _tower(text: str) -> OfBox | None:
    """What stands behind "tower": one condition, or several joined by "and" or by another "with"."""
    found = _tower_alone(text)
    if found is not None:
        return found
    for cut in re.finditer(r" and it with | and with | and | with | that is ", text):
        rest = text[cut.end() :]
        one = _tower_alone(text[: cut.start()])
        if one is None:
            continue
        other = _tower(rest if rest.startswith("with ") else f"with {rest}")
        if other is not None:
            return both(one, other)
    return None


def _tower_alone(text: str) -> OfBox | None:
    if match := re.fullmatch(rf"with {NUM} (?:{COLOR} )?(?:block|item)(?: in it)?(?: color)?", text):
        count, color = number(match[1], match[2]), match[3]
        return lambda box: count(sum(not color or item.color == color for item in box))
    if match := re.fullmatch(rf"with {NUM} {COLOR} block stacked together", text):
        count, color = number(match[1], match[2]), match[3]
        return lambda box: any(count(length) for length in _stretches(box, color))
    if match := re.fullmatch(rf"with (?:{NUM} )?{COLOR} block (?:at|on|as) (?:a )?(base|top)", text):
        num = int(match[2]) if match[2] and match[2].isdigit() else 1
        color, is_top = match[3], match[4] == "top"
        if match[1] not in (None, "exactly", "only") or match[2] == "no":
            return None

        def at_end(box: Box) -> bool:
            piece = box[-num:] if is_top else box[:num]
            return len(piece) == num and all(item.color == color for item in piece)

        return at_end
    if match := re.fullmatch(rf"with (?:a )?{COLOR} (base|top)|with (?:a )?(base|top) (?:that )?is {COLOR}", text):
        color, place = match[1] or match[4], match[2] or match[3]
        return lambda box: bool(box) and box[-1 if place == "top" else 0].color == color
    if match := re.fullmatch(rf"with {NUM} {COLOR} block in middle(?: of it)?", text):
        color = match[3]
        if match[2] not in ("a", "1"):
            return None
        return lambda box: any(item.color == color for item in box[1:-1])
    if match := re.fullmatch(rf"with (?:a|1) {COLOR} block (over|above|on|below) (?:a|another) {COLOR} block", text):
        one, how, other = match.groups()
        return lambda box: _pairs(box, one, how, other) > 0
    if match := re.fullmatch(
        rf"with only {COLOR}(?: and {COLOR})? block|with block of (?:only )?{COLOR}(?: and {COLOR})? color(?: only)?",
        text,
    ):
        colors = {color for color in match.groups() if color}
        return lambda box: {item.color for item in box} == colors
    if match := re.fullmatch(
        r"with (?:exactly |only )?(?:(\d) )?block of (?:all )?(?:only )?(\d|same) color(?: each block)?", text
    ):
        size, amount = match[1], 1 if match[2] == "same" else int(match[2])
        return lambda box: (not size or len(box) == int(size)) and len({item.color for item in box}) == amount
    if match := re.fullmatch(r"with only 1 color", text):
        return lambda box: len({item.color for item in box}) == 1
    return None


def _stretches(box: Box, color: str) -> list[int]:
    """Lengths of what follows one another in one color."""
    return [len(each) for each in re.findall("x+", "".join("x" if item.color == color else "." for item in box))]


def _pairs(box: Box, one: str, how: str, other: str) -> int:
    """Neighbours in a stack of which the first lies as said to the second."""
    upper, lower = (other, one) if how == "below" else (one, other)
    return sum(box[i].color == lower and box[i + 1].color == upper for i in range(len(box) - 1))


def of_stacks(text: str) -> Truth | None:
    """Blocks by their place in a tower."""
    end = rf"{NUM} {COLOR} block (?:as|at) (top|base)(?: of (?:a |any )?tower)?(?: (with {NUM} block))?"
    if match := re.fullmatch(end, text):
        count, color, is_top = number(match[1], match[2]), match[3], match[4] == "top"
        size = _tower_alone(match[5]) if match[5] else (lambda box: True)
        assert size is not None
        return lambda scene: (
            is_towers(scene)
            and count(sum(bool(box) and box[-1 if is_top else 0].color == color and size(box) for box in scene))
        )
    if match := re.fullmatch(rf"{NUM} {COLOR} block (over|above|on|below) (?:a|another) {COLOR} block", text):
        count = number(match[1], match[2])
        return lambda scene: is_towers(scene) and count(sum(_pairs(box, match[3], match[4], match[5]) for box in scene))
    return None
