"""Flags over environment over defaults."""

from __future__ import annotations

import pytest
from cellar_server.config import Config, from_args
from cellar_server.runtime.base import StartupError


def test_flags_are_stronger_than_the_environment() -> None:
    environment = {"CELLAR_MAX_SESSIONS": "5", "CELLAR_DRAIN_S": "2.5", "CELLAR_SPIN": "yes"}
    config = from_args(["--max-sessions", "7"], environment)
    assert (config.max_sessions, config.drain_s, config.spin) == (7, 2.5, True)
    assert config.listen == Config().listen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--max-sessions", "many"], "no int"),
        (["--max-sessions", "0"], "too small"),
        (["--provider", "tpu"], "not one of cpu, cuda"),
    ],
)
def test_bad_values_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        from_args(arguments, {})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit):
        from_args(["--nonsense", "1"], {})
