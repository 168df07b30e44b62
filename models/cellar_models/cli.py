"""`cellar-models train|evaluate|export|verify NAME` and `list` for the zoo; `import-onnx|validate|draw` for any;
`study|compare` write docs; `render` and `picture` for what they make; `folds NAME` trains anew for each fold of
the data and gives mean and spread; `plot NAME` writes docs/NAME.svg; `ablate NAME` trains it without what its card
compares it with."""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from cellar_models import shown
from cellar_models.cards import beside, card, findings, table, training_of
from cellar_models.data import DataChanged, DataMissing, data_folder
from cellar_models.halves import round_weights
from cellar_models.lessons import commands as lessons
from cellar_models.network import Network
from cellar_models.own import commands
from cellar_models.training import Trainer, training_numbers
from cellar_models.verify import VerifyError, verify

# Module of each model of the zoo, in the order in which `make train` makes them.
MODELS = {
    "digits": "digits",
    "sentiment": "sentiment",
    "sentiment-ru": "sentiment_ru",
    "describe": "describe",
    "forecast": "forecast",
    "chars-en": "chars_en",
    "chars-ru": "chars_ru",
    "spoken-digits": "spoken_digits",
    "tagger": "tagger",
    "tagger-whole": "tagger_whole",
    "translate": "translate",
    "melody": "melody",
    "caption": "caption",
    "next-frame": "next_frame",
}


def main(arguments: list[str] | None = None) -> int:
    """0: done; 1: refused, with one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in commands.VERBS:
        return commands.main(arguments)
    if arguments and arguments[0] in lessons.VERBS:
        return lessons.main(arguments, MODELS, module_of)
    if arguments and arguments[0] in shown.VERBS:
        return shown.main(arguments)
    if arguments == ["list"]:
        print("\n".join(MODELS))
        return 0
    parser = argparse.ArgumentParser(prog="cellar-models", description=__doc__)
    parser.add_argument("verb", choices=list(_VERBS))
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder of the data sets (CELLAR_DATA)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trained weights are kept")
    parser.add_argument("--zoo", type=Path, default=Path("models/zoo"), help="where artefacts are written")
    parser.add_argument(
        "--precision",
        choices=["float32", "int8"],
        default="float32",
        help="export: float32 writes the folder anew, int8 adds that form to it; evaluate, verify: which form",
    )
    parser.add_argument(
        "--from", dest="source", type=Path, default=None, help="folder of an artefact: its weights, not those of a run"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=None, help="at most so many")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    try:
        with training_numbers():
            return _VERBS[options.verb](module_of(options.name), options)
    except (DataMissing, DataChanged, VerifyError, FileNotFoundError) as error:
        print(f"cellar-models: {error}", file=sys.stderr)
        return 1


def module_of(name: str) -> ModuleType:
    """A zoo model's module: build, train, evaluate, write_samples."""
    return importlib.import_module(f"cellar_models.{MODELS[name]}")


def _train(model: ModuleType, options: argparse.Namespace) -> int:
    network = model.build(options.data)
    options.runs.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()

    def keep(network: nn.Module) -> None:
        seconds = time.process_time() - begun
        saved = {"weights": network.state_dict(), "seconds": seconds, "seed": options.seed, "clock": "of CPU"}
        torch.save(saved, _weights(options))

    trainer = Trainer(network, max_epochs=options.epochs, keep=keep)
    model.train(network, options.data, trainer)
    keep(network)
    round_weights(network)
    print(f"trained in {time.process_time() - begun:.0f} s of CPU on one thread: {_weights(options)}")
    print(table(model.evaluate(network, options.data)))
    return 0


def _weights(options: argparse.Namespace) -> Path:
    return Path(options.runs / f"{options.name}.pt")


def _saved(options: argparse.Namespace) -> tuple[dict[str, Any], Path | None]:
    """Weights and what is known of their training; the artefact that they lie in, where they are not a run's."""
    from cellar_models.export import read_weights

    path, served = _weights(options), options.zoo / options.name / "1"
    if options.source is not None:
        _present(options.source / "model.pt")
        told = training_of(_present(options.source / "CARD.md").read_text("utf-8"))
        return {"weights": read_weights(options.source), **told}, options.source
    if path.is_file():
        return torch.load(path, weights_only=True), None
    if (served / "model.pt").is_file() and (options.verb != "export" or options.precision == "int8"):
        return {"weights": read_weights(served)}, served
    raise FileNotFoundError(f"{path} is missing: first `cellar-models train {options.name}`")


