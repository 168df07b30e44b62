"""Scenes of three boxes with items, what a sentence says of one, and whether that is true.

The sentences are those that people wrote for NLVR (Suhr et al., ACL 2017). `meaning` understands the forms that are
frequent there; of all others it says that it does not, so that nothing is judged by guess.
"""

from cellar_models.scenes.scene import Box, Item, Scene, is_towers, scene_of
from cellar_models.scenes.sentences import is_true, meaning
from cellar_models.scenes.words import Truth, plain

__all__ = ["Box", "Item", "Scene", "Truth", "is_towers", "is_true", "meaning", "plain", "scene_of"]
