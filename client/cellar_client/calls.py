"""Calls to the servers of one service, made again where that may help."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from cellar_client.codec import Codec
from cellar_client.credentials import Credentials, Pem, Token
from cellar_client.errors import CellarError, typed
from cellar_client.links import Link, Links, Tries
from cellar_client.messages import affinity_metadata, channel_options
from cellar_client.replay import Patience
from cellar_client.transport import Metadata, Transport, Wire


class Calls:
    """A client's servers, who it is to them, and its calls.

    servers: addresses, of which one is used until it does not answer; timeout: seconds for each call; token, tls,
    root_certificates, certificate, key, server_name: see Credentials; affinity: a key that goes along with all that
    concerns sessions, as `cellar-session`, so that a balancer can lead it to one server (default: random, so a client's
    sessions are together); keepalive_s: a server that leaves a ping unanswered for half of that is gone (0: no pings).
    """

    _transport: ClassVar[Transport]

    def __init__(
        self,
        servers: str | Sequence[str] = "127.0.0.1:50051",
        *,
        timeout: float = 30.0,
        token: Token = "",
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
        self._links = Links(servers, lambda address: self._transport.connect(self._credentials, address, options))
        self._codecs: dict[tuple[str, int], Codec] = {}
        self._wire: Wire | None = None
        self._wire_link: Link | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._links.addresses)})"

    @property
    def _free_metadata(self) -> Metadata:
        """Of a call that is made now and that any server may answer."""
        return self._credentials.metadata()

    @property
    def _metadata(self) -> Metadata:
        """Of a call or stream about sessions that is made now, which a balancer leads to one server."""
        return (*self._credentials.metadata(), *self._affinity)

    async def _ask(self, service: str, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """The answer to a call that may be made twice, of the first server that gives one."""
        tries, patience = Tries(self._links), Patience(timeout_s or self.timeout, len(self._links))
        while True:
            link = self._links.current
            try:
                with typed():
                    call = getattr(getattr(link, service), method)
                    metadata = self._metadata if service == "sessions" else self._free_metadata
                    answer = await self._transport.call(call, request, timeout=patience.left_s, metadata=metadata)
                self._links.has_answered = True
                return answer
            except CellarError as error:
                if not tries.may_repeat(error):
                    raise
                await self._transport.pause(patience.pause_s(error))
                self._links.leave(link, error, patience.num_pauses)

    def _shared_wire(self) -> Wire:
        """The stream that plain sessions share; a new one where the last has ended, or another server is in use."""
        with self._lock:
            link = self._links.current
            if self._wire is None or self._wire.error is not None or link is not self._wire_link:
                if self._wire is not None:
                    self._wire.cancel()
                self._wire, self._wire_link = self._transport.wire(link.inference, self._metadata), link
            return self._wire

    async def _close(self) -> None:
        """Ends the client's streams and its connection; sessions stay open until their idle limit."""
        if self._wire is not None:
            await self._wire.close()
        for channel in self._links.channels():
            await self._transport.close(channel)