def _load(model: ModuleType, options: argparse.Namespace) -> tuple[Network, dict[str, Any]]:
    """The network as it is served, its weights rounded to halves, and what is known of its training."""
    from cellar_models.export import check_codecs

    saved, artefact = _saved(options)
    network = model.build(options.data)
    if artefact is not None:
        check_codecs(network, artefact)
    try:
        network.load_state_dict(saved["weights"])
    except RuntimeError:
        raise VerifyError(
            f"the weights of {options.name} are of another network: first `cellar-models train {options.name}`"
        ) from None
    network.eval()
    round_weights(network)
    return network, saved


def _evaluate(model: ModuleType, options: argparse.Namespace) -> int:
    network, _ = _load(model, options)
    if options.precision == "int8":
        from cellar_models.variants import INT8_FILE, Served

        network = Served(network, _present(options.zoo / options.name / "1" / INT8_FILE))  # type: ignore[assignment]
    print(table(model.evaluate(network, options.data)))
    return 0


def _export(model: ModuleType, options: argparse.Namespace) -> int:
    from cellar_models.export import export

    if options.precision == "int8":
        return _export_int8(model, options)
    network, saved = _load(model, options)
    text = card(options.name, model.evaluate(network, options.data), saved)
    folder = export(network, options.zoo, card=text, samples=lambda folder: model.write_samples(folder, options.data))
    print(f"wrote {folder}")
    return 0


def _export_int8(model: ModuleType, options: argparse.Namespace) -> int:
    from cellar_models.variants import add_int8

    folder = options.zoo / options.name / "1"
    _present(folder / "model.onnx")
    network, _ = _load(model, options)
    exact = model.evaluate(network, options.data)
    add_int8(network, folder, lambda served: beside(exact, model.evaluate(served, options.data)))
    print(f"wrote int8 into {folder}")
    return 0


def _present(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it is written by `cellar-models export`")
    return path


def _verify(model: ModuleType, options: argparse.Namespace) -> int:
    network, _ = _load(model, options)
    if options.precision == "int8":
        from cellar_models.variants import INT8_FILE, measure

        folder = options.zoo / options.name / "1"
        _present(folder / INT8_FILE)
        distance = measure(network, folder)
        print(f"int8 from float32: {distance.one_step:.1e} in one step, {distance.whole:.1e} after 16 steps")
        print("the same bits at all rows and cuts" if distance.is_bit_identical else "bits depend on rows or cuts")
        return 0 if distance.is_bit_identical else 1
    report = verify(network, options.zoo / options.name / "1")
    print(findings(report))
    return 0


def _folds(model: ModuleType, options: argparse.Namespace) -> int:
    if not hasattr(model, "folds"):
        raise FileNotFoundError(f"{options.name} has no folds")
    found: list[dict[str, float]] = []
    for each in model.folds(options.data, options.seed, options.epochs):
        print(f"{len(found)}: " + ", ".join(f"{name} {value:.4f}" for name, value in each.items()), flush=True)
        found.append(each)
    for name in found[0]:
        values = [each[name] for each in found]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        print(f"{name:40} {mean:.4f} +- {spread:.4f}  " + " ".join(f"{value:.4f}" for value in values))
    return 0


def _ablate(model: ModuleType, options: argparse.Namespace) -> int:
    if not hasattr(model, "ablate"):
        raise FileNotFoundError(f"{options.name} has no lesser form that it is compared with")
    print(model.ablate(options.data, options.epochs))
    return 0


def _plot(model: ModuleType, options: argparse.Namespace) -> int:
    if not hasattr(model, "plot"):
        raise FileNotFoundError(f"{options.name} has no plot")
    network, _ = _load(model, options)
    path = Path("docs") / f"{options.name}.svg"
    path.write_text(model.plot(network, options.data))
    print(f"wrote {path}")
    return 0


_VERBS = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "verify": _verify,
    "folds": _folds,
    "plot": _plot,
    "ablate": _ablate,
}

if __name__ == "__main__":
    sys.exit(main())
