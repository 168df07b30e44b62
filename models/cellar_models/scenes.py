"""Scenes of three boxes with items, what a sentence says of one, and whether that is true.

The sentences are those that people wrote for NLVR (Suhr et al., ACL 2017). `meaning` understands the forms that are
frequent there; of all others it says that it does not, so that nothing is judged by guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

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
Truth = Callable[[Scene], bool]
_OfBox = Callable[[Box], bool]
_OfNumber = Callable[[int], bool]
_COLORS = {"#0099ff": "blue", "blue": "blue", "yellow": "yellow", "black": "black"}
_NUMBERS = dict(zip(["one", "two", "three", "four", "five", "six", "seven", "eight"], "12345678", strict=True))
_REPAIRS = [
    (r"^(ll|t least|tleast|nly|ne|ach|here)\b", {"ll": "all", "t least": "at least", "tleast": "at least"}),
    (r"\b(atleast|colou?rs?|bellow|under|ablue|objects?|sides?|walls?|edges?|bottom|closely |tocuhing|squere)", {
        "atleast": "at least", "bellow": "below", "under": "below", "ablue": "a blue", "object": "item",
        "objects": "item", "side": "edge", "sides": "edge", "wall": "edge", "walls": "edge", "edges": "edge",
        "bottom": "base", "closely ": "", "tocuhing": "touching", "squere": "square", "colors": "color",
        "colour": "color", "colours": "color", "color": "color", "edge": "edge",
    }),
]  # fmt: skip
_NUM = r"(?:(exactly|at least|at most|only|more than|less than) )?(\d|a|no|multiple)"
_C = r"(blue|black|yellow)"
_SHAPE = r"(block|item|square|circle|triangle)"
_TOUCH = r"(not )?(?:that (?:is|are) )?(not )?touching (?:(?:a|any|an) )?((?:right |left |top |base )?edge|base|corner)"


def scene_of(structure: list[list[dict[str, object]]]) -> Scene:
    """A scene from the data's structured_rep; the items of a box from the lowest to the highest."""
    boxes = []
    for box in structure:
        items = [
            Item(
                int(each["x_loc"]),  # type: ignore[call-overload]
                int(each["y_loc"]),  # type: ignore[call-overload]
                int(each["size"]),  # type: ignore[call-overload]
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


def plain(sentence: str) -> str:
    """A sentence in few words: numbers as digits, one word for one thing, no articles before what is known."""
    text = re.sub(r"[.,]", " ", sentence.lower())
    for pattern, words in _REPAIRS:
        text = re.sub(pattern, lambda match, words=words: words.get(match[0], match[0]), text)  # type: ignore[misc]
    text = " ".join(_NUMBERS.get(word, word) for word in text.split())
    text = re.sub(r"\b(block|item|square|circle|triangle|tower|top|base|corner)s\b", r"\1", text)
    text = re.sub(r"\b(grey|gray) (box|boxes|square)\b|\bboxes\b", "box", text)
    text = re.sub(
        r"\b(that|which) (has|have|ha|contains?|with)\b|\b(having|has|have|contains?|containing)\b", "with", text
    )
    text = re.sub(r"\b(which|that) (is|are)\b", "that is", text)
    text = re.sub(r"^there (is|are) |\b(the|different)\b", " ", text)
    text = re.sub(r"\ban\b", "a", text)
    text = re.sub(r"\bon top of\b", "on", text)
    text = re.sub(r"\bat a? ?least\b", "at least", text)
    return " ".join(text.split())


@lru_cache(maxsize=4096)
def meaning(sentence: str) -> Truth | None:
    """What a sentence says, as a test of a scene; None where its form is not understood.

    A bare number means exactly so many, "a" means at least one. A scene that lacks what the sentence speaks of (towers
    where there are none) makes it false.
    """
    text = plain(sentence)
    for form in (_of_towers, _of_stacks, _of_boxes, _of_items):
        found = form(text)
        if found is not None:
            return found
    return None


def is_true(sentence: str, scene: Scene) -> bool | None:
    """Whether a sentence is true of a scene; None where its form is not understood."""
    test = meaning(sentence)
    return None if test is None else test(scene)


def _number(qualifier: str | None, amount: str) -> _OfNumber:
    if amount == "no":
        return lambda n: n == 0
    if amount == "multiple":
        return lambda n: n >= 2
    least = 1 if amount == "a" else int(amount)
    match qualifier:
        case "at least":
            return lambda n: n >= least
        case "at most":
            return lambda n: n <= least
        case "more than":
            return lambda n: n > least
        case "less than":
            return lambda n: n < least
        case None if amount == "a":
            return lambda n: n >= 1
    return lambda n: n == least


def _things(color: str | None, shape: str) -> Callable[[Item], bool]:
    return lambda item: (not color or item.color == color) and shape in (item.shape, "item", "block")


def _both(one: _OfBox | None, other: _OfBox | None) -> _OfBox | None:
    if one is None or other is None:
        return None
    return lambda box: one(box) and other(box)


# -- towers ---------------------------------------------------------------------------------------------------------


def _of_towers(text: str) -> Truth | None:
    """Towers are counted by what they are like."""
    match = re.fullmatch(
        rf"(?:{_NUM}|(each|every|all|all 3|none))(?: of (?:3 )?)? ?(?:(\d) block )?(?:{_C} )?tower(.*)", text
    )
    if match:
        test = _tower(match[6].strip()) if match[6].strip() else (lambda box: True)
        if match[4]:
            test = _both(lambda box: len(box) == int(match[4]), test)
        if match[5]:
            test = _both(lambda box: all(item.color == match[5] for item in box), test)
        if test is None:
            return None
        if match[3]:
            count: _OfNumber = (lambda n: n == 0) if match[3] == "none" else (lambda n: n == 3)
        else:
            count = _number(match[1], match[2])
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


def _tower(text: str) -> _OfBox | None:
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
            return _both(one, other)
    return None


def _tower_alone(text: str) -> _OfBox | None:
    if match := re.fullmatch(rf"with {_NUM} (?:{_C} )?(?:block|item)(?: in it)?(?: color)?", text):
        count, color = _number(match[1], match[2]), match[3]
        return lambda box: count(sum(not color or item.color == color for item in box))
    if match := re.fullmatch(rf"with {_NUM} {_C} block stacked together", text):
        count, color = _number(match[1], match[2]), match[3]
        return lambda box: any(count(length) for length in _stretches(box, color))
    if match := re.fullmatch(rf"with (?:{_NUM} )?{_C} block (?:at|on|as) (?:a )?(base|top)", text):
        num = int(match[2]) if match[2] and match[2].isdigit() else 1
        color, is_top = match[3], match[4] == "top"
        if match[1] not in (None, "exactly", "only") or match[2] == "no":
            return None

        def at_end(box: Box) -> bool:
            piece = box[-num:] if is_top else box[:num]
            return len(piece) == num and all(item.color == color for item in piece)

        return at_end
    if match := re.fullmatch(rf"with (?:a )?{_C} (base|top)|with (?:a )?(base|top) (?:that )?is {_C}", text):
        color, place = match[1] or match[4], match[2] or match[3]
        return lambda box: bool(box) and box[-1 if place == "top" else 0].color == color
    if match := re.fullmatch(rf"with {_NUM} {_C} block in middle(?: of it)?", text):
        color = match[3]
        if match[2] not in ("a", "1"):
            return None
        return lambda box: any(item.color == color for item in box[1:-1])
    if match := re.fullmatch(rf"with (?:a|1) {_C} block (over|above|on|below) (?:a|another) {_C} block", text):
        return lambda box: _pairs(box, match[1], match[2], match[3]) > 0
    if match := re.fullmatch(
        rf"with only {_C}(?: and {_C})? block|with block of (?:only )?{_C}(?: and {_C})? color(?: only)?", text
    ):
        colors = {color for color in match.groups() if color}
        return lambda box: {item.color for item in box} == colors
    if match := re.fullmatch(
        r"with (?:exactly |only )?(?:(\d) )?block of (?:all )?(?:only )?(\d|same) color(?: each block)?", text
    ):
        amount = 1 if match[2] == "same" else int(match[2])
        return lambda box: (not match[1] or len(box) == int(match[1])) and len({item.color for item in box}) == amount
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


def _of_stacks(text: str) -> Truth | None:
    """Blocks by their place in a tower."""
    end = rf"{_NUM} {_C} block (?:as|at) (top|base)(?: of (?:a |any )?tower)?(?: (with {_NUM} block))?"
    if match := re.fullmatch(end, text):
        count, color, is_top = _number(match[1], match[2]), match[3], match[4] == "top"
        size = _tower_alone(match[5]) if match[5] else (lambda box: True)
        assert size is not None
        return lambda scene: (
            is_towers(scene)
            and count(sum(bool(box) and box[-1 if is_top else 0].color == color and size(box) for box in scene))
        )
    if match := re.fullmatch(rf"{_NUM} {_C} block (over|above|on|below) (?:a|another) {_C} block", text):
        count = _number(match[1], match[2])
        return lambda scene: is_towers(scene) and count(sum(_pairs(box, match[3], match[4], match[5]) for box in scene))
    return None


# -- boxes and items ------------------------------------------------------------------------------------------------


def _of_boxes(text: str) -> Truth | None:
    """Boxes are counted by what they hold."""
    match = re.fullmatch(rf"(?:{_NUM}|(each|every|all|all 3))(?: of)? box (with .*)", text)
    if match:
        test = _box(match[4][len("with ") :])
        if test is None:
            return None
        if match[3]:
            return lambda scene: all(test(box) for box in scene)
        count = _number(match[1], match[2])
        return lambda scene: count(sum(test(box) for box in scene))
    if match := re.fullmatch(rf"(?:{_NUM} )?(?:{_C} )?{_SHAPE} in (?:each|every) box", text):
        count = _number(match[1], match[2]) if match[2] else (lambda n: n >= 1)
        thing = _things(match[3], match[4])
        return lambda scene: all(count(sum(map(thing, box))) for box in scene)
    return None


def _box(text: str) -> _OfBox | None:
    """What a box holds."""
    if match := re.fullmatch(rf"(?:(only|exactly) )?(?:(\d) )?item of (?:only )?{_C}(?: and {_C})? color", text):
        colors = {color for color in match.groups()[2:] if color}
        return lambda box: {i.color for i in box} == colors and (not match[2] or len(box) == int(match[2]))
    if match := re.fullmatch(rf"(?:only |exactly )?(?:(\d) )?{_C} and {_C} item|only {_C} item", text):
        colors = {color for color in match.groups()[1:] if color}
        return lambda box: {i.color for i in box} == colors and (not match[1] or len(box) == int(match[1]))
    if match := re.fullmatch(r"(?:only |exactly )?(?:(\d) )?item of (?:only )?(?:all )?(?:only )?(\d) color", text):
        return lambda box: len({i.color for i in box}) == int(match[2]) and (not match[1] or len(box) == int(match[1]))
    if re.fullmatch(r"(?:item of )?all 3 color", text):
        return lambda box: len({i.color for i in box}) == 3
    if match := re.fullmatch(rf"{_NUM} (?:{_C} )?{_SHAPE} {_TOUCH}", text):
        count, test = _number(match[1], match[2]), _touching(match[3], match[4], *match.groups()[4:])
        return lambda box: count(sum(map(test, box)))
    tests: list[_OfBox] = []
    for part in re.split(r" and ", text):
        # a list without commas, as `plain` leaves it: "a blue circle a black triangle"
        pieces = re.findall(rf"(?:^|(?<= ))(?:{_NUM} )?(?:{_C} )?{_SHAPE}(?: in it)?(?= |$)", part)
        if not pieces or re.sub(rf"(?:{_NUM} )?(?:{_C} )?{_SHAPE}(?: in it)?", "", part).strip():
            return None
        for qualifier, amount, color, shape in pieces:
            count = _number(qualifier or None, amount) if amount else (lambda n: n >= 1)
            tests.append(_holds(count, _things(color, shape)))
    return lambda box: all(test(box) for test in tests)


def _holds(count: _OfNumber, thing: Callable[[Item], bool]) -> _OfBox:
    return lambda box: count(sum(map(thing, box)))


def _touching(
    color: str | None, shape: str, not_one: str | None, not_other: str | None, what: str
) -> Callable[[Item], bool]:
    thing, is_not = _things(color, shape), bool(not_one or not_other)

    def touches(item: Item) -> bool:
        sides = item.sides
        if what == "corner":
            return bool(sides & {"left", "right"}) and bool(sides & {"top", "bottom"})
        if what == "edge":
            return bool(sides)
        return what.split()[0].replace("base", "bottom") in sides

    return lambda item: thing(item) and touches(item) != is_not


def _of_items(text: str) -> Truth | None:
    """Items are counted over all boxes."""
    if match := re.fullmatch(rf"{_NUM} (?:{_C} )?{_SHAPE}", text):
        count, thing = _number(match[1], match[2]), _things(match[3], match[4])
        return lambda scene: count(sum(thing(item) for box in scene for item in box))
    if match := re.fullmatch(rf"{_NUM} (?:{_C} )?{_SHAPE} {_TOUCH}(?: of a box)?", text):
        count, test = _number(match[1], match[2]), _touching(match[3], match[4], *match.groups()[4:])
        return lambda scene: count(sum(test(item) for box in scene for item in box))
    if match := re.fullmatch(rf"{_NUM} {_C} {_SHAPE} and {_NUM} {_C} {_SHAPE}", text):
        one, other = _number(match[1], match[2]), _number(match[5], match[6])
        things = _things(match[3], match[4]), _things(match[7], match[8])
        return lambda scene: (
            one(sum(things[0](item) for box in scene for item in box))
            and other(sum(things[1](item) for box in scene for item in box))
        )
    return None
