"""What a sentence says of a scene, and that what is not understood is not judged."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import scenes
from cellar_models.scenes import Item
from hypothesis import given
from hypothesis import strategies as st


def tower(*colors: str) -> scenes.Box:
    """Blocks from the lowest on."""
    return tuple(Item(40, 80 - 21 * k, 20, "square", color) for k, color in enumerate(colors))


TOWERS = (tower("black", "blue"), tower("yellow"), tower("black", "black", "yellow", "black"))
ITEMS = (
    (Item(0, 30, 10, "circle", "blue"), Item(50, 50, 20, "square", "yellow"), Item(40, 10, 10, "triangle", "black")),
    (Item(80, 80, 20, "square", "black"), Item(30, 30, 20, "circle", "black")),
    (Item(40, 70, 30, "triangle", "yellow"),),
)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("There are 4 black blocks", True),
        ("There are 3 black blocks.", False),
        ("There are at least 3 black blocks", True),
        ("There is a tower with four blocks", True),
        ("there is exactly one tower with a black block at the base", False),
        ("There are two towers with a black block at the base", True),
        ("There are exactly two towers with a black block at the base", True),
        ("There is 1 tower with a black block at the top", True),
        ("There is a yellow tower", True),
        ("there is a black tower", False),
        ("There is 1 tower with 2 black blocks stacked together", True),
        ("There is a blue block on a black block", True),
        ("There is a black block on a blue block", False),
        ("There is a blue block below a black block", False),
        ("There is a black block as the top of a tower with four blocks", True),
        ("There is a blue block as the top of a tower with at least three blocks", False),
        ("The tower with four blocks has a black block at the top", True),
        ("the tower with three blocks has a black block at the top", False),
        ("Each tower has at least 1 black block", False),
        ("there is one tower which has only yellow blocks", True),
        ("There is a tower with exactly two blocks having a blue block at the top", True),
        ("There is a tower with blocks of only black and blue color", True),
        ("there are 2 towers that contain at least 1 black block", True),
    ],
)
def test_of_towers(sentence: str, expected: bool) -> None:
    assert scenes.is_true(sentence, TOWERS) is expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("There are 3 black items", True),
        ("There is a box with 3 items of all 3 different colors", True),
        ("there is a box with only 2 items", True),
        ("There is a box with items of only one color", True),
        ("There is 1 box with only black items", True),
        ("there are 2 boxes with only black items", False),
        ("There is a black circle", True),
        ("There is a blue circle touching the edge", True),
        ("there is a black circle touching the edge", False),
        ("There is a black circle not touching any edge", True),
        ("There is a yellow triangle closely touching the bottom of a box", True),
        ("there is a black square touching a corner", True),
        ("Each box has at least 1 black item", False),
        ("There are yellow items in each box", False),
        ("There is a box with a blue circle and a yellow square", True),
        ("There is a box with a blue circle, a yellow square and two black items", False),
        ("there is 1 blue circle and 1 black circle", True),
        ("one of the grey box contains exactly two objects", True),
        ("There is no blue triangle", True),
        ("There is a tower with 2 blocks", False),
    ],
)
def test_of_items(sentence: str, expected: bool) -> None:
    assert scenes.is_true(sentence, ITEMS) is expected


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "the sky is blue",
        "there are two towers with the same height",
        "there is a box with 4 items and a black one on top",
    ],
)
def test_what_is_not_understood_is_not_judged(sentence: str) -> None:
    assert scenes.is_true(sentence, ITEMS) is None


def test_the_datas_structure_is_read_from_the_lowest_on() -> None:
    box = [
        {"y_loc": 59, "type": "square", "color": "Yellow", "x_loc": 40, "size": 20},
        {"y_loc": 80, "type": "square", "color": "#0099ff", "x_loc": 40, "size": 20},
    ]
    scene = scenes.scene_of([box, box, box])
    assert [item.color for item in scene[0]] == ["blue", "yellow"]
    assert scenes.is_towers(scene)
    assert not scenes.is_towers(ITEMS)


WORDS = [
    "there",
    "is",
    "are",
    "a",
    "1",
    "two",
    "only",
    "exactly",
    "no",
    "tower",
    "block",
    "box",
    "with",
    "black",
    "blue",
    "at",
    "the",
    "top",
    "base",
    "and",
    "item",
    "of",
    "color",
]


@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_any_sentence_is_judged_or_not_without_an_error(words: list[str]) -> None:
    for scene in (TOWERS, ITEMS, ((), (), ())):
        assert scenes.is_true(" ".join(words), scene) in (True, False, None)
