"""`cellar-models render FILE.abc` for a tune's sound, `cellar-models picture next-frame` for what a model foresees."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

VERBS = ("render", "picture")


def main(arguments: list[str]) -> int:
    """0: written; 1: refused, with one line on standard error."""
    parser = argparse.ArgumentParser(prog="cellar-models", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    rendering = verbs.add_parser("render", help="a tune in ABC as MIDI and WAV")
    rendering.add_argument("file", type=Path, help="one tune; - for standard input")
    rendering.add_argument("--midi", type=Path, default=None, help="default: the file's name with .mid")
    rendering.add_argument("--wav", type=Path, default=None, help="default: the file's name with .wav")
    rendering.add_argument("--tempo", type=float, default=None, help="quarter notes a minute")
    picture = verbs.add_parser("picture", help="frames as they are and as the model foresees them, as PNG or SVG")
    picture.add_argument("name", choices=["next-frame"])
    picture.add_argument("--zoo", type=Path, default=Path("models/zoo"))
    picture.add_argument("--output", type=Path, default=Path("docs/next-frame.png"))
    options = parser.parse_args(arguments)
    if options.verb == "picture":
        return _picture(options)
    return _render(options)


def _render(options: argparse.Namespace) -> int:
    from cellar_models import rendering, tunes

    tempo = options.tempo or rendering.TEMPO
    if not 20 <= tempo <= 600:
        print("cellar-models: a tempo is 20 to 600 quarter notes a minute", file=sys.stderr)
        return 1
    try:
        text = sys.stdin.read() if str(options.file) == "-" else options.file.read_text("utf-8")
        tune = tunes.parse(text)
        samples = rendering.to_samples(tune, tempo)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        print(f"cellar-models: {options.file}: {error}", file=sys.stderr)
        return 1
    stem = Path("tune") if str(options.file) == "-" else options.file
    midi, wav = options.midi or stem.with_suffix(".mid"), options.wav or stem.with_suffix(".wav")
    rendering.to_midi(tune, tempo).save(str(midi))
    rendering.write_wav(samples, wav)
    for problem in tune.problems():
        print(f"cellar-models: {options.file}: {problem}", file=sys.stderr)
    print(f"wrote {midi} and {wav}, {len(samples) / rendering.RATE_HZ:.0f} s")
    return 0


def _picture(options: argparse.Namespace) -> int:
    """Three rows of one sample clip: as it went on; each frame foreseen from those before; foreseen without seeing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from cellar_models.next_frame import CLIP, WATCHED
    from cellar_models.verify import open_session

    folder = options.zoo / options.name / "1"
    if not (folder / "model.onnx").is_file():
        print(
            f"cellar-models: {folder / 'model.onnx'} is missing: it is written by `cellar-models export`",
            file=sys.stderr,
        )
        return 1
    with np.load(folder / "samples" / "clips.npz") as file:
        clip = file["clips"][:1].astype(np.float32) / 16
    step = open_session(folder / "model.onnx")
    state = np.zeros((1, step.get_inputs()[1].shape[1]), np.float32)
    each, _ = step.run(None, {"x": clip[:, :-1], "state": state})
    given, state = step.run(None, {"x": clip[:, :WATCHED], "state": state})
    alone = [given[:, -1:]]
    for _ in range(CLIP - WATCHED - 1):
        given, state = step.run(None, {"x": alone[-1], "state": state})
        alone.append(given)
    rows = {
        "the clip": clip[0, WATCHED:],
        "one frame ahead": each[0, WATCHED - 1 :],
        "nothing more shown": np.concatenate(alone, axis=1)[0],
    }
    figure, axes = plt.subplots(3, CLIP - WATCHED, figsize=(12, 4.1), layout="constrained")
    for axis_row, (name, frames) in zip(axes, rows.items(), strict=True):
        for k, (axis, frame) in enumerate(zip(axis_row, frames, strict=True)):
            axis.imshow(frame, cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if axis_row is axes[0]:
                axis.set_title(f"frame {WATCHED + k + 1}", fontsize=9)
        axis_row[0].set_ylabel(name, fontsize=9)
    # neither file says when it was made, so that the same model makes the same file
    metadata = {"Date": None} if options.output.suffix == ".svg" else {"Software": None}
    figure.savefig(options.output, dpi=80, metadata=metadata)
    plt.close(figure)
    print(f"wrote {options.output}")
    return 0
