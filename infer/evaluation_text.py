"""Figures and names as the page shows them: a value with its interval in, escaped HTML out."""

from collections.abc import Mapping
from html import escape

from infer.evaluation import UNBOUNDED

Interval = Mapping[str, float | None]
"""value, low and high; None where there is none."""


def interval(figure: str, of: Interval, *, signed: bool = False) -> str:
    """A value, and its interval in small."""
    if of["value"] is None:
        return '<span class="soft">none</span>'
    text = value(figure, of, signed=signed)
    if of["low"] is None or of["high"] is None:
        return text
    low, high = (_number(figure, of[name], signed=signed) for name in ("low", "high"))
    return f"{text}<small>{low} to {high}</small>"


def value(figure: str, of: Interval, *, signed: bool = False) -> str:
    """The value alone; a difference of shares is in percentage points."""
    if of["value"] is None:
        return "none"
    return _number(figure, of["value"], signed=signed) + ("" if _is_plain(figure) else " pp" if signed else " %")


def _number(figure: str, value: float | None, *, signed: bool) -> str:
    sign = "+" if signed else ""
    if value is None:
        return ""
    text = f"{value:{sign}.3f}" if _is_plain(figure) else f"{100 * value:{sign}.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _is_plain(figure: str) -> bool:
    """Whether a figure is a number and not a share."""
    return figure in UNBOUNDED or figure in ("ece", "ece_before", "aurc", "macro_f1", "weighted_f1", "f1")


def key(text: str) -> str:
    """A name from outside. <bdi>: one that is written from right to left must not turn round what follows it."""
    return f'<bdi class="key">{escape(text)}</bdi>'


def plural(count: int, noun: str) -> str:
    """`1 face`, `2,000 faces`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
