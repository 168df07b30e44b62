"""The client, for asyncio: the same verbs as Client, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2_grpc, models_pb2, sessions_pb2
from cellar_proto.v1.inference_pb2 import OpenedSessions, StreamRequest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellar_client.book import SessionBook, checked, rows_of
from cellar_client.credentials import Credentials, Pem
from cellar_client.credentials import Token as BearerToken
from cellar_client.emissions import Emissions
from cellar_client.errors import (
    CellarError,
    DeadlineExceeded,
    SessionNotFound,
    StoreFailed,
    Unavailable,
    ended,
    from_error,
    typed,
)
from cellar_client.frames import FrameAnswer, FrameBook, rows_repeated
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
from cellar_client.replay import PASSING, Chunk, Patience


class AsyncWire:
    """One Stream call: answers go to the queue of whoever waits for their frame."""

    def __init__(self, stub: inference_pb2_grpc.InferenceStub, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._call = stub.Stream(metadata=metadata)
        self._waiting: dict[int, asyncio.Queue[Any]] = {}
        self._number = 0
        self._writing = asyncio.Lock()
        self.error: CellarError | None = None
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        error: CellarError = Unavailable("the stream has ended")
        was_live = False
        try:
            async for response in self._call:
                was_live = True
                kind = response.WhichOneof("kind")
                message = getattr(response, kind)
                for frame_id in set(message.frame_ids) if kind == "answer" else [message.frame_id]:
                    if frame_id in self._waiting:
                        self._waiting[frame_id].put_nowait((kind, frame_id, message))
        except grpc.RpcError as failure:
            error = ended(failure, was_live=was_live)
        self.error = error
        for each in set(self._waiting.values()):
            each.put_nowait(error)
        self._waiting.clear()

    def next_id(self) -> int:
        self._number += 1
        return self._number

    async def send(self, frame_id: int, request: StreamRequest, inbox: asyncio.Queue[Any]) -> None:
        if self.error is not None:
            raise self.error
        self._waiting[frame_id] = inbox
        try:
            async with self._writing:
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            await self._reader
            raise (self.error or Unavailable("the stream has ended")) from None

    def forget(self, frame_id: int) -> None:
        self._waiting.pop(frame_id, None)

    async def ask(self, frame_id: int, request: StreamRequest, timeout_s: float) -> Any:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        await self.send(frame_id, request, inbox)
        try:
            kind, _, message = await take(inbox, timeout_s)
        finally:
            self.forget(frame_id)
        if kind == "frame_error":
            raise from_error(message.error)
        return message

    def cancel(self) -> None:
        self._call.cancel()

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


async def take(inbox: asyncio.Queue[Any], timeout_s: float) -> Any:
    """The next answer; DeadlineExceeded, or the error that ended the stream."""
    try:
        found = await asyncio.wait_for(inbox.get(), timeout_s)
    except TimeoutError:
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s") from None
    if isinstance(found, CellarError):
        raise found
    return found


class AsyncClient:
    """A Cellar server, or several that stand for one another, for asyncio. See Client for what is asked and given."""

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
        self._links = Links(servers, lambda address: self._credentials.connect(grpc.aio, address, options))
        self._codecs: dict[tuple[str, int], Codec] = {}
        self._wire: AsyncWire | None = None
        self._wire_link: Link | None = None

    @property
    def _free_metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call that is made now and that any server may answer."""
        return self._credentials.metadata()

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call or stream about sessions that is made now, which a balancer leads to one server."""
        return (*self._credentials.metadata(), *self._affinity)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the client's streams and its connection; sessions stay open until their idle limit."""
        if self._wire is not None:
            await self._wire.close()
        for channel in self._links.channels():
            await channel.close()

    async def _ask(self, service: str, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """The answer to a call that may be made twice, of the first server that gives one."""
        tries, patience = Tries(self._links), Patience(timeout_s or self.timeout, len(self._links))
        while True:
            link = self._links.current
            try:
                with typed():
                    call = getattr(getattr(link, service), method)
                    metadata = self._metadata if service == "sessions" else self._free_metadata
                    answer = await call(request, timeout=patience.left_s, metadata=metadata)
                self._links.has_answered = True
                return answer
            except CellarError as error:
                if not tries.may_repeat(error):
                    raise
                await asyncio.sleep(patience.pause_s(error))
                self._links.leave(link, error, patience.num_pauses)

    async def models(self) -> list[ModelInfo]:
        """All models of the server, the broken ones with their error."""
        found = await self._ask("models", "ListModels", models_pb2.ListModelsRequest())
        return [model_info(model) for model in found.models]

    async def model(self, name: str, version: int = 0) -> ModelInfo:
        """One model, with its counters as they stand."""
        request = models_pb2.GetModelRequest(name=name, version=version)
        return model_info(await self._ask("models", "GetModel", request))

    async def is_serving(self, model: str = "", *, timeout: float = 2.0) -> bool:
        """See Client.is_serving."""
        stub = health_pb2_grpc.HealthStub(self._links.current.channel)
        request = health_pb2.HealthCheckRequest(service=f"cellar.v1/{model}" if model else "")
        try:
            answer = await stub.Check(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def load(self, model: str) -> list[int]:
        """See Client.load."""
        return list((await self._ask("models", "LoadModel", models_pb2.LoadModelRequest(name=model))).versions)

    async def unload(self, model: str, version: int = 0, *, wait_s: float = 0.0, force_reason: str = "") -> int:
        """See Client.unload."""
        request = models_pb2.UnloadModelRequest(name=model, version=version, wait_s=wait_s, force_reason=force_reason)
        return (await self._ask("models", "UnloadModel", request, self.timeout + wait_s)).sessions_ended

    async def _codec(self, name: str, version: int = 0) -> Codec:
        if (name, version) not in self._codecs:
            self._codecs[name, version] = Codec(await self.model(name, version))
        return self._codecs[name, version]

    async def predict(
        self, model: str, x: Any, *, version: int = 0, all_emissions: bool | None = None, timeout: float | None = None
    ) -> Emissions:
        """The answer to one whole sequence."""
        answers = await self.predict_many(model, [x], version=version, all_emissions=all_emissions, timeout=timeout)
        if isinstance(answers[0], CellarError):
            raise answers[0]
        return answers[0]

    async def predict_many(
        self,
        model: str,
        xs: Sequence[Any],
        *,
        version: int = 0,
        all_emissions: bool | None = None,
        bulk: bool = False,
        timeout: float | None = None,
    ) -> list[Emissions | CellarError]:
        """The answers to many whole sequences, in order; a sequence that failed has its error there."""
        codec = await self._codec(model, version)
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
            response = await self._ask("inference", "Predict", request, seconds)
            for i, answer in zip(places, codec.predictions(response, all_emissions), strict=True):
                answers[i] = answer
        return answers

    async def generate(
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
        next_id: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Token]:
        """Emissions as they are made: `async for token in client.generate(...)`."""
        options = sampling(seed=seed, max_steps=max_steps, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop)
        request = generate_request(model, condition, options, session_id, position, version, next_id=next_id)
        book = GenerationBook(request, timeout or self.timeout, len(self._links))
        while not book.finish:
            link = self._links.current
            metadata = self._metadata if session_id else self._free_metadata
            call = link.inference.Generate(book._request, timeout=book._patience.left_s, metadata=metadata)
            try:
                with typed():
                    async for response in call:
                        for token in book._tokens(response):
                            yield token
                return
            except CellarError as error:
                await asyncio.sleep(book._pause_s(error))
                self._links.leave(link, error, book._patience.num_pauses)
            finally:
                call.cancel()

    async def session(
        self,
        model: str,
        *,
        id: str = "",
        max_idle_s: float = 0.0,
        max_age_s: float = 0.0,
        grace_s: float | None = None,
        keep: bool = False,
        version: int = 0,
    ) -> AsyncSession:
        """A new session: `async with await client.session("forecast") as s:`."""
        codec = await self._codec(model, version)
        request = sessions_pb2.OpenSessionRequest(
            model=model,
            version=version,
            id=id or mint_id(),
            options=sessions_pb2.SessionOptions(max_idle_s=max_idle_s, max_age_s=max_age_s, disconnect_grace_s=grace_s),
            request_token=mint_token(),
        )
        opened = await self._ask("sessions", "OpenSession", request)
        session = AsyncSession(self, codec, opened.id, opened.position, keep=keep)
        session._options.CopyFrom(request.options)
        return session

    async def resume(self, session_id: str, *, keep: bool = True) -> AsyncSession:
        """An open session by its id, where it stands."""
        request = sessions_pb2.GetSessionRequest(id=session_id)
        found = await self._ask("sessions", "GetSession", request)
        codec = await self._codec(found.model, found.version)
        return AsyncSession(self, codec, found.id, found.position, keep=keep)

    async def sessions(self, model: str = "", *, all_callers: bool = False) -> list[SessionInfo]:
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

    async def close_session(self, session_id: str, *, timeout: float | None = None) -> SessionInfo:
        """Closes a session by its id; how it stood."""
        request = sessions_pb2.CloseSessionRequest(id=session_id, request_token=mint_token())
        return session_info(await self._ask("sessions", "CloseSession", request, timeout))

    async def import_session(self, blob: bytes, *, id: str = "", keep: bool = True) -> AsyncSession:
        """A new session from what `export` gave, on this server or another. StateIncompatible says what does not fit,
        SessionExists that the id is open."""
        request = import_request(blob, id or mint_id())
        made = await self._ask("sessions", "ImportSession", request)
        return AsyncSession(self, await self._codec(made.model, made.version), made.id, made.position, keep=keep)

    async def stream(self, model: str, *, version: int = 0, timeout: float | None = None) -> AsyncFrameStream:
        """A stream of columnar frames for many sessions of one model."""
        codec = await self._codec(model, version)
        return AsyncFrameStream(self, codec, timeout or self.timeout)

    def _shared_wire(self) -> AsyncWire:
        """The stream that plain sessions share; a new one where the last has ended, or another server is in use."""
        link = self._links.current
        if self._wire is None or self._wire.error is not None or link is not self._wire_link:
            if self._wire is not None:
                self._wire.cancel()
            self._wire, self._wire_link = AsyncWire(link.inference, self._metadata), link
        return self._wire


class AsyncSession(SessionBook):
    """One sequence whose state the server keeps. See Session."""

    def __init__(self, client: AsyncClient, codec: Codec, id: str, position: int, *, keep: bool) -> None:
        super().__init__(codec, id, position, keep=keep)
        self._client = client
        self._wire: AsyncWire | None = None

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if self.keep or self._is_closed:
            return
        if kind is None:
            await self.close()
        else:  # what went wrong is what the caller should see, and soon
            with suppress(CellarError):
                await self.close(timeout=1.0)

    async def step(self, x: Any = b"", *, end: bool = False, timeout: float | None = None) -> Emissions:
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
            pieces.append(await self._answer(chunk, timeout or self._client.timeout))
        return pieces[0] if len(pieces) == 1 else Emissions(np.concatenate(pieces), self._codec.info.labels)

    async def _answer(self, chunk: Chunk, timeout_s: float) -> Emissions:
        """The answer to a chunk, however often the server went away meanwhile."""
        patience = Patience(timeout_s, len(self._client._links))
        while self._replay.is_full:
            await asyncio.sleep(patience.pause_s(Unavailable("what was sent is not durable yet")))
            self._stored((await self.info()).durable_position)
        while True:
            link = self._client._links.current
            try:
                wire = await self._attached(patience.left_s)
                return await self._send(wire, chunk, patience.left_s)
            except CellarError as error:
                await asyncio.sleep(patience.pause_s(error))
                self._client._links.leave(link, error, patience.num_pauses)
                if not isinstance(error, StoreFailed):
                    self._wire = None  # the handle may be void

    async def _send(self, wire: AsyncWire, chunk: Chunk, timeout_s: float) -> Emissions:
        frame_id = wire.next_id()
        return self._took(chunk, frame_id, await wire.ask(frame_id, self._frame_request(frame_id, chunk), timeout_s))

    async def _attached(self, timeout_s: float) -> AsyncWire:
        """The shared stream, with a handle of this session on it, and the server where this side believes it to be."""
        wire = self._client._shared_wire()
        if wire is self._wire:
            return wire
        try:
            opened = await self._open(wire, timeout_s, resume=True)
        except SessionNotFound:
            # a server without a store was started again: from the first step on, where all of it is held
            lost = self._replay.since(0, self.position)
            opened = await self._open(wire, timeout_s, resume=False)
        else:
            lost = self._replay.since(min(opened.positions[0], self.position), self.position)
        self._handle = opened.handles[0]
        for chunk in lost:
            frame_id = wire.next_id()
            rows_of(await wire.ask(frame_id, self._frame_request(frame_id, chunk), timeout_s), frame_id)
        self._wire = wire
        return wire

    async def _open(self, wire: AsyncWire, timeout_s: float, *, resume: bool) -> Any:
        frame_id = wire.next_id()
        return checked(await wire.ask(frame_id, self._open_request(frame_id, resume=resume), timeout_s))

    async def info(self) -> SessionInfo:
        """How the session stands on the server."""
        request = sessions_pb2.GetSessionRequest(id=self.id)
        return session_info(await self._client._ask("sessions", "GetSession", request))

    async def fork(self, *, id: str = "", keep: bool = False) -> AsyncSession:
        """A copy as the session stands after its last answered chunk."""
        request = sessions_pb2.ForkSessionRequest(id=self.id, new_id=id or mint_id(), request_token=mint_token())
        forked = await self._client._ask("sessions", "ForkSession", request)
        return AsyncSession(self._client, self._codec, forked.id, forked.position, keep=keep)

    async def export(self) -> bytes:
        """The session as one piece, as it stands after its last answered chunk: row, tail, position and the answers
        kept for repetitions. `import_session` makes a session of it again."""
        request = sessions_pb2.ExportSessionRequest(id=self.id)
        state = await self._client._ask("sessions", "ExportSession", request)
        return bytes(state.SerializeToString())

    async def state(self) -> dict[str, np.ndarray]:
        """The hidden state by the names of its parts, each float32 in its own shape (an LSTM layer: h and c)."""
        return state_parts(await self.export())

    async def close(self, *, timeout: float | None = None) -> None:
        """Ends the session on the server and forgets its state."""
        self._is_closed = True
        with suppress(SessionNotFound):  # a server lost it: it is gone, as it should be
            await self._client.close_session(self.id, timeout=timeout)


class AsyncFrameStream(FrameBook):
    """Many sessions of one model on a stream of their own. See FrameStream."""

    def __init__(self, client: AsyncClient, codec: Codec, timeout_s: float) -> None:
        super().__init__(codec)
        self._client = client
        self._links = client._links
        self._timeout_s = timeout_s
        self._ready: deque[FrameAnswer] = deque()
        self._connect()

    def _connect(self) -> None:
        self._link = self._links.current
        self._wire = AsyncWire(self._link.inference, self._client._metadata)
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()

    async def __aenter__(self) -> AsyncFrameStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, sessions: int | Sequence[str], *, resume: bool = False, max_idle_s: float = 0.0) -> list[str]:
        """Opens so many sessions, or sessions of these ids (with `resume`: takes up open ones); their ids."""
        request = self._open_request(self._next_id(), sessions, resume, max_idle_s)
        patience = Patience(self._timeout_s, len(self._links))
        while True:
            try:
                return self._take_opened(await self._wire.ask(request.open.frame_id, request, patience.left_s))
            except CellarError as error:
                await self._wait_out(error, patience)

    async def send(
        self,
        inputs: Any,
        lengths: int | Sequence[int] | None = None,
        *,
        rows: Sequence[int] | None = None,
        timeout_ms: int = 0,
        bulk: bool = False,
        ends: bool = False,
    ) -> int:
        """Sends chunks of sessions; the frame's number."""
        while self._is_full:
            await self._make_room()
        number = self._next_id()
        request = self._frame_request(number, inputs, lengths, rows, timeout_ms, bulk, ends)
        if request is not None and self._wire.error is None:
            with suppress(*PASSING):  # `receive` finds the same, and sends it again
                await self._wire.send(number, request, self._inbox)
        return number

    async def _make_room(self) -> None:
        if self._num_unanswered:
            self._ready.append(await self._pull(self._timeout_s))
            return
        await asyncio.sleep(0.05)
        for row in self._undurable():
            request = sessions_pb2.GetSessionRequest(id=self.ids[row])
            found = await self._client._ask("sessions", "GetSession", request, self._timeout_s)
            self._durable[row] = found.durable_position
        self._settle()

    async def receive(self, timeout_s: float | None = None) -> FrameAnswer:
        """The answer of the next frame that is whole."""
        return self._ready.popleft() if self._ready else await self._pull(timeout_s or self._timeout_s)

    async def _pull(self, timeout_s: float) -> FrameAnswer:
        patience = Patience(timeout_s, len(self._links))
        while True:
            try:
                if self._torn:
                    await self._mend(sorted(self._torn), patience)
                answer = self._complete()
                if answer is None:
                    if self._wire.error is not None and self._inbox.empty():
                        raise self._wire.error  # it ended while nobody waited for an answer
                    kind, wire_id, message = await take(self._inbox, patience.left_s)
                    answer = self._take(kind, wire_id, message)
                if answer is not None:
                    self._wire.forget(answer.frame_id)
                    return answer
            except CellarError as error:
                await self._wait_out(error, patience)

    async def _wait_out(self, error: CellarError, patience: Patience) -> None:
        """Pauses after an error that passes, and goes to another server where that is better."""
        await asyncio.sleep(patience.pause_s(error))
        self._links.leave(self._link, error, patience.num_pauses)
        if self._wire.error is not None or self._link is not self._links.current:
            self._wire.cancel()
            self._connect()
            self._torn = set(range(len(self.ids))) - self._gone.keys()

    async def _mend(self, rows: list[int], patience: Patience) -> None:
        """Takes sessions up again, and sends what the server does not have and what is not answered."""
        try:
            missing, standing = self._reattached(rows, await self._reopen(rows, patience, resume=True))
            if missing:
                standing |= self._reattached(missing, await self._reopen(missing, patience, resume=False))[1]
            for sent, chosen in self._lost_chunks(standing):
                wire_id, left = self._next_id(), len(chosen)
                inbox: asyncio.Queue[Any] = asyncio.Queue()
                await self._wire.send(wire_id, self._message(wire_id, sent, chosen), inbox)
                while left:
                    left -= rows_repeated(await take(inbox, patience.left_s))
            for sent, chosen in self._unanswered(rows):
                wire_id = self._next_id()
                await self._wire.send(wire_id, self._again(wire_id, sent, chosen), self._inbox)
        except CellarError:
            self._torn.update(rows)
            raise

    async def _reopen(self, rows: list[int], patience: Patience, *, resume: bool) -> OpenedSessions:
        frame_id = self._next_id()
        request = self._open_message(frame_id, [self.ids[row] for row in rows], resume=resume)
        return await self._wire.ask(frame_id, request, patience.left_s)

    async def step(self, inputs: Any, lengths: int | Sequence[int] | None = None, **options: Any) -> FrameAnswer:
        """`send` and `receive`, for one frame at a time; the first row's error is raised."""
        await self.send(inputs, lengths, **options)
        return (await self.receive()).check()

    async def close_sessions(self) -> None:
        """Closes all sessions of the stream; what is not answered yet is not waited for."""
        patience = Patience(self._timeout_s, len(self._links))
        while self.ids:
            try:
                if self._torn:
                    rows = sorted(self._torn)
                    self._reattached_to_close(rows, await self._reopen(rows, patience, resume=True))
                frame_id = self._next_id()
                await self._wire.ask(frame_id, self._close_request(frame_id), patience.left_s)
                self._forget_sessions()
            except CellarError as error:
                await self._wait_out(error, patience)

    async def close(self) -> None:
        """Ends the stream; its sessions stay open until their idle limit."""
        await self._wire.close()
