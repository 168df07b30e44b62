"""`cellar-models draw FOLDER`: a model's cell, its layers and its unrolled steps, as SVG from the manifest alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np
from cellar_proto.v1.manifest_pb2 import MANY_TO_ONE, ONE_TO_MANY, ONE_TO_ONE, Manifest, Mode

_STYLE = (
    "text{font:13px sans-serif;fill:#222}.small{font-size:11px;fill:#555}.title{font-size:17px;font-weight:bold}"
    "rect{fill:#eef3fb;stroke:#3b5b92;rx:6}.io{fill:#f6f6f6;stroke:#888}.gate{fill:#fff4dc;stroke:#b07d1e}"
    ".frame{fill:none;stroke:#3b5b92}path{fill:none;stroke:#444;marker-end:url(#to)}.back{stroke-dasharray:5 3}"
)
# The equations of one step, as tests/models hold them (see cellar_models.oracle).
EQUATIONS = {
    "RNN": ["h' = tanh(W x + U h + b)"],
    "GRU": [
        "r = sigmoid(W_r x + U_r h + b_r)",
        "z = sigmoid(W_z x + U_z h + b_z)",
        "n = tanh(W_n x + b_n + r (U_n h + b_n'))",
        "h' = (1 - z) n + z h",
    ],
    "LSTM": [
        "i = sigmoid(W_i x + U_i h + b_i)",
        "f = sigmoid(W_f x + U_f h + b_f)",
        "o = sigmoid(W_o x + U_o h + b_o)",
        "g = tanh(W_g x + U_g h + b_g)",
        "c' = f c + i g",
        "h' = o tanh(c')",
    ],
}
COLUMN, ROW, BOX, LEFT = 210, 92, (110, 46), 400


@dataclass(frozen=True)
class Layer:
    """Parts of the row that belong together: name, kind ("LSTM", "GRU", "RNN" or "" for others), numbers by letter."""

    name: str
    kind: str
    sizes: dict[str, int]


def layers_of(manifest: Manifest) -> list[Layer]:
    """In the row's order."""
    groups: dict[str, dict[str, int]] = {}
    for part in manifest.parts:
        name, _, letter = part.name.rpartition(".")
        groups.setdefault(name or part.name, {})[letter] = int(np.prod(part.shape, dtype=np.int64))
    made = []
    for name, sizes in groups.items():
        kind = "LSTM" if set(sizes) == {"h", "c"} else ""
        if set(sizes) == {"h"}:
            said = f"{name} {manifest.architecture}".upper()
            kind = "GRU" if "GRU" in name.upper() or ("GRU" in said and "RNN" not in name.upper()) else "RNN"
        made.append(Layer(name, kind, sizes))
    return made


def draw(manifest: Manifest) -> str:
    """An SVG document: on the left the equations of each kind of cell, on the right the layers over the first steps."""
    layers = layers_of(manifest)
    num_steps = 1 if manifest.mode == ONE_TO_ONE else 4
    height = max(ROW * (len(layers) + 2) + 70, 260)
    width = LEFT + COLUMN * num_steps + 20
    body = [*_title(manifest), *_cells(layers), *_unrolled(manifest, layers, num_steps, height)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"<style>{_STYLE}</style>\n"
        '<defs><marker id="to" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
        '<path d="M0,0 L7,3 L0,6 z" style="fill:#444;stroke:none"/></marker></defs>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, lines: list[str], kind: str = "") -> Iterator[str]:
    """A box around a middle."""
    w, h = BOX
    yield f'<rect x="{x - w / 2}" y="{y - h / 2}" width="{w}" height="{h}" class="{kind}"/>'
    for k, line in enumerate(lines):
        yield _text(x, y + 5 + 15 * (k - (len(lines) - 1) / 2), line, "small" if k else "", "middle")


def _arrow(x0: float, y0: float, x1: float, y1: float, kind: str = "") -> str:
    return f'<path d="M{x0},{y0} L{x1},{y1}" class="{kind}"/>'


def _title(manifest: Manifest) -> Iterator[str]:
    yield _text(20, 30, f"{manifest.name}/{manifest.version}", "title")
    mode = Mode.Name(manifest.mode).lower().replace("_", "-")
    yield _text(20, 50, f"{mode}: {manifest.architecture}; {manifest.state_size} numbers of state", "small")


def _cells(layers: list[Layer]) -> Iterator[str]:
    y = 90.0
    for kind in dict.fromkeys(layer.kind for layer in layers if layer.kind):
        lines = EQUATIONS[kind]
        yield f'<rect x="20" y="{y - 20}" width="310" height="{22 * len(lines) + 30}" class="gate"/>'
        yield _text(32, y, f"{kind}: one step")
        for line in lines:
            y += 22
            yield _text(44, y, line)
        y += 60


def _unrolled(manifest: Manifest, layers: list[Layer], num_steps: int, height: float) -> Iterator[str]:
    w, h = BOX
    bottom = height - 60
    for t in range(1, num_steps + 1):
        x = LEFT + COLUMN * (t - 0.5)
        place = str(t) if t < num_steps or num_steps == 1 else "t"
        shape = "an id" if manifest.input.vocabulary else f"{list(manifest.input.shape)}"
        yield from _box(x, bottom, [f"x{place}", shape], "io")
        for k, layer in enumerate(layers):
            y = bottom - ROW * (k + 1)
            whole = manifest.is_whole_only  # nothing is kept, and both neighbours may be looked at
            yield from _box(x, y, ["network", "all steps at once"] if whole else [layer.kind or "keeps", layer.name])
            yield _arrow(x, y + ROW - h / 2, x, y + h / 2)
            carried = ", ".join(f"{letter} {size}" for letter, size in layer.sizes.items())
            if t < num_steps and whole:
                yield _arrow(x + w / 2, y - 8, x + COLUMN - w / 2, y - 8)
                yield _arrow(x + COLUMN - w / 2, y + 8, x + w / 2, y + 8)
            elif t < num_steps:
                yield _arrow(x + w / 2, y, x + COLUMN - w / 2, y, "back" if t == num_steps - 1 else "")
                text = carried if t == 1 else "..." if t == num_steps - 1 else ""
                yield _text(x + COLUMN / 2, y - 6, text, "small", "middle")
            if t == 1 and not whole:
                start = "primed" if manifest.HasField("prime") else manifest.start_file or "zeros"
                yield _arrow(x - COLUMN / 2 + 5, y, x - w / 2, y)
                yield _text(x - COLUMN / 2 - 2, y + 4, start, "small", "end")
        top = bottom - ROW * (len(layers) + 1)
        running = manifest.mode == MANY_TO_ONE and t < num_steps
        yield _arrow(x, top + ROW - h / 2, x, top + h / 2, "back" if running else "")
        yield from _box(x, top, [f"y{place}", "so far" if running else f"{list(manifest.output.shape)}"], "io")
        if manifest.mode == ONE_TO_MANY and t < num_steps:
            middle, right = x + COLUMN / 2, x + COLUMN - w / 2
            yield f'<path d="M{x + w / 2},{top} C{middle},{top} {middle},{bottom} {right},{bottom}" class="back"/>'
