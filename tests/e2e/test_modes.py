"""The four modes on real input, through the real client and server."""

import threading

import cellar_client
import numpy as np
from cellar_proto.acts import parse, special

from benchmarks import samples


def test_one_to_one_reads_digits(client):
    images, truth = samples.digits()
    answers = client.predict_many("digits", [image[None] for image in images])
    right = [str(answer.label) == str(label) for answer, label in zip(answers, truth, strict=True)]
    assert np.mean(right) > 0.9


def test_many_to_one_judges_sentences(client):
    rows = samples.sentences()[:200]
    answers = client.predict_many("sentiment", [row["text"] for row in rows])
    assert np.mean([answer.label == row["label"] for answer, row in zip(answers, rows, strict=True)]) > 0.6


def test_many_to_many_beats_the_last_value(client):
    hours = samples.hours()
    guess = np.asarray(client.predict("forecast", hours)).reshape(-1)
    assert len(guess) == len(hours)
    known = hours[1:, 1] == 0
    truth = hours[1:, 0][known]
    ours = np.mean((guess[:-1][known] - truth) ** 2)
    assert ours < np.mean((hours[:-1, 0][known] - truth) ** 2)


def test_predict_many_of_mixed_lengths_equals_one_by_one(client):
    hours = samples.hours()
    sequences = [hours[at : at + length] for at, length in enumerate([1, 2, 3, 7, 16, 33, 100, 5, 1, 60])]
    together = client.predict_many("forecast", sequences)
    for sequence, answer in zip(sequences, together, strict=True):
        alone = np.asarray(client.predict("forecast", sequence))
        np.testing.assert_allclose(np.asarray(answer), alone, rtol=1e-5, atol=1e-4)


def text_of(client: cellar_client.Client, act: str, seed: int) -> str:
    return "".join(token.text for token in client.generate("describe", act, seed=seed, temperature=0.9))


def test_acts_of_every_domain_say_all_their_values(client):
    acts = samples.acts()
    assert {dict(parse(act)[1])["domain"] for act in acts} == {"restaurant", "hotel", "laptop", "tv"}
    for act in acts:
        text = "".join(token.text for token in client.generate("describe", act))
        assert text
        assert "<" not in text
        for slot, value in parse(act)[1]:
            assert slot == "domain" or special(value) is not None or value in text, (act, text)


def test_same_seed_gives_the_same_text_beside_twenty_others(client, server):
    acts = samples.acts()
    alone = text_of(client, acts[0], 7)
    assert alone
    failures: list[BaseException] = []
    stop = threading.Event()

    def generate(number: int) -> None:
        try:
            with cellar_client.Client(server.address) as other:
                text_of(other, acts[number % len(acts)], number)
                while not stop.is_set():
                    text_of(other, acts[number % len(acts)], number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    try:
        beside = [text_of(client, acts[0], 7) for _ in range(3)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert beside == [alone] * 3
