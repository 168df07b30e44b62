"""Lines over time as a small SVG."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

WIDTH, HEIGHT, LEFT, TOP = 840, 190, 64, 46
COLOURS = ("#888888", "#c0392b", "#2471a3")


@dataclass(frozen=True)
class Panel:
    """Lines by name over the same steps, [steps] each, NaN where there is none; title: what the axis says."""

    title: str
    lines: dict[str, np.ndarray]


def draw(panels: list[Panel], title: str) -> str:
    """The panels under each other, all over the same steps, whole numbers of pixels and tenths."""
    height = TOP + len(panels) * (HEIGHT + 40)
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 16} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        text += _panel(panel, TOP + number * (HEIGHT + 40))
    return "\n".join([*text, "</svg>"]) + "\n"


def _panel(panel: Panel, top: int) -> list[str]:
    most = max(float(np.nanmax(values)) for values in panel.lines.values()) or 1.0
    floor = top + HEIGHT
    text = [f'<path d="M{LEFT} {top}V{floor}H{LEFT + WIDTH}" fill="none" stroke="black"/>']
    for share in (0.0, 0.5, 1.0):
        y = floor - share * HEIGHT
        text.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{share * most:.3g}</text>')
    text.append(f'<text x="{LEFT + 8}" y="{top - 6}">{escape(panel.title)}</text>')
    for i, (name, values) in enumerate(panel.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        text.append(f'<path d="{_path(values, most, floor)}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        text.append(f'<text x="{LEFT + 250 + 200 * i}" y="{top - 6}" fill="{colour}">{escape(name)}</text>')
    return text


def _path(values: np.ndarray, most: float, floor: int) -> str:
    """Moves to a point after a gap, lines to the others."""
    parts, is_drawing = [], False
    for i, value in enumerate(values):
        if np.isnan(value):
            is_drawing = False
            continue
        x, y = LEFT + i * WIDTH / max(len(values) - 1, 1), floor - HEIGHT * float(value) / most
        parts.append(f"{'L' if is_drawing else 'M'}{x:.1f} {y:.1f}")
        is_drawing = True
    return "".join(parts)
