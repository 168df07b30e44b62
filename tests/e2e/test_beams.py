"""Beam search by forked generations, through the real client and server."""

import cellar_client
import numpy as np
import pytest

from benchmarks import samples


def mean_of(tokens: list[cellar_client.Token], end: float) -> float:
    return (sum(token.log_probability for token in tokens) + end) / (len(tokens) + 1)


def test_one_beam_is_greedy(client):
    act = samples.acts()[0]
    (beam,) = cellar_client.beam_search(client, "describe", act, num_beams=1)
    generation = client.generate("describe", act, num_alternatives=1)
    tokens = list(generation)
    assert beam.ids == tuple(token.id for token in tokens)
    assert beam.text == "".join(token.text for token in tokens)
    assert beam.score == pytest.approx(mean_of(tokens, generation.alternatives[0][1]), abs=1e-5)


def test_the_best_beam_is_what_its_emissions_say_and_no_session_stays(client):
    open_before = client.model("describe").counters["sessions_live"]
    for act in samples.acts()[:3]:
        beams = cellar_client.beam_search(client, "describe", act, num_beams=4)
        assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
        assert len({beam.ids for beam in beams}) == len(beams) == 4
        assert all(beam.is_ended for beam in beams)
        best = beams[0]
        # the same emissions, each chosen on the way, have the log-probabilities that the score says
        total = 0.0
        session = cellar_client.messages.mint_id()
        for at, id in enumerate((*best.ids, None)):
            step = client.generate(
                "describe", act, session_id=session, position=at, max_steps=at + 1, num_alternatives=64
            )
            list(step)
            chosen = dict(step.alternatives)
            end = client.model("describe").manifest.generation.end_id
            total += chosen[end if id is None else id]
            if id is not None:
                forked = client.fork_session(session).id
                client.close_session(session)
                session = forked
                list(client.generate("describe", act, session_id=session, position=at, max_steps=at + 1, next_id=id))
        client.close_session(session)
        assert best.score == pytest.approx(total / (len(best.ids) + 1), abs=1e-4)
    assert client.model("describe").counters["sessions_live"] == open_before


async def test_an_awaited_search_finds_the_same(client):
    act = samples.acts()[1]
    async with cellar_client.AsyncClient(client._links.addresses) as awaited:
        found = await cellar_client.async_beam_search(awaited, "describe", act, num_beams=3)
        assert await awaited.sessions("describe") == []
    assert found == cellar_client.beam_search(client, "describe", act, num_beams=3)


def test_a_search_stops_at_its_limit(client):
    beams = cellar_client.beam_search(client, "describe", samples.acts()[0], num_beams=2, max_steps=3)
    assert all(len(beam.ids) == 3 and not beam.is_ended and np.isfinite(beam.score) for beam in beams)
