"""Beam search: several ways on at once, each a generation of its own on the server, made by forking."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellar_client.aio import AsyncClient
from cellar_client.client import Client
from cellar_client.drivers import run
from cellar_client.errors import SessionNotFound
from cellar_client.messages import Token, mint_id
from cellar_client.verbs import Verbs


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

    @property
    def drawn(self) -> int:
        """What its session emitted behind `ids`."""
        return self.alternatives[0][0]


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
    return run(_Search(client, model, condition, num_beams, version).beams(max_steps))


async def async_beam_search(
    client: AsyncClient,
    model: str,
    condition: str | bytes | np.ndarray = "",
    *,
    num_beams: int = 4,
    max_steps: int = 60,
    version: int = 0,
) -> list[Beam]:
    """`beam_search`, awaited."""
    return await _Search(client, model, condition, num_beams, version).beams(max_steps)


class _Search:
    """One beam search, however its client is driven."""

    def __init__(
        self,
        client: Verbs[Any, Any, Any],
        model: str,
        condition: str | bytes | np.ndarray,
        num_beams: int,
        version: int,
    ) -> None:
        self._client = client
        self._model, self._version = model, version
        self._condition = condition
        self._num_beams = num_beams
        self._alive: set[str] = set()

    async def beams(self, max_steps: int) -> list[Beam]:
        """The best beams; no session of the search stays open."""
        manifest = (await self._client._model(self._model, self._version)).manifest
        assert manifest is not None
        most = max(1, min(max_steps, manifest.generation.max_steps - 1))
        try:
            done = await self._search(manifest.generation.end_id, most)
        finally:
            for session in list(self._alive):
                await self._close(session)
        return sorted(done, key=lambda beam: -beam.score)[: self._num_beams]

    async def _search(self, end_id: int, most: int) -> list[Beam]:
        done: list[Beam] = []
        ways = [await self._step(mint_id(), (), "", 0.0, None)]
        while ways and len(done) < self._num_beams:
            found = [(way.total + value, way, id) for way in ways for id, value in way.alternatives]
            found = sorted(found, key=lambda each: -each[0])[: self._num_beams]
            for total, way, id in found:
                if id == end_id:
                    done.append(Beam(way.text, way.ids, total / (len(way.ids) + 1), True))
            grown: list[_Way] = []
            for way in ways:
                on = [(total, id) for total, source, id in found if source is way and id != end_id]
                # what was drawn comes last: it needs no fork, and to go on with it moves what the others are forked of
                on.sort(key=lambda each: each[1] == way.drawn)
                if on and len(way.ids) >= most:
                    done.append(Beam(way.text, way.ids, way.total / len(way.ids), False))
                    on = []
                for i, (total, id) in enumerate(on):
                    grown.append(await self._grow(way, id, total, is_last=i == len(on) - 1))
                if way.session not in {each.session for each in grown}:
                    await self._close(way.session)
            ways = grown
        return done

    async def _grow(self, way: _Way, id: int, total: float, *, is_last: bool) -> _Way:
        session = way.session
        if not (is_last and id == way.drawn):  # else it stands there already
            session = (await self._client._fork_session(way.session)).id
        return await self._step(session, (*way.ids, id), way.text, total, id)

    async def _step(self, session: str, ids: tuple[int, ...], text: str, total: float, next_id: int | None) -> _Way:
        self._alive.add(session)
        # where an emission is chosen the session holds it, and takes the step behind it
        held = 0 if next_id is None else len(ids) - 1
        generation = self._client.generate(
            self._model,
            self._condition,
            session_id=session,
            position=held,
            max_steps=len(ids) + 1,
            temperature=0.0,  # the likeliest is what `drawn` says
            num_alternatives=self._num_beams,
            next_id=next_id,
            version=self._version,
        )
        tokens: list[Token] = []
        while (token := await generation._token()) is not None:
            tokens.append(token)
        chosen = "".join(token.text for token in tokens if token.position < len(ids))
        return _Way(session, ids, text + chosen, total, generation.alternatives)

    async def _close(self, session: str) -> None:
        self._alive.discard(session)
        with suppress(SessionNotFound):
            await self._client._close_session(session)
