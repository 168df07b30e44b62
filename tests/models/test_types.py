"""What `cellar_models` gives, as type checkers see it: `make lint` checks this file, and it runs besides."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

import cellar_models  # noqa: E402
from cellar_models.own.forms import Form  # noqa: E402
from cellar_models.verify import Report  # noqa: E402
from torch import nn  # noqa: E402


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_export(tmp_path: Path) -> None:
    example = torch.zeros(1, 3, 2)
    made = cellar_models.export(nn.LSTM(2, 3, batch_first=True), tmp_path, name="plain", example=example)
    assert_type(made, cellar_models.Exported)
    assert_type(made.folder, Path)
    assert_type(made.form, Form)
    assert_type(made.state_size, int)
    assert_type(made.notes, tuple[str, ...])
    assert_type(made.report, Report)
    assert made.folder == tmp_path / "plain" / "1"
    with pytest.raises(cellar_models.ExportError) as refused:
        cellar_models.export(nn.Linear(2, 3), tmp_path, name="No name", example=example)
    assert_type(refused.value.why, cellar_models.Why)
