"""What is heard is what is written: pitches and lengths in MIDI, the right frequency in WAV."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the models extra is not installed")

import mido
from cellar_models import rendering, tunes
from cellar_models.cli import main

TUNE = 'X:1\nT:A jig\nR:jig\nM:6/8\nL:1/8\nK:D\n|:"D"A3 d3|"A"c6:|\n'


def test_midi_holds_the_notes_twice_where_they_repeat() -> None:
    file = rendering.to_midi(tunes.parse(TUNE), tempo=120)
    head, melody, chords = file.tracks
    assert [each.note for each in melody if each.type == "note_on"] == [69, 74, 73] * 2
    assert {each.note % 12 for each in chords if each.type == "note_on"} == {2, 6, 9, 1, 4}
    assert next(each for each in head if each.type == "time_signature").numerator == 6
    # four bars of six eighths, at four eighths a second
    assert file.length == pytest.approx(6.0)


def test_a_string_sounds_at_its_pitch() -> None:
    sound = rendering.pluck(69, 1.0)
    loudest = np.argmax(np.abs(np.fft.rfft(sound))) * rendering.RATE_HZ / len(sound)
    assert loudest == pytest.approx(440, abs=2)
    assert np.abs(sound[-5:]).max() < 0.01 * np.abs(sound).max()


def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jig.abc").write_text(TUNE)
    assert main(["render", str(tmp_path / "jig.abc"), "--tempo", "120"]) == 0
    with wave.open(str(tmp_path / "jig.wav")) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(7.5, abs=0.1)
    assert mido.MidiFile(str(tmp_path / "jig.mid")).length == pytest.approx(6.0)
    (tmp_path / "none.abc").write_text("no tune")
    assert main(["render", str(tmp_path / "none.abc")]) == 1
    assert "is not understood" in capsys.readouterr().err
    assert main(["render", str(tmp_path / "jig.abc"), "--tempo", "0.001"]) == 1


def test_too_long_a_tune_is_refused() -> None:
    with pytest.raises(ValueError, match="900 s"):
        rendering.to_samples(tunes.parse("M:4/4\nL:1/2\nK:C\n" + "A64|" * 200), tempo=60)
