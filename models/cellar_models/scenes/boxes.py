"""What is said of boxes, and of items over all of them."""

from __future__ import annotations

import re
from collections.abc import Callable

from cellar_models.scenes.scene import Item
from cellar_models.scenes.words import COLOR, NUM, SHAPE, TOUCH, OfBox, OfNumber, Truth, number, things


def of_boxes(text: str) -> Truth | None:
    """Boxes are counted by what they hold."""
    match = re.fullmatch(rf"(?:{NUM}|(each|every|all|all 3))(?: of)? box (with .*)", text)
    if match:
        test = _box(match[4][len("with ") :])
        if test is None:
            return None
        if match[3]:
            return lambda scene: all(test(box) for box in scene)
        count = number(match[1], match[2])
        return lambda scene: count(sum(test(box) for box in scene))
    if match := re.fullmatch(rf"(?:{NUM} )?(?:{COLOR} )?{SHAPE} in (?:each|every) box", text):
        count = number(match[1], match[2]) if match[2] else (lambda n: n >= 1)
        thing = things(match[3], match[4])
        return lambda scene: all(count(sum(map(thing, box))) for box in scene)
    return None


def _box(text: str) -> OfBox | None:
    """What a box holds."""
    if match := re.fullmatch(rf"(?:(only|exactly) )?(?:(\d) )?item of (?:only )?{COLOR}(?: and {COLOR})? color", text):
        size, colors = match[2], {color for color in match.groups()[2:] if color}
        return lambda box: {i.color for i in box} == colors and (not size or len(box) == int(size))
    if match := re.fullmatch(rf"(?:only |exactly )?(?:(\d) )?{COLOR} and {COLOR} item|only {COLOR} item", text):
        size, colors = match[1], {color for color in match.groups()[1:] if color}
        return lambda box: {i.color for i in box} == colors and (not size or len(box) == int(size))
    if match := re.fullmatch(r"(?:only |exactly )?(?:(\d) )?item of (?:only )?(?:all )?(?:only )?(\d) color", text):
        size, amount = match[1], int(match[2])
        return lambda box: len({i.color for i in box}) == amount and (not size or len(box) == int(size))
    if re.fullmatch(r"(?:item of )?all 3 color", text):
        return lambda box: len({i.color for i in box}) == 3
    if match := re.fullmatch(rf"{NUM} (?:{COLOR} )?{SHAPE} {TOUCH}", text):
        count, test = number(match[1], match[2]), _touching(match[3], match[4], *match.groups()[4:])
        return lambda box: count(sum(map(test, box)))
    tests: list[OfBox] = []
    for part in re.split(r" and ", text):
        # a list without commas, as `plain` leaves it: "a blue circle a black triangle"
        pieces = re.findall(rf"(?:^|(?<= ))(?:{NUM} )?(?:{COLOR} )?{SHAPE}(?: in it)?(?= |$)", part)
        if not pieces or re.sub(rf"(?:{NUM} )?(?:{COLOR} )?{SHAPE}(?: in it)?", "", part).strip():
            return None
        for qualifier, amount, color, shape in pieces:
            count = number(qualifier or None, amount) if amount else (lambda n: n >= 1)
            tests.append(_holds(count, things(color, shape)))
    return lambda box: all(test(box) for test in tests)


def _holds(count: OfNumber, thing: Callable[[Item], bool]) -> OfBox:
    return lambda box: count(sum(map(thing, box)))


def _touching(
    color: str | None, shape: str, not_one: str | None, not_other: str | None, what: str
) -> Callable[[Item], bool]:
    thing, is_not = things(color, shape), bool(not_one or not_other)

    def touches(item: Item) -> bool:
        sides = item.sides
        if what == "corner":
            return bool(sides & {"left", "right"}) and bool(sides & {"top", "bottom"})
        if what == "edge":
            return bool(sides)
        return what.split()[0].replace("base", "bottom") in sides

    return lambda item: thing(item) and touches(item) != is_not


def of_items(text: str) -> Truth | None:
    """Items are counted over all boxes."""
    if match := re.fullmatch(rf"{NUM} (?:{COLOR} )?{SHAPE}", text):
        count, thing = number(match[1], match[2]), things(match[3], match[4])
        return lambda scene: count(sum(thing(item) for box in scene for item in box))
    if match := re.fullmatch(rf"{NUM} (?:{COLOR} )?{SHAPE} {TOUCH}(?: of a box)?", text):
        count, test = number(match[1], match[2]), _touching(match[3], match[4], *match.groups()[4:])
        return lambda scene: count(sum(test(item) for box in scene for item in box))
    if match := re.fullmatch(rf"{NUM} {COLOR} {SHAPE} and {NUM} {COLOR} {SHAPE}", text):
        one, other = number(match[1], match[2]), number(match[5], match[6])
        first, second = things(match[3], match[4]), things(match[7], match[8])
        return lambda scene: (
            one(sum(first(item) for box in scene for item in box))
            and other(sum(second(item) for box in scene for item in box))
        )
    return None
