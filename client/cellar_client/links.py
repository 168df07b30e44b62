"""Connections to the servers of one service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cellar_proto.v1 import inference_pb2_grpc, models_pb2_grpc, sessions_pb2_grpc

from cellar_client.errors import CellarError, LeaseLost, StoreFailed, Unavailable
from cellar_client.replay import is_passing


@dataclass(frozen=True)
class Link:
    """One server: its address, channel and stubs."""

    address: str
    channel: Any
    inference: Any
    sessions: Any
    models: Any


class Links:
    """Servers that stand for one another, of which one is used: the next one as soon as that does not answer.

    connect: makes a channel to an address, when it is first used.
    """

    def __init__(self, servers: str | Sequence[str], connect: Callable[[str], Any]) -> None:
        self._addresses = [servers] if isinstance(servers, str) else list(servers)
        if not self._addresses:
            raise ValueError("a client needs the address of a server")
        for address in self._addresses:
            if address.startswith(("http://", "https://")):
                raise ValueError(f"the address of a server is HOST:PORT, not {address!r}")
        self._connect = connect
        self._links: dict[str, Link] = {}
        self._at = 0
        self.has_answered = False  # some server has: a service that is away will be there again

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def addresses(self) -> list[str]:
        """Of the servers, in the order in which they are tried."""
        return list(self._addresses)

    @property
    def current(self) -> Link:
        """The server in use."""
        address = self._addresses[self._at]
        link = self._links.get(address)
        if link is None:
            channel = self._connect(address)
            link = self._links[address] = Link(
                address,
                channel,
                inference_pb2_grpc.InferenceStub(channel),
                sessions_pb2_grpc.SessionsStub(channel),
                models_pb2_grpc.ModelsStub(channel),
            )
        return link

    def leave(self, link: Link, error: CellarError, num_tries: int) -> None:
        """A server could not do what it was asked for: the next one is used, unless that has changed already. One whose
        store is slow, or to which the session is on its way, is left at every fourth try only."""
        is_slow = isinstance(error, StoreFailed | LeaseLost) and num_tries % 4 != 0
        if self._addresses[self._at] == link.address and not is_slow:
            self._at = (self._at + 1) % len(self._addresses)

    def channels(self) -> list[Any]:
        """Those made so far."""
        return [link.channel for link in self._links.values()]


class Tries:
    """How often a call without a session of its own is made: again where the server says when, or where there was an
    answer before; at a service that never gave one, once at every server."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._left = len(links)

    def may_repeat(self, error: CellarError) -> bool:
        """Whether the call should be made again, after the delay that the error names."""
        if isinstance(error, Unavailable) and not self._links.has_answered:
            self._left -= 1
            return self._left > 0
        return is_passing(error)
