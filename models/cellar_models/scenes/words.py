"""The words of which sentences about scenes are made: written plainly, and what they mean for numbers and things."""

from __future__ import annotations

import re
from collections.abc import Callable

from cellar_models.scenes.scene import Box, Item, Scene

Truth = Callable[[Scene], bool]
OfBox = Callable[[Box], bool]
OfNumber = Callable[[int], bool]
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
NUM = r"(?:(exactly|at least|at most|only|more than|less than) )?(\d|a|no|multiple)"
COLOR = r"(blue|black|yellow)"
SHAPE = r"(block|item|square|circle|triangle)"
TOUCH = r"(not )?(?:that (?:is|are) )?(not )?touching (?:(?:a|any|an) )?((?:right |left |top |base )?edge|base|corner)"


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


def number(qualifier: str | None, amount: str) -> OfNumber:
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


def things(color: str | None, shape: str) -> Callable[[Item], bool]:
    return lambda item: (not color or item.color == color) and shape in (item.shape, "item", "block")


def both(one: OfBox | None, other: OfBox | None) -> OfBox | None:
    if one is None or other is None:
        return None
    return lambda box: one(box) and other(box)
