"""Plots of how good a model is: lists of numbers in, SVG text out, inline for a page or as a file of its own.

The colours are those of charts.css, which pages hold once and a file holds itself, so both follow the reader into the
dark.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

_WIDTH, _HEIGHT = 320, 236
_LEFT, _RIGHT, _TOP, _FLOOR = 38, 312, 10, 176
_COLOURS = 4


def style() -> str:
    """The CSS of pages and plots: colours, by day and by night, and the classes that the shapes have."""
    return resources.files("dataset_tools").joinpath("charts.css").read_text("utf-8")


def document(title: str, note: str, shapes: str, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    """A plot as a file of its own: a heading above the shapes, which lie between (0, 0) and (width, height)."""
    width = max(width, round(5.7 * len(note)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -46 {width + 24} {height + 58}" '
        f'width="{round(1.3 * width)}" role="img" aria-label="{escape(title)}"><style>{style()}</style>'
        f'<rect x="-12" y="-46" width="{width + 24}" height="{height + 58}" fill="var(--paper)"/>'
        f'<text x="0" y="-27" style="font-size:14px;font-weight:640;fill:var(--ink)">{escape(title)}</text>'
        f'<text x="0" y="-11">{escape(note)}</text>{shapes}</svg>\n'
    )


def reliability(of: Mapping[str, Sequence[Any]], title: str, note: str) -> str:
    """Accuracy by bin of confidence as bars, the distance to the bin's confidence in red, faces by bin below."""
    return _figure(title, note, reliability_shapes(of))


def reliability_shapes(of: Mapping[str, Sequence[Any]]) -> str:
    """The shapes of `reliability`. of: `faces`, `confidence` and `accuracy` of each bin."""
    bins = len(of["faces"])
    most = max(of["faces"], default=0) or 1
    slot = (_RIGHT - _LEFT) / bins
    shapes = [_grid("confidence", "accuracy", 1.0)]
    for number, (faces, sure, right) in enumerate(zip(of["faces"], of["confidence"], of["accuracy"], strict=True)):
        if not faces:
            continue
        x, width = _LEFT + number * slot + 1, slot - 2
        high, low = _y(max(sure, right)), _y(min(sure, right))
        told = f"{faces:,} faces, confidence {sure:.1%}, accuracy {right:.1%}"
        count = max(1.0, 24 * faces / most)
        shapes.append(
            f"<g><title>{told}</title>"
            f'<g class="bars"><rect x="{x:.1f}" y="{_y(right):.1f}" width="{width:.1f}" '
            f'height="{_FLOOR - _y(right):.1f}"/></g>'
            f'<rect class="gap" x="{x:.1f}" y="{high:.1f}" width="{width:.1f}" height="{max(low - high, 0.5):.1f}"/>'
            f'<rect class="count" x="{x:.1f}" y="{_HEIGHT - count:.1f}" width="{width:.1f}" height="{count:.1f}"/></g>'
        )
    shapes.append(f'<path class="even" d="M{_LEFT} {_FLOOR}L{_RIGHT} {_TOP}"/>')
    return "".join(shapes)


def risk_coverage(curves: Sequence[tuple[str, Mapping[str, Sequence[float]]]], title: str, note: str) -> str:
    """The share of errors among the most confident faces, one line a model. curves: (name, coverage and risk).

    Drawn from a coverage of 1 % up: a handful of faces makes a line that jumps between 0 and 1.
    """
    lines = [[point for point in zip(of["coverage"], of["risk"], strict=True) if point[0] >= 0.01] for _, of in curves]
    highest = max((risk for line in lines for _, risk in line), default=0.0)
    top = next(step for step in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= step)
    shapes = [_grid("coverage", "errors", top)]
    for number, ((name, _), line) in enumerate(zip(curves, lines, strict=True)):
        points = " ".join(f"{_LEFT + coverage * (_RIGHT - _LEFT):.1f},{_y(risk / top):.1f}" for coverage, risk in line)
        shapes.append(f'<polyline class="{_line(number)}" points="{points}"><title>{escape(name)}</title></polyline>')
    return _figure(title, note, "".join(shapes), height=_FLOOR + 32) + (keys(curves) if len(curves) > 1 else "")


def keys(curves: Sequence[tuple[str, Any]]) -> str:
    """Which line is whose."""
    items = "".join(
        f'<li><i class="c{number % _COLOURS}{" dash" if number >= _COLOURS else ""}"></i>{escape(name)}</li>'
        for number, (name, _) in enumerate(curves)
    )
    return f'<ul class="keys">{items}</ul>'


def _line(number: int) -> str:
    return f"curve c{number % _COLOURS}" + (" dash" if number >= _COLOURS else "")


def _grid(across: str, up: str, top: float) -> str:
    """Lines and numbers at quarters; across runs from 0 to 100 %, up from 0 to `top`."""
    parts = []
    for number in range(5):
        x, y = _LEFT + number / 4 * (_RIGHT - _LEFT), _y(number / 4)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{100 * top * number / 4:g}</text>')
        place = "end" if number == 4 else "mid"
        parts.append(f'<text class="{place}" x="{x:.1f}" y="{_FLOOR + 16}">{25 * number}</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP + 8}">{up}, %</text>')
    parts.append(f'<text class="mid" x="{(_LEFT + _RIGHT) / 2}" y="{_FLOOR + 29}">{across}, %</text>')
    return "".join(parts)


def _y(share: float) -> float:
    return _FLOOR - share * (_FLOOR - _TOP)


def _figure(title: str, note: str, shapes: str, height: int = _HEIGHT) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b><small>{escape(note)}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{shapes}</svg></figure>'
    )
