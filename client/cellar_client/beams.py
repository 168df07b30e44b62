"""Beam search: several ways on at once, each a generation of its own on the server, made by forking."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from cellar_proto.v1 import sessions_pb2

from cellar_client.client import Client
from cellar_client.errors import SessionNotFound
from cellar_client.messages import mint_id, mint_token


@dataclass(frozen=True)
class Beam:
    """A finished way. score: mean natural log-probability of its emissions, the end counted; is_ended: the model ended
    it, not the limit of steps."""

    text: str
    ids: tuple[int, ...]
    score: float
    is_ended: bool


@dataclass(frozen=True)
class _Way:
    """ids: emissions chosen so far, with their log-probability `total` and their text; session: a generation that holds
    them and took one step more, which could have emitted `alternatives`, and emitted the first of them."""

    session: str
    ids: tuple[int, ...]
    text: str
    total: float
    alternatives: list[tuple[int, float]]


def beam_search(
    client: Client,
    model: str,
    condition: str | bytes | np.ndarray = "",
    *,
    num_beams: int = 4,
    max_steps: int = 60,
    version: int = 0,
) -> list[Beam]:
    """The `num_beams` best finished emissions that a beam search finds, the best one first.

    In each round every beam has taken one step, and the `num_beams` best ways on among all beams' alternatives are
    chosen. A way is a session: where several lead on from one, it is forked, and each fork is told its next emission.
    The sessions are closed at the end. CellarError of the calls.
    """
    manifest = client.model(model, version).manifest
    assert manifest is not None
    end_id = manifest.generation.end_id
    most = max(1, min(max_steps, manifest.generation.max_steps - 1))
    alive: set[str] = set()

    def step(session: str, ids: tuple[int, ...], text: str, total: float, next_id: int | None) -> _Way:
        alive.add(session)
        # where an emission is chosen the session holds it, and takes the step behind it
        held = 0 if next_id is None else len(ids) - 1
        generation = client.generate(
            model,
            condition,
            session_id=session,
            position=held,
            max_steps=len(ids) + 1,
            num_alternatives=num_beams,
            next_id=next_id,
            version=version,
        )
        tokens = list(generation)
        chosen = "".join(token.text for token in tokens if token.position < len(ids))
        return _Way(session, ids, text + chosen, total, generation.alternatives)

    def close(session: str) -> None:
        alive.discard(session)
        with suppress(SessionNotFound):
            client.close_session(session)

    def grow(way: _Way, id: int, total: float, *, is_last: bool) -> _Way:
        session = way.session
        if not (is_last and id == way.alternatives[0][0]):  # else it stands there already
            session = _fork(client, way.session)
        return step(session, (*way.ids, id), way.text, total, id)

    done: list[Beam] = []
    try:
        ways = [step(mint_id(), (), "", 0.0, None)]
        while ways and len(done) < num_beams:
            found = [(way.total + value, way, id) for way in ways for id, value in way.alternatives]
            found = sorted(found, key=lambda each: -each[0])[:num_beams]
            for total, way, id in found:
                if id == end_id:
                    done.append(Beam(way.text, way.ids, total / (len(way.ids) + 1), True))
            grown: list[_Way] = []
            for way in ways:
                on = [(total, id) for total, source, id in found if source is way and id != end_id]
                # what was drawn comes last: it needs no fork, and to go on with it moves what the others are forked of
                on.sort(key=lambda each: each[1] == way.alternatives[0][0])
                if on and len(way.ids) >= most:
                    done.append(Beam(way.text, way.ids, way.total / len(way.ids), False))
                    on = []
                grown += [grow(way, id, total, is_last=i == len(on) - 1) for i, (total, id) in enumerate(on)]
                if way.session not in {each.session for each in grown}:
                    close(way.session)
            ways = grown
    finally:
        for session in list(alive):
            close(session)
    return sorted(done, key=lambda beam: -beam.score)[:num_beams]


def _fork(client: Client, session: str) -> str:
    request = sessions_pb2.ForkSessionRequest(id=session, new_id=mint_id(), request_token=mint_token())
    return str(client._ask("sessions", "ForkSession", request).id)
