"""What callers see of sessions."""

from __future__ import annotations

from dataclasses import dataclass

from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.sessions_pb2 import Session

from cellar_server.sessions.directory import shown


@dataclass(frozen=True, slots=True)
class Opened:
    """A session on a stream: its handle there (0 without a stream) and how much input it has consumed."""

    id: str
    handle: int
    position: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a caller sees of a session; times in seconds, max_age_s 0 for none."""

    id: str
    position: int
    age_s: float
    idle_s: float
    max_idle_s: float
    max_age_s: float
    durable_position: int

    def to_proto(self, manifest: Manifest) -> Session:
        """The same as a message."""
        return Session(
            id=shown(self.id),
            model=manifest.name,
            version=manifest.version,
            position=self.position,
            age_s=self.age_s,
            idle_s=self.idle_s,
            max_idle_s=self.max_idle_s,
            max_age_s=self.max_age_s,
            durable_position=self.durable_position,
        )
