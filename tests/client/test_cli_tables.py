"""Tables of the commands, where nobody looks at a terminal."""

from __future__ import annotations

import pytest
from cellar_client.cli import _table


def test_no_cell_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a description " * 30
    _table(("MODEL", "DESCRIPTION"), [("digits", long), ("b", "short")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].strip().split(maxsplit=1) == ["digits", long.strip()]
