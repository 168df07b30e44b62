"""What a client can be asked for, however it is driven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from cellar_proto.v1 import sessions_pb2

from cellar_client.generation import GenerationCore, generate_request
from cellar_client.messages import SessionInfo, import_request, mint_id, mint_token, sampling, session_info
from cellar_client.models import ModelVerbs
from cellar_client.session import SessionCore
from cellar_client.stream import StreamCore

Session = TypeVar("Session", bound=SessionCore)
Generation = TypeVar("Generation", bound=GenerationCore)
Stream = TypeVar("Stream", bound=StreamCore)


class Verbs(ModelVerbs, Generic[Session, Generation, Stream]):
    """All that a client may be asked for. A driver names the classes of what is made."""

    _session_class: type[Session]
    _generation_class: type[Generation]
    _stream_class: type[Stream]

    def generate(
        self,
        model: str,
        condition: str | bytes | np.ndarray = "",
        *,
        seed: int | None = None,
        max_steps: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: Sequence[str] = (),
        session_id: str = "",
        position: int = 0,
        version: int = 0,
        num_alternatives: int = 0,
        next_id: int | None = None,
        timeout: float | None = None,
    ) -> Generation:
        """Emissions as they are made, to iterate over: tokens. condition: a text (a sentence, a prompt, a dialogue act,
        a name), or the numbers of a model without codec, an array of its dtype and shape.

        temperature 0 is greedy; what is None of temperature, top_k and top_p is as suits the model (its manifest says:
        greedy, if nothing else). The same seed gives the same emissions. A call that breaks is made again, and goes on
        where it was. With a session_id the server keeps the generation, and a later call goes on with it from
        `position`, the number of emissions already held; where max_steps ended it, a greater number lets it go on.
        num_alternatives: of how many of its last step's most likely ids the generation tells; next_id: of a fork, what
        emission number `position` is to be in place of what was drawn (see `beam_search`).
        """
        request = generate_request(
            model,
            condition,
            sampling(seed=seed, max_steps=max_steps, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop),
            session_id,
            position,
            version,
            num_alternatives,
            next_id,
        )
        return self._generation_class(self, request, timeout or self.timeout)

    async def _session(
        self,
        model: str,
        *,
        id: str = "",
        max_idle_s: float = 0.0,
        max_age_s: float = 0.0,
        grace_s: float | None = None,
        keep: bool = False,
        version: int = 0,
        timeout: float | None = None,
    ) -> Session:
        """A new session. As a context it is closed at the end, unless `keep`. Limits in seconds, 0: the server's.

        grace_s: how long it outlives this client's connection, 0 for not at all; None: as long as its limits allow.
        """
        codec = await self._codec(model, version)
        request = sessions_pb2.OpenSessionRequest(
            model=model,
            version=version,
            id=id or mint_id(),
            options=sessions_pb2.SessionOptions(max_idle_s=max_idle_s, max_age_s=max_age_s, disconnect_grace_s=grace_s),
            request_token=mint_token(),
        )
        opened = await self._ask("sessions", "OpenSession", request, timeout)
        session = self._session_class(self, codec, opened.id, opened.position, keep=keep)
        session._options.CopyFrom(request.options)
        return session

    async def _resume(self, session_id: str, *, keep: bool = True) -> Session:
        """An open session by its id, where it stands."""
        found = await self._ask("sessions", "GetSession", sessions_pb2.GetSessionRequest(id=session_id))
        codec = await self._codec(found.model, found.version)
        return self._session_class(self, codec, found.id, found.position, keep=keep)

    async def _sessions(self, model: str = "", *, all_callers: bool = False) -> list[SessionInfo]:
        """All open sessions of this caller, or of all callers where it has the right to see them, of one model or of
        all."""
        found: list[SessionInfo] = []
        token = ""
        while True:
            request = sessions_pb2.ListSessionsRequest(
                model=model, page_size=1000, page_token=token, all_callers=all_callers
            )
            page = await self._ask("sessions", "ListSessions", request)
            found += [session_info(session) for session in page.sessions]
            token = page.next_page_token
            if not token:
                return found

    async def _fork_session(self, session_id: str, *, id: str = "", timeout: float | None = None) -> SessionInfo:
        """Copies a session or a kept generation, known by its id, as it stands after its last answered chunk; how the
        copy stands. `resume` goes on with the copy of a session, `generate` with that of a generation. SessionExists
        where `id` is open."""
        request = sessions_pb2.ForkSessionRequest(id=session_id, new_id=id or mint_id(), request_token=mint_token())
        return session_info(await self._ask("sessions", "ForkSession", request, timeout))

    async def _close_session(self, session_id: str, *, timeout: float | None = None) -> SessionInfo:
        """Closes a session by its id; how it stood."""
        request = sessions_pb2.CloseSessionRequest(id=session_id, request_token=mint_token())
        return session_info(await self._ask("sessions", "CloseSession", request, timeout))

    async def _import_session(self, blob: bytes, *, id: str = "", keep: bool = True) -> Session:
        """A new session from what `export` gave, on this server or another. StateIncompatible says what does not fit,
        SessionExists that the id is open."""
        made = await self._ask("sessions", "ImportSession", import_request(blob, id or mint_id()))
        codec = await self._codec(made.model, made.version)
        return self._session_class(self, codec, made.id, made.position, keep=keep)

    async def _stream(self, model: str, *, version: int = 0, timeout: float | None = None) -> Stream:
        """A stream of columnar frames for many sessions of one model."""
        return self._stream_class(self, await self._codec(model, version), timeout or self.timeout)
