"""melody, caption and next-frame as their users call them, through the real client and server."""

from __future__ import annotations

import itertools
import json

import cellar_client
import numpy as np
import pytest
from cellar_client import errors

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import rendering, scenes, tunes

from benchmarks.serving import ZOO


def shipped(name: str) -> pytest.MarkDecorator:
    """Skips where the zoo holds no artefact of that name yet."""
    return pytest.mark.skipif(not (ZOO / name / "1" / "manifest.json").is_file(), reason=f"{name} is not in the zoo")


def tune_of(client: cellar_client.Client, genre: str, seed: int) -> str:
    return "".join(token.text for token in client.generate("melody", genre, seed=seed, temperature=0.8, top_p=0.95))


@shipped("melody")
def test_a_genre_becomes_a_tune_that_can_be_played(client: cellar_client.Client) -> None:
    made = {genre: tune_of(client, genre, 5) for genre in ("reel", "jig", "hornpipe", "waltz")}
    assert tune_of(client, "jig", 5) == made["jig"]
    assert tune_of(client, "jig", 6) != made["jig"]
    read = []
    for genre, text in made.items():
        assert text.startswith(f"X:1\nT:{genre.capitalize()}\n")
        try:
            read.append(tunes.parse(text))
        except tunes.TuneError:
            continue
    assert len(read) >= 3
    assert all(rendering.to_midi(tune).length > 5 for tune in read)


@shipped("melody")
def test_a_tune_is_drawn_as_suits_the_model_where_nothing_is_said(client: cellar_client.Client) -> None:
    said = tune_of(client, "jig", 5)
    assert "".join(token.text for token in client.generate("melody", "jig", seed=5)) == said
    likeliest = "".join(token.text for token in client.generate("melody", "jig", seed=5, temperature=0))
    assert likeliest != said
    with pytest.raises(errors.EmptyInput, match="one of reel, jig, hornpipe, waltz"):
        list(client.generate("melody"))


@shipped("melody")
def test_a_genre_that_is_not_known_is_refused_by_name(client: cellar_client.Client) -> None:
    with pytest.raises(errors.InvalidCondition, match="reel, jig, hornpipe, waltz"):
        tune_of(client, "tango", 1)


@shipped("caption")
def test_a_picture_becomes_a_sentence(client: cellar_client.Client) -> None:
    folder = ZOO / "caption" / "1" / "samples"
    with np.load(folder / "pictures.npz") as file:
        pictures = file["pictures"]
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    said = ["".join(token.text for token in client.generate("caption", picture)) for picture in pictures]
    found = [
        scenes.is_true(sentence, scenes.scene_of(row["structured_rep"]))
        for sentence, row in zip(said, rows, strict=True)
    ]
    turned = [scenes.is_true(said[i - 1], scenes.scene_of(row["structured_rep"])) for i, row in enumerate(rows)]
    assert sum(each is True for each in found) > sum(each is True for each in turned)
    with pytest.raises(cellar_client.CellarError):
        "".join(token.text for token in client.generate("caption", pictures[0, :25]))


@shipped("next-frame")
def test_frames_are_foreseen_and_fed_back(client: cellar_client.Client) -> None:
    with np.load(ZOO / "next-frame" / "1" / "samples" / "clips.npz") as file:
        clips = file["clips"].astype(np.float32) / 16
    ours, copied, alone = [], [], []
    for clip in clips:
        with client.session("next-frame") as session:
            for now, following in itertools.pairwise(clip[:20]):
                guess = np.asarray(session.step(now)).reshape(20, 20)
                ours.append(np.mean((guess - following) ** 2))
                copied.append(np.mean((now - following) ** 2))
            # from here on nothing is shown but what was foreseen
            guess = np.asarray(session.step(clip[19])).reshape(20, 20)
            for truth in clip[20:23]:
                alone.append((np.mean((guess - truth) ** 2), np.mean((clip[19] - truth) ** 2)))
                guess = np.asarray(session.step(guess)).reshape(20, 20)
            assert session.position == 23
    assert np.mean(ours) < 0.7 * np.mean(copied)
    assert np.mean([one for one, _ in alone]) < np.mean([other for _, other in alone])
