"""What a sentence says of a scene, and whether that is true."""

from __future__ import annotations

from functools import lru_cache

from cellar_models.scenes.boxes import of_boxes, of_items
from cellar_models.scenes.scene import Scene
from cellar_models.scenes.towers import of_stacks, of_towers
from cellar_models.scenes.words import Truth, plain


@lru_cache(maxsize=4096)
def meaning(sentence: str) -> Truth | None:
    """What a sentence says, as a test of a scene; None where its form is not understood.

    A bare number means exactly so many, "a" means at least one. A scene that lacks what the sentence speaks of (towers
    where there are none) makes it false.
    """
    text = plain(sentence)
    for form in (of_towers, of_stacks, of_boxes, of_items):
        found = form(text)
        if found is not None:
            return found
    return None


def is_true(sentence: str, scene: Scene) -> bool | None:
    """Whether a sentence is true of a scene; None where its form is not understood."""
    test = meaning(sentence)
    return None if test is None else test(scene)
