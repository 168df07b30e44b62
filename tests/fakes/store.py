"""A store in memory that several servers can share, whose leases are lost and whose disk fails when told so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from cellar_server.store.base import Claims, End, Entry, Held, Known, StoreError


@dataclass
class Shelf:
    """What is stored. owners: name and fence of who claimed a session last; alive: names that have a lease."""

    entries: dict[str, Entry] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    owners: dict[str, tuple[str, int]] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    wanted: list[tuple[str, str]] = field(default_factory=list)
    fence: int = 0


class FakeStore:
    """One server's part of a shelf. writes: entries and ends of each transaction; is_broken: every call fails."""

    def __init__(self, shelf: Shelf | None = None, name: str = "a", *, is_shared: bool = False) -> None:
        self.shelf = shelf or Shelf()
        self.name = name
        self.is_shared = is_shared
        self.is_held = True
        self.term = 1
        self.is_broken = False
        self.writes: list[tuple[int, int]] = []
        self._claims = Claims()
        self.shelf.alive.add(name)

    @property
    def entries(self) -> dict[str, Entry]:
        return self.shelf.entries

    def lapse(self) -> None:
        """The lease runs out; others may claim."""
        self.is_held = False
        self.shelf.alive.discard(self.name)

    def renew(self) -> None:
        """The lease is there again, after a gap."""
        self.is_held = True
        self.term += 1
        self.shelf.alive.add(self.name)

    def _check(self) -> None:
        if self.is_broken:
            raise StoreError("database or disk is full")

    def claim(self, ids: Sequence[str], *, reserves: bool = False) -> dict[str, Known]:
        self._check()
        known: dict[str, Known] = {}
        for id in ids:
            owner, _ = self.shelf.owners.get(id, ("", 0))
            if owner not in ("", self.name) and owner in self.shelf.alive:
                self.shelf.wanted.append((owner, id))
                known[id] = Held(id)
                continue
            if id in self.shelf.ends:
                known[id] = self.shelf.ends[id]
            if id in self.entries or reserves:
                self.shelf.fence += 1
                fence = self._claims.add(id, self.shelf.fence)
                self.shelf.owners[id] = self.name, fence
                if id in self.entries:
                    known[id] = replace(self.entries[id], fence=fence)
        return known

    def fence_of(self, id: str) -> int:
        return self._claims.of(id)

    def write(self, entries: Sequence[Entry], ends: Sequence[End]) -> list[str]:
        self._check()
        self.writes.append((len(entries), len(ends)))
        lost = []
        for each in (*entries, *ends):
            owner = self.shelf.owners.get(each.id)
            if self.is_shared and (
                (owner is not None and owner[1] != each.fence) or (owner is None and each.id in self.shelf.ends)
            ):
                lost.append(each.id)
            elif isinstance(each, End):
                self.entries.pop(each.id, None)
                self.shelf.owners.pop(each.id, None)
                self.shelf.ends[each.id] = each
            else:
                self.entries[each.id] = each
                self.shelf.owners[each.id] = self.name, each.fence
                self.shelf.ends.pop(each.id, None)
        self._claims.drop([*lost, *(end.id for end in ends)])
        return lost

    def check(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        self._check()
        owners = self.shelf.owners
        lost = [id for id in ids if id in self.shelf.ends or (id in owners and owners[id][1] != self._claims.of(id))]
        return lost, [id for id in ids if id not in lost and id not in self.entries]

    def release(self, ids: Sequence[str]) -> None:
        self._check()
        for id, fence in self._claims.drop(ids).items():
            if self.shelf.owners.get(id) == (self.name, fence):
                self.shelf.owners[id] = "", fence

    def read(self, model: str, version: int) -> Iterator[Entry]:
        if not self.is_shared:
            for entry in [e for e in self.entries.values() if (e.model, e.version) == (model, version)]:
                yield replace(entry, fence=self._claims.add(entry.id))

    def purge(self, now_s: float) -> list[tuple[str, int]]:
        return []

    def start(self, on_wanted: Callable[[str], None]) -> None:
        pass

    def close(self) -> None:
        self.shelf.alive.discard(self.name)
