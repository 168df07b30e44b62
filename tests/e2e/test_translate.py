"""The model that translates, as its user has it: text in, text out, beams by forks."""

import threading

import cellar_client
import pytest
from cellar_client.drivers import run
from cellar_proto.v1.sessions_pb2 import ExportSessionRequest

from benchmarks import samples


def translated(client: cellar_client.Client, english: str, **options: object) -> str:
    return "".join(token.text for token in client.generate("translate", english, **options))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return samples.translations()[:60]


def test_a_sentence_in_a_sentence_out(client, pairs):
    found = [translated(client, english) for english, _ in pairs]
    words = [set(text.lower().split()) for text in found]
    wanted = [set(french.lower().split()) for _, french in pairs]
    shared = sum(len(a & b) for a, b in zip(words, wanted, strict=True)) / sum(map(len, wanted))
    others = sum(len(a & b) for a, b in zip(words, wanted[1:] + wanted[:1], strict=True)) / sum(map(len, wanted))
    assert shared > 0.4 > 2 * others
    # white space and case of the English are nothing
    assert translated(client, f" {pairs[0][0].upper()}\n") == found[0]


def test_many_at_once_get_what_each_gets_alone(client, server, pairs):
    alone = [[(token.id, token.log_probability) for token in client.generate("translate", s)] for s, _ in pairs]
    beside: dict[int, list[tuple[int, float]]] = {}

    def translate(numbers: range) -> None:
        with cellar_client.Client(server.address) as other:
            for i in numbers:
                tokens = other.generate("translate", pairs[i][0])
                beside[i] = [(token.id, token.log_probability) for token in tokens]

    threads = [threading.Thread(target=translate, args=(range(k, len(pairs), 6),)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [beside[i] for i in range(len(pairs))] == alone


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"", "EmptyInput"), (b" \t", "EmptyInput"), (b"caf\xe9", "InvalidText"), (b"go " * 30, "TooLarge")],
)
def test_what_is_no_sentence_is_refused(client, text, reason):
    with pytest.raises(cellar_client.CellarError) as caught:
        list(client.generate("translate", text))
    assert type(caught.value).__name__ == reason


def test_a_kept_translation_shows_what_it_attends_to_and_is_forked(client, pairs):
    english = pairs[0][0]
    list(client.generate("translate", english, session_id="kept", max_steps=2))
    parts = cellar_client.messages.state_parts(
        run(client._ask("sessions", "ExportSession", ExportSessionRequest(id="kept"))).SerializeToString()
    )
    length = int(parts["source_length"][0])
    assert 2 <= length <= len(parts["source"])
    assert parts["source"][:length].any(axis=1).all()
    assert not parts["source"][length:].any()
    copy = client.fork_session("kept").id
    rest = [
        [token.id for token in client.generate("translate", english, session_id=id, position=2, max_steps=60)]
        for id in ("kept", copy)
    ]
    assert rest[0] == rest[1] == [token.id for token in client.generate("translate", english)][2:]
    for id in ("kept", copy):
        client.close_session(id)


def test_beams_are_at_least_as_likely_as_the_greedy_sentence(client, pairs):
    better = 0
    for english, _ in pairs[:12]:
        greedy = client.generate("translate", english, num_alternatives=1)
        tokens = list(greedy)
        if greedy.finish != "end":
            continue  # it repeats itself up to the limit of steps
        score = sum(token.log_probability for token in tokens) + greedy.alternatives[0][1]
        (alone,) = cellar_client.beam_search(client, "translate", english, num_beams=1)
        assert alone.text == "".join(token.text for token in tokens)
        assert alone.score == pytest.approx(score / (len(tokens) + 1), abs=1e-4)
        best = cellar_client.beam_search(client, "translate", english, num_beams=4)[0]
        better += best.score > alone.score + 1e-6
    assert better > 0
