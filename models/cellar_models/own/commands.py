"""`cellar-models import-onnx FILE`, `cellar-models validate FOLDER` and `cellar-models draw FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

VERBS = ("import-onnx", "validate", "draw")


def main(arguments: list[str]) -> int:
    """0: imported, or proved; 1: refused, or refuted, and why; 2 (argparse): asked wrongly."""
    parser = argparse.ArgumentParser(prog="cellar-models", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    importing = verbs.add_parser("import-onnx", help="rewrite an ONNX file with state inputs and outputs to an entry")
    importing.add_argument("file", type=Path)
    importing.add_argument("--models", type=Path, default=Path("models"), help="folder of models to write into")
    importing.add_argument("--name", required=True, help="the model's name")
    importing.add_argument("--version", type=int, default=0, help="0: the next free number")
    importing.add_argument(
        "--pair", action="append", default=[], metavar="IN:OUT", help="a state input, and its next value"
    )
    importing.add_argument("--input", default="", help="the sequence input, where several are left")
    importing.add_argument("--output", default="", help="the output that is emitted")
    importing.add_argument("--axes", default="", help="of the input: batch,time or time,batch or batch (one step)")
    importing.add_argument("--state-axis", action="append", default=[], metavar="IN=AXIS", help="a state's batch axis")
    importing.add_argument("--constant", action="append", default=[], metavar="IN=VALUE", help="an input set for good")
    importing.add_argument("--vocabulary", type=int, default=0, help="ids that an integer input takes")
    importing.add_argument("--accept-proposed", action="store_true", help="take what is guessed, without a question")
    validating = verbs.add_parser("validate", help="prove an entry, <models>/<name>/<version>")
    validating.add_argument("folder", type=Path)
    drawing = verbs.add_parser("draw", help="draw an entry's cell, layers and unrolled steps as SVG")
    drawing.add_argument("folder", type=Path, help="<models>/<name>/<version>, or a model of the zoo by name")
    drawing.add_argument("--output", type=Path, default=None, help="the file (default: NAME.svg)")
    options = parser.parse_args(arguments)
    if options.verb == "draw":
        return _draw(options.folder, options.output)
    if options.verb == "validate":
        return _validate(options.folder)
    try:
        pairs = dict(_split(each, ":") for each in options.pair)
        state_axes = {name: int(axis) for name, axis in (_split(each, "=") for each in options.state_axis)}
        constants = {name: float(value) for name, value in (_split(each, "=") for each in options.constant)}
    except ValueError as error:
        importing.error(str(error))
    return _import(options, pairs, state_axes, constants)


def _split(text: str, mark: str) -> tuple[str, str]:
    name, found, value = text.rpartition(mark)
    if not found or not name or not value:
        raise ValueError(f"{text!r} is not NAME{mark}VALUE")
    return name, value


def _import(
    options: argparse.Namespace, pairs: dict[str, str], state_axes: dict[str, int], constants: dict[str, float]
) -> int:
    from cellar_models.own.imported import import_onnx
    from cellar_models.own.why import ExportError

    def confirm(guesses: list[str]) -> bool:
        if options.accept_proposed:
            print("taken as proposed: " + " ".join(guesses))
            return True
        if not sys.stdin.isatty():
            return False
        print("proposed:", *guesses, sep="\n  ")
        return input("is this so? [y/N] ").strip().lower() in ("y", "yes")

    try:
        found = import_onnx(
            options.file, options.models, name=options.name, version=options.version, pairs=pairs, x=options.input,
            output=options.output, axes=tuple(filter(None, options.axes.split(","))), state_axes=state_axes,
            constants=constants, vocabulary=options.vocabulary, confirm=confirm,
        )  # fmt: skip
    except ExportError as error:
        print(f"cellar-models: {error}", file=sys.stderr)
        return 1
    print(found)
    return 0


def _validate(folder: Path) -> int:
    from cellar_models.own.validate import validate

    found = validate(folder)
    print(found)
    print(f"{folder}: " + ("proved" if found.is_good else "REFUTED: it cannot be served as it is"))
    return 0 if found.is_good else 1


def _draw(folder: Path, output: Path | None) -> int:
    from cellar_proto.v1.manifest_pb2 import Manifest
    from google.protobuf import json_format

    from cellar_models.own.drawing import draw

    path = folder / "manifest.json"
    if not path.is_file() and len(folder.parts) == 1:
        path = Path("models/zoo") / folder / "1" / "manifest.json"
    try:
        manifest = json_format.Parse(path.read_text("utf-8"), Manifest())
        output = output or Path(f"{Path(manifest.name).name}.svg")
        output.write_text(draw(manifest), "utf-8")
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        print(f"cellar-models: {path}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {output}")
    return 0
