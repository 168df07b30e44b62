"""spoken-digits: what is heard does not depend on loudness, and the committed artefact hears sound as it arrives."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import cellar_client
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import spoken_digits  # noqa: E402
from cellar_models.export import export  # noqa: E402

ZOO = Path(__file__).parents[2] / "models" / "zoo"
DATA = Path(os.environ.get("CELLAR_DATA", "data"))
pytestmark = pytest.mark.filterwarnings(
    # TorchScript works and is said to be on its way out; it is part of what an artefact promises
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)


def _sound(digit: int) -> np.ndarray:
    with wave.open(str(ZOO / "spoken-digits" / "1" / "samples" / f"{digit}.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_an_untrained_network_exports_and_verifies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert export(spoken_digits.SpokenDigits(8, 2), tmp_path).parent.name == "spoken-digits"


def test_a_tone_lies_in_its_band() -> None:
    network = spoken_digits.SpokenDigits(8, 2)
    for hertz in (300.0, 1000.0, 3000.0):
        tone = 8000 * np.sin(2 * np.pi * hertz * np.arange(10 * spoken_digits.FRAME) / spoken_digits.SAMPLE_RATE)
        x = torch.from_numpy(tone.astype(np.int16).reshape(1, 10, spoken_digits.FRAME))
        heard, _ = network.features(x, torch.zeros(1, spoken_digits.FRAME + 2))
        loudest = int(heard[0, -1, : spoken_digits.BANDS].argmax())
        bins = np.flatnonzero(spoken_digits.mel_bands()[:, loudest]) * spoken_digits.SAMPLE_RATE / 256
        assert bins.min() - 32 < hertz < bins.max() + 32


def test_loudness_does_not_matter() -> None:
    network = spoken_digits.SpokenDigits(8, 2)
    noise = np.random.default_rng(0).normal(size=(1, 12, spoken_digits.FRAME)) * 2000
    start = torch.zeros(1, spoken_digits.FRAME + 2)
    heard = [network.features(torch.from_numpy((noise * k).astype(np.int16)), start)[0] for k in (1.0, 4.0)]
    # sixteen times the power is 2.8 in logarithms; what is left comes of the floor, in bands that happen to be still
    assert float((heard[0] - heard[1]).abs().mean()) < 0.01


@pytest.mark.skipif(not (DATA / "speech_fsdd").is_dir(), reason="CELLAR_DATA holds no speech_fsdd")
def test_the_data_is_all_there() -> None:
    recordings = spoken_digits.load(DATA)
    assert len(recordings.sounds) == 3000
    assert int((recordings.index < 5).sum()) == 300
    assert np.bincount(recordings.digit).tolist() == [300] * 10


def test_the_committed_artefact_hears_digits(client: cellar_client.Client) -> None:
    answers = client.predict_many("spoken-digits", [_sound(digit) for digit in range(10)])
    assert sum(answer.label == word for answer, word in zip(answers, spoken_digits.WORDS, strict=True)) >= 9


def test_sound_may_come_in_pieces_of_any_size(client: cellar_client.Client) -> None:
    sound = _sound(7)
    whole = np.asarray(client.predict("spoken-digits", sound))
    sizes = np.random.default_rng(0).integers(1, 700, 100)
    with client.session("spoken-digits") as session:
        pieces = [np.asarray(session.step(part)) for part in np.split(sound, np.cumsum(sizes)) if len(part)]
    last = [piece for piece in pieces if len(piece)][-1]
    np.testing.assert_allclose(last.reshape(-1, 10)[-1], whole.reshape(-1, 10)[-1], rtol=0, atol=1e-5)
