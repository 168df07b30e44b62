"""What a caller may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cellar_server.tables import option


@dataclass(frozen=True)
class Rights:
    """A table [rights."NAME"], where NAME may be a pattern (*, ?, [...]) of callers' names."""

    call: tuple[str, ...] = option(("*",), "models that may be called, by name or pattern")
    administer: tuple[str, ...] = option(
        (),
        'models that may be loaded and unloaded, by name or pattern; with "*" also all that channelz shows',
    )
    see_all: bool = option(False, "whether the sessions of all callers may be listed")

    def may_call(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.call)

    def may_administer(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.administer)

    @property
    def administers_all(self) -> bool:
        """Of the server itself, not of some models."""
        return "*" in self.administer

    def __or__(self, other: Rights) -> Rights:
        """What either of them allows."""
        return Rights(self.call + other.call, self.administer + other.administer, self.see_all or other.see_all)


NONE = Rights(call=())
# Of every caller where no rights are declared: all of it where nobody is asked who they are (the server is on the
# loopback, or its owner said that everybody may call), else everything but changing the server.
EVERYTHING = Rights(call=("*",), administer=("*",), see_all=True)
CALLING = Rights()


def rights_of(name: str, declared: Mapping[str, Rights]) -> Rights:
    """Everything that the tables whose pattern fits a caller's name allow together."""
    found = NONE
    for pattern, rights in declared.items():
        if fnmatchcase(name, pattern):
            found |= rights
    return found
