"""A model of characters as its users have it: surprisal of a text that streams in, and text from a prompt."""

from __future__ import annotations

import os
import subprocess
import sys

import cellar_client
import numpy as np
import pytest
from cellar_client import Surprisal

from benchmarks import samples

NAMES = ["chars-en", "chars-ru"]
# Nats a character that the sample texts are below: what the n-grams of the data's descriptions reach on all of it.
NGRAM = {"chars-en": 1.669, "chars-ru": 1.462}
PROMPTS = {"chars-en": "ROMEO:\nI ", "chars-ru": "Левин "}


@pytest.mark.parametrize("name", NAMES)
def test_a_text_streams_in_and_each_character_has_its_nats(client: cellar_client.Client, name: str) -> None:
    text = samples.text(name)
    data = text.encode()
    with client.session(name) as session:
        reader = Surprisal(session, client.model(name))
        pieces = [data[at : at + 7] for at in range(0, len(data), 7)]  # of two bytes a letter: halves too
        found = [each for piece in pieces for each in reader.take(piece)]
        assert session.position == len(data) + 1
    assert "".join(character for character, _ in found) == text
    nats = np.array([each for _, each in found])
    assert nats.mean() < NGRAM[name]
    whole = np.asarray(client.predict(name, "\n" + text))
    places = [client.model(name).output_names.index(c) for c in text]
    np.testing.assert_allclose(nats, -whole[np.arange(len(places)), places], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_goes_on_greedily_as_the_scores_say(client: cellar_client.Client, name: str) -> None:
    generation = client.generate(name, PROMPTS[name], max_steps=20)
    tokens = list(generation)
    assert generation.finish == "max_steps"
    assert len(generation.text) == 20
    scores = np.asarray(client.predict(name, "\n" + PROMPTS[name] + generation.text))
    guesses = scores[len(PROMPTS[name]) : -1]
    assert [token.id for token in tokens] == guesses.argmax(axis=1).tolist()
    np.testing.assert_allclose([token.log_probability for token in tokens], guesses.max(axis=1), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_draws_the_same_text_again_and_a_stop_ends_it(client: cellar_client.Client, name: str) -> None:
    def drawn(**options: object) -> str:
        generation = client.generate(name, PROMPTS[name], temperature=0.8, max_steps=200, **options)
        return "".join(token.text for token in generation)

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert drawn(seed=1, stop=[" "]) == drawn(seed=1).partition(" ")[0] + " "


def test_an_unknown_character_is_survived(client: cellar_client.Client) -> None:
    with client.session("chars-en") as session:
        reader = Surprisal(session, client.model("chars-en"))
        nats = dict(reader.take("The 日 king"))
    assert nats["日"] > 5
    assert np.isfinite(list(nats.values())).all()


def test_the_terminal_scores_and_generates(server) -> None:  # type: ignore[no-untyped-def]
    def cellar(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cellar_client.cli", "--server", server.address, *arguments],
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            timeout=60,
            check=True,
        )

    scored = cellar("surprisal", "chars-ru", given="Все смешалось")
    assert [line.partition("\t")[2] for line in scored.stdout.splitlines()] == [repr(c) for c in "Все смешалось"]
    assert "13 characters" in scored.stderr
    made = cellar("generate", "chars-en", "ROMEO:", "--temperature", "0.8", "--seed", "3", "--max-steps", "40")
    assert len(made.stdout) == 41
