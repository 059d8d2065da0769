"""What training tells in pictures: history rows, a confusion matrix and bins of confidence in, SVG files out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from dataset_tools import charts, metrics

_PANEL, _GAP, _LEFT, _TOP, _FLOOR = 270, 64, 34, 26, 196
_CELL_WIDTH, _CELL_HEIGHT = 58, 40


def learning_curves(history: Sequence[Mapping[str, Any]], best: int) -> str:
    """Loss and validation figures by epoch, counted over all stages. best: which row's weights were kept."""
    panels = (
        ("loss", (("loss", "training"), ("val_loss", "validation"))),
        ("validation", (("val_accuracy", "accuracy"), ("val_macro_f1", "macro F1"))),
    )
    shapes = [
        f'<g transform="translate({number * (_PANEL + _GAP)} 0)">{_panel(title, lines, history, best)}</g>'
        for number, (title, lines) in enumerate(panels)
    ]
    note = (
        f"The dot is epoch {best + 1}, whose weights were kept. The training loss has augmentation and weights in it."
    )
    return charts.document("Learning curves", note, "".join(shapes), 2 * _PANEL + _GAP, _FLOOR + 36)


def confusion(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A row for each labelled class: the share and number of its faces by predicted class."""
    left = 10 + 6.4 * max(map(len, names))
    shapes = [_text(left + number * _CELL_WIDTH + _CELL_WIDTH / 2, 12, name) for number, name in enumerate(names)]
    for number, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        y, total = 20 + number * _CELL_HEIGHT, sum(counts)
        shapes.append(_text(left - 8, y + _CELL_HEIGHT / 2 + 4, name, "end"))
        for place, (predicted, count) in enumerate(zip(names, counts, strict=True)):
            share = count / total if total else 0.0
            x, told = left + place * _CELL_WIDTH, f"{name} taken for {predicted}: {count:,.0f} of {total:,.0f}"
            box = f'x="{x + 1:.1f}" y="{y + 1}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" rx="4"'
            colour = "var(--paper)" if share > 0.6 else "var(--ink)"
            middle = x + _CELL_WIDTH / 2
            shapes.append(
                f'<g><title>{escape(told)}</title><rect {box} fill="var(--panel)"/>'
                f'<rect {box} fill="var(--main)" fill-opacity="{share:.3f}"/>'
                + (_text(middle, y + 18, f"{share:.0%}", style=f"font-size:12px;fill:{colour}") if count else "")
                + (_text(middle, y + 32, f"{count:,.0f}", style=f"font-size:10px;fill:{colour}") if count else "")
                + "</g>"
            )
    width = int(left + _CELL_WIDTH * len(names))
    note = "A row for each labelled class: the share and number of its faces by predicted class."
    return charts.document("Confusion matrix", note, "".join(shapes), width, 24 + _CELL_HEIGHT * len(names))


def reliability(of: metrics.Reliability) -> str:
    """Accuracy by bin of the calibrated confidence."""
    title = f"Reliability after temperature, ECE {metrics.ece(of):.3f}"
    note = "Bars: accuracy. Red: the distance to the confidence. Below: faces."
    bins = {name: values.tolist() for name, values in asdict(of).items()}
    return charts.document(title, note, charts.reliability_shapes(bins))


def _panel(title: str, lines: Sequence[tuple[str, str]], history: Sequence[Mapping[str, Any]], best: int) -> str:
    values = [float(row[name]) for name, _ in lines for row in history]
    low, high, step = _scale([one for one in values if math.isfinite(one)])
    last = max(len(history) - 1, 1)

    def x_of(epoch: int) -> float:
        return _LEFT + (epoch / last) * (_PANEL - _LEFT) if len(history) > 1 else (_LEFT + _PANEL) / 2

    def y_of(value: float) -> float:
        return _FLOOR - (value - low) / (high - low) * (_FLOOR - _TOP)

    shapes = [_text(_LEFT, 8, title, "")]
    for tick in np.arange(low, high + step / 2, step):
        shapes.append(f'<path class="grid" d="M{_LEFT} {y_of(tick):.1f}H{_PANEL}"/>')
        shapes.append(
            _text(_LEFT - 6, y_of(tick) + 4, f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}", "end")
        )
    every = _every(len(history))
    for number in sorted({1, *range(every, len(history) + 1, every)}):
        shapes.append(_text(x_of(number - 1), _FLOOR + 16, f"{number}"))
    shapes.append(_text((_LEFT + _PANEL) / 2, _FLOOR + 31, "epoch"))
    for epoch in range(1, len(history)):
        if history[epoch]["stage"] != history[epoch - 1]["stage"]:
            x = (x_of(epoch) + x_of(epoch - 1)) / 2
            shapes.append(f'<path class="even" d="M{x:.1f} {_TOP}V{_FLOOR}"/>')
            shapes.append(_text(x, _TOP - 4, f"{history[epoch]['stage']} stage"))
    for number, (name, called) in enumerate(lines):
        points = [(x_of(at), y_of(float(row[name]))) for at, row in enumerate(history) if math.isfinite(row[name])]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(f'<polyline class="curve c{number}" points="{path}"/>')
        if math.isfinite(history[best][name]):
            place = f'cx="{x_of(best):.1f}" cy="{y_of(history[best][name]):.1f}"'
            shapes.append(f'<circle class="curve c{number}" {place} r="3" style="fill:var(--paper)"/>')
        x = _PANEL - 148 + 78 * number
        shapes.append(f'<path class="curve c{number}" d="M{x} 4h12"/>' + _text(x + 17, 8, called, ""))
    return "".join(shapes)


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Round bounds around the values, and the step of three to six lines between them."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = max(high - low, abs(high) / 100, 1e-3)
    step = 10.0 ** math.floor(math.log10(span))
    step *= next(part for part in (0.2, 0.5, 1, 2) if span / (step * part) <= 5)
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step


def _every(count: int) -> int:
    """How many epochs apart the numbers stand, so that seven or so fit."""
    return next(one for one in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count / one <= 7)


def _text(x: float, y: float, text: str, place: str = "mid", style: str = "") -> str:
    kind = f' class="{place}"' if place else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}"' + (f' style="{style}"' if style else "") + f">{escape(text)}</text>"
