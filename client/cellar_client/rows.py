"""The sessions of a frame stream, as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cellar_proto.v1.inference_pb2 import CloseSessions, OpenedSessions, OpenSessions, StreamRequest
from cellar_proto.v1.sessions_pb2 import SessionOptions

from cellar_client.codec import Codec
from cellar_client.errors import CellarError, SessionLost, SessionNotFound, from_error
from cellar_client.messages import mint_id, mint_token
from cellar_client.replay import is_passing


class Rows:
    """Sessions of one model, and where they stand.

    ids; handles uint64 [N], positions int64 [N] (of the next chunk).
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._options = SessionOptions()
        self.ids: list[str] = []
        self.handles = np.zeros(0, np.uint64)
        self._place: dict[int, int] = {}  # of each handle
        self.positions = np.zeros(0, np.int64)
        self._durable = np.zeros(0, np.int64)
        self._first = np.zeros(0, np.int64)  # from which on everything is held here
        self._gone: dict[int, CellarError] = {}  # why a row's session is no more
        self._torn: set[int] = set()  # rows that must be taken up again before anything more is sent
        self._number = 0

    def _open_request(
        self, frame_id: int, sessions: int | Sequence[str], resume: bool, max_idle_s: float
    ) -> StreamRequest:
        ids = [mint_id() for _ in range(sessions)] if isinstance(sessions, int) else list(sessions)
        if not resume:
            self._options = SessionOptions(max_idle_s=max_idle_s)
        return self._open_message(frame_id, ids, resume=resume)

    def _open_message(self, frame_id: int, ids: Sequence[str], *, resume: bool) -> StreamRequest:
        info = self._codec.info
        return StreamRequest(
            open=OpenSessions(
                frame_id=frame_id,
                model=info.name,
                version=info.version,
                ids=ids,
                resume=resume,
                options=self._options,
                request_token=mint_token(),
            )
        )

    def _take_opened(self, opened: OpenedSessions) -> list[str]:
        for error in opened.errors:
            raise from_error(error.error)
        for i, handle in enumerate(opened.handles):
            self._place[handle] = len(self.ids) + i
        self.ids += opened.ids
        positions = np.array(opened.positions, np.int64)
        self.handles = np.concatenate([self.handles, np.array(opened.handles, np.uint64)])
        self.positions = np.concatenate([self.positions, positions])
        self._first = np.concatenate([self._first, positions])
        self._durable = np.concatenate([self._durable, np.zeros(len(positions), np.int64)])
        return list(opened.ids)

    def _close_request(self, frame_id: int) -> StreamRequest:
        return StreamRequest(close=CloseSessions(frame_id=frame_id, handles=self.handles[self.handles > 0].tolist()))

    def _next_id(self) -> int:
        self._number += 1
        return self._number

    def _forget_sessions(self) -> None:
        self.ids, self._place, self._gone = [], {}, {}
        self.handles = np.zeros(0, np.uint64)
        self.positions, self._durable, self._first = (np.zeros(0, np.int64) for _ in range(3))
        self._torn.clear()

    def _reattached(self, rows: Sequence[int], opened: OpenedSessions) -> tuple[list[int], dict[int, int]]:
        """Sessions were taken up again: those that the server does not have, which must be opened anew from their
        first chunk on, and where the others stand. An error that passes is raised, others stay with their rows."""
        failed = {error.row: from_error(error.error) for error in opened.errors}
        missing, standing = [], {}
        for error in failed.values():
            if is_passing(error):
                raise error
        for i, place in enumerate(rows):
            if isinstance(failed.get(i), SessionNotFound):
                if self._first[place] > 0:
                    raise SessionLost(
                        f"the server has no session {self.ids[place]!r}, and only what came from "
                        f"{self._first[place]} on is kept here"
                    )
                missing.append(place)
            elif i in failed:
                self._gone[place] = failed[i]
                self._place.pop(int(self.handles[place]), None)
            else:
                standing[place] = opened.positions[i]
                self._place.pop(int(self.handles[place]), None)
                self.handles[place] = opened.handles[i]
                self._place[opened.handles[i]] = place
        self._torn.difference_update(rows)
        return missing, standing

    def _reattached_to_close(self, rows: Sequence[int], opened: OpenedSessions) -> None:
        """Sessions were taken up again to be closed: those that are no more need not be."""
        for error in opened.errors:
            found = from_error(error.error)
            if is_passing(found):
                raise found
        self.handles[list(rows)] = np.array(opened.handles, np.uint64)
        self._torn.difference_update(rows)
