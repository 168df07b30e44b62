"""The naive forecasts, the picture, and the benchmark that is evaluated only."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import etth1, forecast  # noqa: E402
from cellar_models.plot import HEIGHT, TOP, Panel, draw  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402

DATA = Path(os.environ.get("CELLAR_DATA", "data"))
_PM25 = pytest.mark.skipif(not (DATA / "ts_beijing_pm25").is_dir(), reason="CELLAR_DATA holds no ts_beijing_pm25")
_ETTH1 = pytest.mark.skipif(not (DATA / "ts_etth1").is_dir(), reason="CELLAR_DATA holds no ts_etth1")


def test_a_picture_has_a_gap_where_nothing_is_known() -> None:
    picture = ElementTree.fromstring(draw([Panel("a < b", {"one": np.array([0.0, np.nan, 4.0, 2.0])})], "title"))
    paths = [each.get("d", "") for each in picture.iter("{http://www.w3.org/2000/svg}path")]
    (line,) = [each for each in paths if each.count("M") == 2]
    assert line.count("L") == 1
    assert f" {TOP:.1f}L" in line  # the largest is at the top
    assert f" {TOP + HEIGHT / 2:.1f}" in line
    assert "a < b" in "".join(picture.itertext())


@_PM25
def test_an_untrained_forecast_is_the_last_value() -> None:
    network = forecast.Forecast(4)
    result = forecast.evaluate(network, DATA)
    assert result.metrics["test RMSE"] == pytest.approx(result.baselines["last value"], rel=1e-5)
    assert result.baselines["last value"] == pytest.approx(22.1377, abs=1e-4)
    assert min(result.baselines.values()) == result.baselines["last value"]
    picture = ElementTree.fromstring(forecast.plot(network, DATA))
    assert {"measured", "forecast", "last value"} <= set(picture.itertext())


@_ETTH1
def test_the_naive_forecasts_of_the_benchmark() -> None:
    """Against the figures that are stated with the data."""
    network = etth1.Etth1(4).eval()
    ours, last, day = (each**2 for each in etth1._errors(network, DATA, *etth1.SPLIT[1:]))
    assert len(day) == etth1.SPLIT[2] - etth1.SPLIT[1] - etth1.DAY + 1
    assert day.mean() == pytest.approx(0.424, abs=1e-3)
    assert last[:, 0].mean() == pytest.approx(0.175, abs=1.5e-3)
    assert last[:, 0, -1].mean() == pytest.approx(0.004, abs=1e-3)
    assert last[:, :, -1].mean() == pytest.approx(0.034, abs=1e-3)
    # untrained it is half the way from the last value to the day before, and nearer than the last value
    assert ours.mean() < last.mean()


@_ETTH1
def test_one_epoch_on_the_benchmark_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = etth1.Etth1(8)
    before = (etth1._errors(network.eval(), DATA, *etth1.SPLIT[:2])[0] ** 2).mean()
    assert etth1.train(network, DATA, Trainer(network, is_quiet=True, max_epochs=1)) < before
    assert not list(tmp_path.iterdir())


@_ETTH1
def test_the_command_for_the_benchmark_keeps_its_findings_and_chooses_without_the_test_months(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, path, real, parts = torch.get_num_threads(), tmp_path / "etth1.json", etth1._errors, []
    monkeypatch.setattr(etth1, "SETTINGS", [etth1.Setting(4, 0.5, 0.0), etth1.Setting(4, 0.5, 5e-3)])
    monkeypatch.setattr(etth1, "CHOSEN", etth1.Setting(4, 0.5, 5e-3))

    def errors(network: torch.nn.Module, data: Path, first: int, end: int) -> tuple[np.ndarray, ...]:
        parts.append((first, end))
        return real(network, data, first, end)

    monkeypatch.setattr(etth1, "_errors", errors)
    few = ["--data", str(DATA), "--seeds", "1", "--epochs", "2"]
    assert etth1.main([*few, "--choose"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"chosen: {etth1.SETTINGS[1]}"
    assert set(parts) == {etth1.SPLIT[:2]}
    assert etth1.main([*few, "--findings", str(path)]) == 0
    torch.set_num_threads(threads)
    found = json.loads(path.read_text())["measures"]["OT, mean of 1 to 24"]
    assert [len(found[name]) for name in ("LSTM", "last value", "the day before")] == [1, 2, 2]


def test_missing_data_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert etth1.main(["--data", str(tmp_path)]) == 1
    assert "ETDataset" in capsys.readouterr().err
