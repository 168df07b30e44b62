"""The client, for threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2, models_pb2, sessions_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellar_client.book import SessionBook, checked, rows_of
from cellar_client.credentials import Credentials, Pem
from cellar_client.credentials import Token as BearerToken
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, SessionNotFound, StoreFailed, Unavailable, typed
from cellar_client.generation import GenerationBook, generate_request
from cellar_client.links import Link, Links, Tries
from cellar_client.messages import (
    Codec,
    ModelInfo,
    SessionInfo,
    Token,
    affinity_metadata,
    channel_options,
    import_request,
    mint_id,
    mint_token,
    model_info,
    sampling,
    session_info,
    state_parts,
)
from cellar_client.replay import Chunk, Patience
from cellar_client.stream import FrameStream, Wire


class Client:
    """A Cellar server, or several that stand for one another. `timeout` is seconds for each call; every verb raises
    CellarError's kinds.

    client = Client("127.0.0.1:50051")
    client.predict("sentiment", "a gripping film from start to finish").label

    servers: addresses, of which one is used until it does not answer; token, tls, root_certificates, certificate, key,
    server_name: see Credentials; affinity: a key that goes along with all that concerns sessions, as `cellar-session`,
    so that a balancer can lead it to one server (default: random, so a client's sessions are together); keepalive_s: a
    server that leaves a ping unanswered for half of that is gone (0: no pings).
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "127.0.0.1:50051",
        *,
        timeout: float = 30.0,
        token: BearerToken = "",
        tls: bool = False,
        root_certificates: Pem = None,
        certificate: Pem = None,
        key: Pem = None,
        server_name: str = "",
        affinity: str = "",
        keepalive_s: float = 5.0,
    ) -> None:
        self._credentials = Credentials(token, tls, root_certificates, certificate, key, server_name)
        self.timeout = timeout
        options = channel_options(keepalive_s)
        self._affinity = affinity_metadata(affinity)
        self._links = Links(servers, lambda address: self._credentials.connect(grpc, address, options))
        self._codecs: dict[tuple[str, int], Codec] = {}
        self._wire: Wire | None = None
        self._wire_link: Link | None = None
        self._lock = threading.Lock()

    @property
    def _free_metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call that is made now and that any server may answer."""
        return self._credentials.metadata()

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call or stream about sessions that is made now, which a balancer leads to one server."""
        return (*self._credentials.metadata(), *self._affinity)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the client's streams and its connection; sessions stay open until their idle limit."""
        if self._wire is not None:
            self._wire.close()
        for channel in self._links.channels():
            channel.close()

    def _ask(self, service: str, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """The answer to a call that may be made twice, of the first server that gives one."""
        tries, patience = Tries(self._links), Patience(timeout_s or self.timeout, len(self._links))
        while True:
            link = self._links.current
            try:
                with typed():
                    call = getattr(getattr(link, service), method)
                    metadata = self._metadata if service == "sessions" else self._free_metadata
                    answer = call(request, timeout=patience.left_s, metadata=metadata)
                self._links.has_answered = True
                return answer
            except CellarError as error:
                if not tries.may_repeat(error):
                    raise
                time.sleep(patience.pause_s(error))
                self._links.leave(link, error, patience.num_pauses)

    # -- models --------------------------------------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """All models of the server, the broken ones with their error."""
        found = self._ask("models", "ListModels", models_pb2.ListModelsRequest())
        return [model_info(model) for model in found.models]

    def model(self, name: str, version: int = 0) -> ModelInfo:
        """One model, with its counters as they stand; version 0 is the newest."""
        return model_info(self._ask("models", "GetModel", models_pb2.GetModelRequest(name=name, version=version)))

    def is_serving(self, model: str = "", *, timeout: float = 2.0) -> bool:
        """Whether the server in use says that it serves, or that a model does; False where it does not answer in time.
        Nobody else is asked, and no token is needed."""
        stub = health_pb2_grpc.HealthStub(self._links.current.channel)
        request = health_pb2.HealthCheckRequest(service=f"cellar.v1/{model}" if model else "")
        try:
            answer = stub.Check(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def load(self, model: str) -> list[int]:
        """Has the server serve what its models folder holds of a model; the versions that it serves now."""
        return list(self._ask("models", "LoadModel", models_pb2.LoadModelRequest(name=model)).versions)

    def unload(self, model: str, version: int = 0, *, wait_s: float = 0.0, force_reason: str = "") -> int:
        """Has the server end a version (0: all) when its last session is closed, or after wait_s seconds, where
        force_reason tells the last ones why; how many those were. ModelBusy where some are left and no reason is
        given."""
        request = models_pb2.UnloadModelRequest(name=model, version=version, wait_s=wait_s, force_reason=force_reason)
        return self._ask("models", "UnloadModel", request, self.timeout + wait_s).sessions_ended

    def _codec(self, name: str, version: int = 0) -> Codec:
        codec = self._codecs.get((name, version))
        if codec is None:
            codec = self._codecs[name, version] = Codec(self.model(name, version))
        return codec

    # -- whole sequences -----------------------------------------------------------------------------------------

    def predict(
        self, model: str, x: Any, *, version: int = 0, all_emissions: bool | None = None, timeout: float | None = None
    ) -> Emissions:
        """The answer to one whole sequence: a text, [time, ...] values, or one step [...].

        float32 [...] for one-to-one and many-to-one, [time, ...] for many-to-many (or with all_emissions).
        """
        answer = self.predict_many(model, [x], version=version, all_emissions=all_emissions, timeout=timeout)[0]
        if isinstance(answer, CellarError):
            raise answer
        return answer

    def predict_many(
        self,
        model: str,
        xs: Sequence[Any],
        *,
        version: int = 0,
        all_emissions: bool | None = None,
        bulk: bool = False,
        timeout: float | None = None,
    ) -> list[Emissions | CellarError]:
        """The answers to many whole sequences of any lengths, in order; a sequence that failed has its error there."""
        codec = self._codec(model, version)
        answers: list[Emissions | CellarError] = [SessionNotFound("")] * len(xs)
        for places, lengths, parts, errors in codec.calls(xs):
            for i, error in errors.items():
                answers[i] = error
            if not places:
                continue
            seconds = timeout or self.timeout
            request = codec.predict_request(
                lengths, parts, version=version, timeout_s=seconds, all_emissions=all_emissions, bulk=bulk
            )
            response = self._ask("inference", "Predict", request, seconds)
            for i, answer in zip(places, codec.predictions(response, all_emissions), strict=True):
                answers[i] = answer
        return answers

    # -- generation ----------------------------------------------------------------------------------------------

    def generate(
        self,
        model: str,
        condition: str | bytes | np.ndarray = "",
        *,
        seed: int | None = None,
        max_steps: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        stop: Sequence[str] = (),
        session_id: str = "",
        position: int = 0,
        version: int = 0,
        num_alternatives: int = 0,
        next_id: int | None = None,
        timeout: float | None = None,
    ) -> Generation:
        """Emissions as they are made. condition: a text (a sentence, a prompt, a dialogue act, a name), or the numbers
        of a model without codec, an array of its dtype and shape.

        temperature 0 is greedy; the same seed gives the same emissions. A call that breaks is made again, and goes on
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
        return Generation(self, request, timeout or self.timeout)

    # -- sessions ------------------------------------------------------------------------------------------------

    def session(
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
        codec = self._codec(model, version)
        request = sessions_pb2.OpenSessionRequest(
            model=model,
            version=version,
            id=id or mint_id(),
            options=sessions_pb2.SessionOptions(max_idle_s=max_idle_s, max_age_s=max_age_s, disconnect_grace_s=grace_s),
            request_token=mint_token(),
        )
        opened = self._ask("sessions", "OpenSession", request, timeout)
        session = Session(self, codec, opened.id, opened.position, keep=keep)
        session._options.CopyFrom(request.options)
        return session

    def resume(self, session_id: str, *, keep: bool = True) -> Session:
        """An open session by its id, where it stands."""
        found = self._ask("sessions", "GetSession", sessions_pb2.GetSessionRequest(id=session_id))
        return Session(self, self._codec(found.model, found.version), found.id, found.position, keep=keep)

    def sessions(self, model: str = "", *, all_callers: bool = False) -> list[SessionInfo]:
        """All open sessions of this caller, or of all callers where it has the right to see them, of one model or of
        all."""
        found: list[SessionInfo] = []
        token = ""
        while True:
            request = sessions_pb2.ListSessionsRequest(
                model=model, page_size=1000, page_token=token, all_callers=all_callers
            )
            page = self._ask("sessions", "ListSessions", request)
            found += [session_info(session) for session in page.sessions]
            token = page.next_page_token
            if not token:
                return found

    def close_session(self, session_id: str, *, timeout: float | None = None) -> SessionInfo:
        """Closes a session by its id; how it stood."""
        request = sessions_pb2.CloseSessionRequest(id=session_id, request_token=mint_token())
        return session_info(self._ask("sessions", "CloseSession", request, timeout))

    def import_session(self, blob: bytes, *, id: str = "", keep: bool = True) -> Session:
        """A new session from what `export` gave, on this server or another. StateIncompatible says what does not fit,
        SessionExists that the id is open."""
        request = import_request(blob, id or mint_id())
        made = self._ask("sessions", "ImportSession", request)
        return Session(self, self._codec(made.model, made.version), made.id, made.position, keep=keep)

    def stream(self, model: str, *, version: int = 0, timeout: float | None = None) -> FrameStream:
        """A stream of columnar frames for many sessions of one model."""
        return FrameStream(self, self._codec(model, version), timeout or self.timeout)

    def _shared_wire(self) -> Wire:
        """The stream that plain sessions share; a new one where the last has ended, or another server is in use."""
        with self._lock:
            link = self._links.current
            if self._wire is None or self._wire.error is not None or link is not self._wire_link:
                if self._wire is not None:
                    self._wire.cancel()
                self._wire, self._wire_link = Wire(link.inference, self._metadata), link
            return self._wire


class Generation(GenerationBook, Iterator[Token]):
    """A running generation: iterate over its tokens. See GenerationBook for its attributes."""

    def __init__(self, client: Client, request: inference_pb2.GenerateRequest, timeout_s: float) -> None:
        super().__init__(request, timeout_s, len(client._links))
        self._client = client
        self._ready: list[Token] = []
        self._begin()

    def _begin(self) -> None:
        self._link = self._client._links.current
        client = self._client
        metadata = client._metadata if self._request.session_id else client._free_metadata
        self._call = self._link.inference.Generate(self._request, timeout=self._patience.left_s, metadata=metadata)

    def __next__(self) -> Token:
        while not self._ready:
            try:
                with typed():
                    self._ready = self._tokens(next(self._call))
            except CellarError as error:
                time.sleep(self._pause_s(error))
                self._client._links.leave(self._link, error, self._patience.num_pauses)
                self._begin()
        return self._ready.pop(0)

    def close(self) -> None:
        """Stops the generation on the server."""
        self._call.cancel()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self._call.cancel()


class Session(SessionBook):
    """One sequence whose state the server keeps. See SessionBook for its attributes."""

    def __init__(self, client: Client, codec: Codec, id: str, position: int, *, keep: bool) -> None:
        super().__init__(codec, id, position, keep=keep)
        self._client = client
        self._wire: Wire | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.keep or self._is_closed:
            return
        if kind is None:
            self.close()
        else:  # what went wrong is what the caller should see, and soon
            with suppress(CellarError):
                self.close(timeout=1.0)

    def step(self, x: Any = b"", *, end: bool = False, timeout: float | None = None) -> Emissions:
        """Takes in the next steps and answers each: one step [...], steps [time, ...] or a piece of text ->
        float32 [emissions, ...]. `end`: the text ends here, so its last word is taken in too.

        A server that is away is waited for, within the call's time: the session is taken up again where the server has
        it, and what the server lost is sent once more. SessionLost where that is no longer held here. After
        DeadlineExceeded the same call may be made again: what was already taken in is answered, not run again.
        """
        parts = self._parts(x)
        pieces = []
        for i, (part, count) in enumerate(parts):
            chunk = Chunk(self.position, part, count, end and i == len(parts) - 1)
            pieces.append(self._answer(chunk, timeout or self._client.timeout))
        return pieces[0] if len(pieces) == 1 else Emissions(np.concatenate(pieces), self._codec.info.labels)

    def _answer(self, chunk: Chunk, timeout_s: float) -> Emissions:
        """The answer to a chunk, however often the server went away meanwhile."""
        patience = Patience(timeout_s, len(self._client._links))
        while self._replay.is_full:
            time.sleep(patience.pause_s(Unavailable("what was sent is not durable yet")))
            self._stored((self.info()).durable_position)
        while True:
            link = self._client._links.current
            try:
                wire = self._attached(patience.left_s)
                return self._send(wire, chunk, patience.left_s)
            except CellarError as error:
                time.sleep(patience.pause_s(error))
                self._client._links.leave(link, error, patience.num_pauses)
                if not isinstance(error, StoreFailed):
                    self._wire = None  # the handle may be void

    def _send(self, wire: Wire, chunk: Chunk, timeout_s: float) -> Emissions:
        frame_id = wire.next_id()
        return self._took(chunk, frame_id, wire.ask(frame_id, self._frame_request(frame_id, chunk), timeout_s))

    def _attached(self, timeout_s: float) -> Wire:
        """The shared stream, with a handle of this session on it, and the server where this side believes it to be."""
        wire = self._client._shared_wire()
        if wire is self._wire:
            return wire
        try:
            opened = self._open(wire, timeout_s, resume=True)
        except SessionNotFound:
            # a server without a store was started again: from the first step on, where all of it is held
            lost = self._replay.since(0, self.position)
            opened = self._open(wire, timeout_s, resume=False)
        else:
            lost = self._replay.since(min(opened.positions[0], self.position), self.position)
        self._handle = opened.handles[0]
        for chunk in lost:
            frame_id = wire.next_id()
            rows_of(wire.ask(frame_id, self._frame_request(frame_id, chunk), timeout_s), frame_id)
        self._wire = wire
        return wire

    def _open(self, wire: Wire, timeout_s: float, *, resume: bool) -> Any:
        frame_id = wire.next_id()
        return checked(wire.ask(frame_id, self._open_request(frame_id, resume=resume), timeout_s))

    def info(self) -> SessionInfo:
        """How the session stands on the server."""
        return session_info(self._client._ask("sessions", "GetSession", sessions_pb2.GetSessionRequest(id=self.id)))

    def fork(self, *, id: str = "", keep: bool = False) -> Session:
        """A copy as the session stands after its last answered chunk."""
        request = sessions_pb2.ForkSessionRequest(id=self.id, new_id=id or mint_id(), request_token=mint_token())
        forked = self._client._ask("sessions", "ForkSession", request)
        return Session(self._client, self._codec, forked.id, forked.position, keep=keep)

    def export(self) -> bytes:
        """The session as one piece, as it stands after its last answered chunk: row, tail, position and the answers
        kept for repetitions. `import_session` makes a session of it again."""
        state = self._client._ask("sessions", "ExportSession", sessions_pb2.ExportSessionRequest(id=self.id))
        return bytes(state.SerializeToString())

    def state(self) -> dict[str, np.ndarray]:
        """The hidden state by the names of its parts, each float32 in its own shape (an LSTM layer: h and c)."""
        return state_parts(self.export())

    def close(self, *, timeout: float | None = None) -> None:
        """Ends the session on the server and forgets its state."""
        self._is_closed = True
        with suppress(SessionNotFound):  # a server lost it: it is gone, as it should be
            self._client.close_session(self.id, timeout=timeout)
