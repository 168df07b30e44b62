"""Tunes in ABC: from text to tokens, from tokens to notes with their times, and what is wrong with a tune."""

from cellar_models.tunes.notation import (
    ALTERATIONS,
    CHORD,
    SECTIONS,
    SEMITONES,
    TICKS_PER_EIGHTH,
    TOKEN,
    TuneError,
    length_of,
    signature,
    tokens_of,
)
from cellar_models.tunes.reader import parse
from cellar_models.tunes.tune import Chord, Note, Tune

__all__ = [
    "ALTERATIONS",
    "CHORD",
    "SECTIONS",
    "SEMITONES",
    "TICKS_PER_EIGHTH",
    "TOKEN",
    "Chord",
    "Note",
    "Tune",
    "TuneError",
    "length_of",
    "parse",
    "signature",
    "tokens_of",
]
