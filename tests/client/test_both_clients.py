"""The client for threads and the one for asyncio offer the same."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import cellar_client
import pytest
from cellar_client import drivers

PAIRS = [
    (cellar_client.Client, cellar_client.AsyncClient),
    (cellar_client.Session, cellar_client.AsyncSession),
    (cellar_client.Generation, cellar_client.AsyncGeneration),
    (cellar_client.FrameStream, cellar_client.AsyncFrameStream),
]
# how the language asks for the same of each
PROTOCOLS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__next__": "__anext__"}
# what nobody waits for: a generation is iterated over, and that is awaited
NOT_AWAITED = {"generate"}


def verbs(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: each for name, each in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def parameters(verb: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(verb).parameters.values()]


@pytest.mark.parametrize(("plain", "awaited"), PAIRS)
def test_both_have_the_same_verbs_with_the_same_parameters(plain: type, awaited: type) -> None:
    assert verbs(plain).keys() == verbs(awaited).keys()
    for name, verb in verbs(plain).items():
        other = verbs(awaited)[name]
        assert parameters(verb) == parameters(other), name
        assert verb.__name__ == other.__name__ == name
        assert inspect.getdoc(verb), name
        assert inspect.getdoc(verb) == inspect.getdoc(other)
        assert not inspect.iscoroutinefunction(verb)
        assert inspect.iscoroutinefunction(other) == (name not in NOT_AWAITED), name
    assert parameters(plain) == parameters(awaited)


@pytest.mark.parametrize(("plain", "awaited"), PAIRS)
def test_both_have_the_same_attributes_and_protocols(plain: type, awaited: type) -> None:
    def attributes(kind: type) -> set[str]:
        return {name for name, each in inspect.getmembers(kind) if isinstance(each, property) and name[0] != "_"}

    assert attributes(plain) == attributes(awaited)
    for name, other in PROTOCOLS.items():
        assert hasattr(plain, name) == hasattr(awaited, other), name


def test_the_beam_searches_take_the_same() -> None:
    assert parameters(cellar_client.beam_search) == parameters(cellar_client.async_beam_search)


def test_what_suspends_is_not_taken_for_blocking() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="suspended"):
        drivers.run(waits())
