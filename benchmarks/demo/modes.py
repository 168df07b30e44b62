"""The demo's first chapters: each sequence mode on real input."""

from __future__ import annotations

import cellar_client
import numpy as np

from benchmarks import samples
from benchmarks.demo.story import CheckError, Story, drawing, rmse

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def one_to_one(client: cellar_client.Client, story: Story) -> None:
    story.chapter("1  one-to-one: which digit is it? (RNN, one step)")
    images, truth = samples.digits()
    answers = [client.predict("digits", image[None]).label for image in images[:4]]
    for lines in zip(*(drawing(image) for image in images[:4]), strict=True):
        story.say("   ".join(lines))
    story.say("   ".join(f"answer {a}, truth {t}".ljust(16) for a, t in zip(answers, truth[:4], strict=True)))
    many = client.predict_many("digits", [image[None] for image in images])
    right = sum(str(m.label) == str(t) for m, t in zip(many, truth, strict=True))
    story.check(right >= 0.9 * len(images), f"{right} of {len(images)} held-out images are read right")
    story.note("one-to-one", f"{len(images)} images", f"{right} right")


def many_to_one(client: cellar_client.Client, story: Story) -> None:
    story.chapter("2  many-to-one: is the review good? (GRU, the answer after each word)")
    row = min((s for s in samples.sentences() if len(s["text"].split()) >= 8), key=lambda s: len(s["text"]))
    with client.session("sentiment") as session:
        last = 0.5
        for word in row["text"].split():
            answer = np.asarray(session.step(word + " "), np.float32).reshape(-1, 2)
            if len(answer):
                last = float(answer[-1, 1])
            story.say(f"  {word:<16} {'█' * round(30 * last):<30} positive {last:.2f}")
    whole = client.predict("sentiment", row["text"])
    difference = abs(float(np.asarray(whole).reshape(-1, 2)[-1, 1]) - last)
    story.say(f"  whole text at once: {whole.label} (truth: {row['label']})")
    story.check(difference < 1e-5, f"word by word equals the whole text (difference {difference:.1e})")
    story.note("many-to-one", f"{len(row['text'].split())} words", f"{whole.label}, truth {row['label']}")


def one_to_many(client: cellar_client.Client, story: Story) -> None:
    story.chapter("3  one-to-many: a sentence from a dialogue act (LSTM, drawn with a seed)")
    act = samples.acts()[0]

    def text(seed: int) -> str:
        return "".join(token.text for token in client.generate("describe", act, seed=seed, temperature=0.8))

    story.say(f"  {act}")
    first, again, other = text(7), text(7), text(8)
    story.say(f"  seed 7: {first}\n  seed 7: {again}\n  seed 8: {other}")
    story.check(first == again and first != "", "the same seed gives the same sentence")
    story.note("one-to-many", act[:40], f"{len(first.split())} words, same twice")


def many_to_many(client: cellar_client.Client, story: Story) -> None:
    story.chapter("4  many-to-many: the next hour's PM2.5 in Beijing (LSTM, an answer every hour)")
    hours = samples.hours()
    guess = np.asarray(client.predict("forecast", hours)).reshape(-1)[:-1]
    truth, known = hours[1:, 0], hours[1:, 1] == 0
    for i in range(200, 206):
        story.say(f"  hour {i + 1}: said {guess[i]:6.1f}, was {truth[i]:6.1f} ug/m3")
    ours, naive = rmse(guess[known], truth[known]), rmse(hours[:-1, 0][known], truth[known])
    story.check(ours < naive, f"RMSE over {int(known.sum())} hours {ours:.2f}, last value {naive:.2f}")
    story.note("many-to-many", f"{len(hours)} hours", f"RMSE {ours:.2f}, last value {naive:.2f}")


def sound(client: cellar_client.Client, story: Story) -> None:
    story.chapter("5  sound as it is said: which digit? (LSTM over log-mel bands; 100 ms of 16-bit samples at a time)")
    labels = client.model("spoken-digits").manifest.labels
    samples_of = {digit: samples.spoken(digit) for digit in range(10)}
    right = 0
    for digit, pcm in samples_of.items():
        heard = []
        with client.session("spoken-digits") as session:
            for start in range(0, len(pcm), 800):
                answer = session.step(pcm[start : start + 800])
                heard += [labels[int(answer[-1].argmax())]] if len(answer) else []
        whole = client.predict("spoken-digits", pcm)
        if str(whole.label) != heard[-1]:
            raise CheckError(f"in pieces {heard[-1]} is heard, at once {whole.label}")
        right += heard[-1] == DIGITS[digit]
        if digit < 4:
            story.say(f"  said {digit}: after each 100 ms {' '.join(heard)}")
    story.check(right >= 9, f"{right} of 10 are heard right, in pieces as at once")
    story.note("sound", "10 recordings, 100 ms a piece", f"{right} right")


def translation(client: cellar_client.Client, story: Story) -> None:
    story.chapter("6  encoder-decoder: English in, French out (GRUs with attention; a beam is a forked generation)")
    pairs = samples.translations()
    for english, _ in pairs[4:8]:
        greedy = "".join(token.text for token in client.generate("translate", english))
        beams = cellar_client.beam_search(client, "translate", english, num_beams=4)
        story.say(f"  {english}\n    greedy:  {greedy}\n    4 beams: {beams[0].text}")
        one = cellar_client.beam_search(client, "translate", english, num_beams=1)[0]
        if one.text != greedy:
            raise CheckError(f"one beam is not the greedy way: {one.text}")
    story.check(True, "one beam says what greedy generation says")
    story.note("encoder-decoder", "4 sentences", "translated, greedy and by 4 beams")
