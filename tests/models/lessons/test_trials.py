"""The same network with each kind of cell: equal parameters, the zoo's training, a page from what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import describe, digits, forecast, sentiment  # noqa: E402
from cellar_models.cli import main  # noqa: E402
from cellar_models.lessons.cells import COMPARED, keep, kept, render, write_cells  # noqa: E402
from cellar_models.lessons.trials import Trial, cell_of, count, hidden_size_for, run_trial  # noqa: E402
from cellar_models.network import Network  # noqa: E402
from cellar_models.training import Result, Trainer  # noqa: E402

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
ACTS = (["<begin>", "<end>", "<unk>", "is", "<name>"], ["act=inform", "slot=name"], ["name"], [])
BUILT = {
    "digits": lambda kind, n: digits.Digits(n, kind),
    "describe": lambda kind, n: describe.Describe(*ACTS, n, 4, kind=kind),
    "sentiment": lambda kind, n: sentiment.Sentiment(["[UNK]", "a", "b"], 4, n, kind=kind),
    "forecast": lambda kind, n: forecast.Forecast(n, kind),
}


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_each_network_takes_each_cell_and_keeps_its_equations(name: str, kind: str) -> None:
    torch.manual_seed(0)
    network: Network = BUILT[name](kind, 7)
    assert (cell_of(network).kind, cell_of(network).hidden_size) == (kind, 7)
    rng = np.random.default_rng(0)
    x = network.example(3, 5, rng)
    state = rng.uniform(-0.5, 0.5, (3, network.state_size)).astype(np.float32)
    with torch.no_grad():
        y, following = network.eval()(torch.from_numpy(x), torch.from_numpy(state))
    expected, expected_state = network.equations(x, state.astype(np.float64))
    assert np.abs(y.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(following.numpy() - expected_state).max() < 1e-5


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_the_hidden_size_is_the_nearest_in_parameters(name: str, kind: str) -> None:
    sizes = {n: count(BUILT[name](kind, n)) for n in (4, 8, 12, 19, 20, 21)}
    for wanted in (sizes[20], sizes[20] + 5, sizes[20] - 5):
        assert hidden_size_for(wanted, sizes.__getitem__) == 20
    assert sizes[19] < sizes[20] < sizes[21]


def evaluate(network: digits.Digits, data: Path) -> Result:
    """Accuracy alone, without the baselines, which take seconds."""
    images, classes, part = digits.load()
    with torch.no_grad():
        y = network(torch.from_numpy(images[part == 2])[:, None], torch.zeros(359, network.state_size))[0]
    accuracy = float((y[:, 0].argmax(1).numpy() == classes[part == 2]).mean())
    return Result({"test accuracy": accuracy}, {}, "share of 359 images", True)


def test_a_trial_measures_what_it_trained() -> None:
    said: list[str] = []
    model = SimpleNamespace(build=digits.build, train=digits.train, evaluate=evaluate)
    trial = run_trial("digits", model, Path(), "gru", [1, 2], 2, said.append)
    assert (trial.model, trial.mode, trial.kind, trial.is_shipped) == ("digits", "one-to-one", "gru", False)
    assert abs(trial.num_parameters - count(digits.Digits())) < 200
    assert trial.num_epochs == [2, 2]
    assert trial.num_updates[0] == 2 * 34
    assert 0.3 < min(trial.scores) <= max(trial.scores) < 1
    assert trial.ms_per_step > 0
    assert len(said) == 2
    assert "digits, GRU of 30, seed 2: test accuracy" in said[1]


def test_the_epochs_of_a_cycle_are_counted() -> None:
    def train(network: digits.Digits, data: Path, trainer: Trainer) -> None:
        trainer.cycle(lambda: 0.0, lambda: 0.0, num_epochs=3)

    model = SimpleNamespace(build=digits.build, train=train, evaluate=evaluate)
    assert run_trial("digits", model, Path(), "rnn", [1], None, lambda _: None).num_epochs == [3]


def test_a_training_says_how_its_steps_shrink() -> None:
    rates: list[float] = []

    def train(network: digits.Digits, data: Path, trainer: Trainer) -> None:
        def epoch() -> float:
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            return 0.0

        trainer.fit(epoch, lambda: 1.0 - len(rates), num_epochs=3, patience=2, decay=0.5)

    model = SimpleNamespace(build=digits.build, train=train, evaluate=evaluate)
    assert run_trial("digits", model, Path(), "rnn", [1], None, lambda _: None).num_epochs == [3]
    assert rates == [rates[0], rates[0] / 2, rates[0] / 4]


def trial(kind: str, scores: list[float]) -> Trial:
    n = len(scores)
    return Trial(
        "digits", "one-to-one", kind, kind == "rnn", 64, 9000, 64, "accuracy", "share of images", list(range(n)),
        scores, [3] * n, [100] * n, [2.0] * n, 0.012,
    )  # fmt: skip


def test_a_page_shows_what_was_kept(tmp_path: Path) -> None:
    keep([trial("rnn", [0.5, 0.7]), trial("gru", [0.9, 0.9])], tmp_path)
    assert [each.kind for each in kept(tmp_path)["digits"]] == ["rnn", "gru"]
    page = write_cells(tmp_path).read_text()
    assert "## digits: one-to-one\n\nUnit: share of images; 2 trainings each.\n" in page
    assert "| RNN of 64 (the zoo) | 0.6000 (0.5000 to 0.7000) | 9000 | 64 | 12 | 20.0 | 3 | 2 |\n" in page
    assert "| GRU of 64 | 0.9000 | 9000 |" in page
    assert main(["compare", "--docs", str(tmp_path)]) == 0
    assert write_cells(tmp_path).read_text() == page


def test_an_unknown_name_is_asked_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "nothing"])
    assert "NAME is one of" in capsys.readouterr().err


def test_missing_data_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "forecast", "--data", str(tmp_path), "--docs", str(tmp_path)]) == 1
    assert "CELLAR_DATA" in capsys.readouterr().err


def test_the_page_in_docs_is_what_was_measured() -> None:
    trials = kept(ROOT / "docs")
    assert (ROOT / "docs" / "cells.md").read_text() == render(trials)
    for several in trials.values():
        assert [each.kind for each in several] == ["rnn", "lstm", "gru"]
        assert sum(each.is_shipped for each in several) == 1
        sizes = [each.num_parameters for each in several]
        assert max(sizes) < 1.03 * min(sizes)
        assert all(set(dataclasses.asdict(each)) == set(dataclasses.asdict(several[0])) for each in several)
