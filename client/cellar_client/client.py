"""The client, for threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from cellar_client.drivers import blocking, run
from cellar_client.generation import GenerationCore
from cellar_client.messages import Token
from cellar_client.session import SessionCore
from cellar_client.stream import StreamCore
from cellar_client.threads import Threads
from cellar_client.verbs import Verbs


class Generation(GenerationCore, Iterator[Token]):
    """A running generation: iterate over its tokens.

    `id`: of the session in which the server keeps it, "" where it does not; `text` so far, `seed`, `position`:
    emissions held; `is_ended`; `finish`: why ("end", "max_steps", "stop"), "" while it goes on; `alternatives`: (id,
    log-probability) of the most likely ids of the last step, the end's too, where asked for.
    """

    def __next__(self) -> Token:
        token = run(self._token())
        if token is None:
            raise StopIteration
        return token

    def close(self) -> None:
        """Stops the generation on the server."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self._call.cancel()


class Session(SessionCore):
    """One sequence whose state the server keeps. `id`; `position`: how much input it has consumed (steps, or bytes of
    text); `durable_position`: up to which the server's store holds it; `keep`: it stays open at the end of a `with`."""

    step = blocking(SessionCore._step)
    info = blocking(SessionCore._info)
    fork = blocking(SessionCore._fork)
    export = blocking(SessionCore._export)
    state = blocking(SessionCore._state)
    close = blocking(SessionCore._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        run(self._leave(kind))


class FrameStream(StreamCore):
    """Many sessions of one model on a stream of their own: send one columnar frame, receive one.

    with client.stream("forecast") as stream:
        stream.open(256)
        answer = stream.step(rows)          # [256, features], one step of each session

    `ids`, `handles` uint64 [N], `positions` int64 [N] (of the next chunk): of the sessions, which are its rows. A
    server that goes away is waited for, within the call's time, or the next one asked: the sessions are taken up where
    they are, and what was lost is sent once more.
    """

    open = blocking(StreamCore._open)
    send = blocking(StreamCore._send)
    receive = blocking(StreamCore._receive)
    step = blocking(StreamCore._step)
    close_sessions = blocking(StreamCore._close_sessions)
    close = blocking(StreamCore._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client(Verbs[Session, Generation, FrameStream]):
    """A Cellar server, or several that stand for one another. Every verb raises CellarError's kinds.

    client = Client("127.0.0.1:50051")
    client.predict("sentiment", "a gripping film from start to finish").label

    servers: addresses, of which one is used until it does not answer; timeout: seconds for each call; token, tls,
    root_certificates, certificate, key, server_name: see Credentials; affinity: a key that goes along with all that
    concerns sessions, as `cellar-session`, so that a balancer can lead it to one server (default: random, so a client's
    sessions are together); keepalive_s: a server that leaves a ping unanswered for half of that is gone (0: no pings).
    """

    _transport = Threads()
    _session_class, _generation_class, _stream_class = Session, Generation, FrameStream

    models = blocking(Verbs._models)
    model = blocking(Verbs._model)
    is_serving = blocking(Verbs._is_serving)
    load = blocking(Verbs._load)
    unload = blocking(Verbs._unload)
    predict = blocking(Verbs._predict)
    predict_many = blocking(Verbs._predict_many)
    session = blocking(Verbs[Session, Generation, FrameStream]._session)
    resume = blocking(Verbs[Session, Generation, FrameStream]._resume)
    sessions = blocking(Verbs._sessions)
    fork_session = blocking(Verbs._fork_session)
    close_session = blocking(Verbs._close_session)
    import_session = blocking(Verbs[Session, Generation, FrameStream]._import_session)
    stream = blocking(Verbs[Session, Generation, FrameStream]._stream)
    close = blocking(Verbs._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
