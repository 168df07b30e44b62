"""A tune as sound: a MIDI file of melody and chords, or plucked strings in a WAV file."""

from __future__ import annotations

import wave
from pathlib import Path

import mido
import numpy as np

from cellar_models.tunes import TICKS_PER_EIGHTH, Chord, Note, Tune

RATE_HZ = 22050
# Quarter notes a minute.
TEMPO = 170
# Harmonics of a plucked string; each dies away the sooner the higher it is.
NUM_HARMONICS, DECAY_PER_S = 10, 1.6
# General MIDI: violin, acoustic guitar.
_MELODY, _CHORDS = 40, 24
# No file is made of more sound than this.
MAX_S = 900.0


def to_midi(tune: Tune, tempo: float = TEMPO) -> mido.MidiFile:
    """Two tracks, melody and chords, with repeats played out; ticks of a quarter as in the tune."""
    notes, chords, length = tune.played()
    file = mido.MidiFile(ticks_per_beat=2 * TICKS_PER_EIGHTH)
    head = mido.MidiTrack(
        [
            mido.MetaMessage("track_name", name=tune.title, time=0),
            mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo), time=0),
            mido.MetaMessage("time_signature", numerator=tune.metre[0], denominator=tune.metre[1], time=0),
        ]
    )
    melody = [(note.start, note.length, note.pitch, 96) for note in notes]
    strums = [(at, long, pitch, 56) for at, long, pitch in _strums(tune, chords, length)]
    file.tracks += [head, _track(melody, 0, _MELODY), _track(strums, 1, _CHORDS)]
    return file


def _track(notes: list[tuple[int, int, int, int]], channel: int, program: int) -> mido.MidiTrack:
    """notes: (start, length, pitch, velocity)."""
    events = [(start, 1, pitch, velocity) for start, _, pitch, velocity in notes]
    events += [(start + length, 0, pitch, 0) for start, length, pitch, _ in notes]
    track, at = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program, time=0)]), 0
    # what ends comes before what starts, so that a pitch can be struck again at once
    for time, is_on, pitch, velocity in sorted(events):
        kind = "note_on" if is_on else "note_off"
        track.append(mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=time - at))
        at = time
    return track


def _strums(tune: Tune, chords: list[Chord], length: int) -> list[tuple[int, int, int]]:
    """(start, length, pitch) of every string of the chords, struck again at each beat until the next chord."""
    beat = TICKS_PER_EIGHTH * (3 if tune.metre[1] == 8 else 2)
    found = []
    for chord, end in zip(chords, [*(each.start for each in chords[1:]), length], strict=True):
        for at in range(chord.start, end, beat):
            found += [(at, min(beat, end - at), chord.root + step) for step in chord.intervals]
    return found


def to_samples(tune: Tune, tempo: float = TEMPO, rate_hz: int = RATE_HZ) -> np.ndarray:
    """int16 [samples]: melody and chords on plucked strings; ValueError where that is over MAX_S seconds."""
    notes, chords, length = tune.played()
    tick_s = 60.0 / tempo / (2 * TICKS_PER_EIGHTH)
    if length * tick_s > MAX_S:
        raise ValueError(f"the tune lasts {length * tick_s:.0f} s; {MAX_S:.0f} s are rendered")
    sound = np.zeros(int((length * tick_s + 1.5) * rate_hz), np.float64)
    struck = [(note, 1.0) for note in notes]
    struck += [(Note(*each), 0.22) for each in _strums(tune, chords, length)]
    for note, loudness in struck:
        # a string sounds on a little after its note
        string = loudness * pluck(note.pitch, note.length * tick_s + 0.35, rate_hz)
        at = int(note.start * tick_s * rate_hz)
        piece = sound[at : at + len(string)]
        piece += string[: len(piece)]
    return np.rint(sound / max(np.abs(sound).max(), 1e-9) * 30000).astype(np.int16)


def pluck(pitch: int, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """float64 [samples] of one string: the harmonics of a string that is plucked at a fifth of its length."""
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12)
    sound = np.zeros_like(t)
    for k in range(1, NUM_HARMONICS + 1):
        if k * frequency < rate_hz / 2:
            sound += np.sin(np.pi * k / 5) / k**2 * np.exp(-DECAY_PER_S * k * t) * np.sin(2 * np.pi * k * frequency * t)
    # without a click at either end
    edge = np.minimum(1.0, np.minimum(t / 0.003, (seconds - t) / 0.05))
    return sound * np.clip(edge, 0.0, 1.0)


def write_wav(samples: np.ndarray, path: Path, rate_hz: int = RATE_HZ) -> None:
    """One channel of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
