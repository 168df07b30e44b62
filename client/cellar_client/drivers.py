"""The two ways in which the clients' verbs are driven. A verb is one coroutine over a `Transport`: the asynchronous
client awaits it; for the synchronous one, whose transport blocks and never suspends, it runs to its end at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def run(verb: Coroutine[Any, Any, T]) -> T:
    """What a coroutine over a blocking transport gives. RuntimeError for one that waits for an event loop."""
    try:
        verb.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    verb.close()
    raise RuntimeError("a blocking transport has suspended")


def blocking(verb: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """A coroutine method `_name` as the method `name` of a synchronous class: same parameters, what it gives."""

    @functools.wraps(verb)
    def blocked(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(verb(*args, **kwargs))

    blocked.__name__ = verb.__name__.lstrip("_")
    return blocked


def awaited(verb: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A coroutine method `_name` as the coroutine method `name` of an asynchronous class."""

    @functools.wraps(verb)
    async def awaiting(*args: P.args, **kwargs: P.kwargs) -> T:
        return await verb(*args, **kwargs)

    awaiting.__name__ = verb.__name__.lstrip("_")
    return awaiting
