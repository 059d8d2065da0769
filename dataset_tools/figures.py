"""Small pictures for an HTML page, as text: numbers in, inline SVG out; an encoded crop in, an <img> with its data out.

Made here and not by a plotting package: a crop worker has none, the page stays small, and the colours are the page's
own CSS, so that figures follow it into the dark. Every text that comes from outside is escaped.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import IO

from PIL import Image

from dataset_tools.survey import Histogram, Pick

THUMBNAIL_PX = 128
_THUMBNAIL_QUALITY = 72

_WIDTH, _HEIGHT = 320, 132
_LEFT, _RIGHT, _TOP, _FLOOR = 2, 318, 18, 108


def stacked_bar(parts: Sequence[tuple[str, int, str]], label: str) -> str:
    """One bar whose segments add up, and a legend with counts and shares. parts: (name, count, CSS class)."""
    total = sum(count for _, count, _ in parts)
    segments = "".join(
        f'<i class="{kind}" style="flex-grow:{count}" title="{escape(name)}: {count:,}"></i>'
        for name, count, kind in parts
        if count
    )
    items = "".join(
        f'<li><i class="{kind}"></i><b>{count:,}</b> {escape(name)} <span>{share(count, total)}</span></li>'
        for name, count, kind in parts
    )
    return f'<div class="bar" role="img" aria-label="{escape(label)}">{segments}</div><ul class="legend">{items}</ul>'


def share(count: int, total: int) -> str:
    """A percentage that never rounds a remainder away: `<0.1 %`, `99.9 %`."""
    if not total or count in (0, total):
        return f"{100 if total and count else 0} %"
    percent = 100 * count / total
    if percent < 0.1:
        return "<0.1 %"
    return f"{min(percent, 99.9):.1f} %" if percent < 10 or percent > 99 else f"{percent:.0f} %"


def histogram(of: Histogram, title: str, note: str, unit: str = "", digits: int = 0) -> str:
    """A <figure> with bars, ticks and a line at the median. note: what the measure is, for a reader who asks."""
    first, width, bars = of.bars()
    if not bars:
        return f'<figure><figcaption><b>{escape(title)}</b></figcaption><p class="soft">No values.</p></figure>'
    median, low, high = (f"{of.quantile(q):z,.{digits}f}" for q in (0.5, 0.05, 0.95))
    slot = (_RIGHT - _LEFT) / len(bars)
    tallest = max(bars)
    shapes = []
    for number, count in enumerate(bars):
        if count:
            height = max(1.0, (_FLOOR - _TOP) * count / tallest)
            ends = (f"{of.value(first + (number + n) * width):z,.{_digits(of, width, digits)}f}" for n in (0, 1))
            shapes.append(
                f'<rect x="{_LEFT + number * slot:.1f}" y="{_FLOOR - height:.1f}" width="{max(slot - 1, 1):.1f}" '
                f'height="{height:.1f}"><title>{" to ".join(ends)}{unit}: {count:,}</title></rect>'
            )

    def x_of(value: float) -> float:
        position = math.log2(value) if of.log else value
        return _LEFT + ((position - of.low) / of.step - first) / (width * len(bars)) * (_RIGHT - _LEFT)

    ticks = []
    for value in _ticks(of.value(first), of.value(first + width * len(bars)), log=of.log):
        x = x_of(value)
        ticks.append(f'<path d="M{x:.1f} {_FLOOR}v4"/>')
        half = 3.3 * len(f"{value:,g}")  # of the text's width, which must not reach out of the figure
        ticks.append(f'<text x="{min(max(x, half), _WIDTH - half):.1f}" y="{_FLOOR + 17}">{value:,g}</text>')
    middle = x_of(of.quantile(0.5))
    return (
        f"<figure><figcaption><b>{escape(title)}</b> median {median}{unit}"
        f"<small>{escape(note)} Nine in ten lie between {low} and {high}{unit}.</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}: median {median}{unit}">'
        f'<text x="{_LEFT}" y="11">{tallest:,}</text><g class="bars">{"".join(shapes)}</g>'
        f'<path class="floor" d="M{_LEFT} {_FLOOR}H{_RIGHT}"/>'
        f'<path class="median" d="M{middle:.1f} {_TOP - 4}V{_FLOOR}"/>'
        f'<g class="ticks">{"".join(ticks)}</g></svg></figure>'
    )


def thumbnail(pick: Pick, crop: bytes) -> str:
    """A crop as a small JPEG in a data: URI; a grey square where it cannot be read."""
    title = f"{pick.key} · face {pick.face_index} · score {pick.score:.3f} · sharpness {pick.sharpness:.0f}"
    return picture(io.BytesIO(crop), f"face, score {pick.score:.2f}", title)


def picture(file: IO[bytes], alt: str, title: str) -> str:
    """An <img> with its data; a grey square where the file is no picture."""
    title = escape(title)
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
            small = opened.convert("RGB")
    except OSError:
        return f'<span class="lost" title="{title}"></span>'
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=_THUMBNAIL_QUALITY, optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{encoded}" width="{small.width}" height="{small.height}" '
        f'alt="{escape(alt)}" title="{title}" decoding="async">'
    )


def _digits(of: Histogram, width: int, digits: int) -> int:
    return digits if of.log else max(0, -math.floor(math.log10(of.step * width) + 1e-9))


def _ticks(low: float, high: float, *, log: bool, most: int = 7) -> list[float]:
    """Round numbers from low to high: 1, 2, 5 of each power of ten on a logarithmic scale, else even steps."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
            if len(ticks) <= most:
                break
        return ticks
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 45, 60, 90):
        if (high - low) / step < most - 1 + 1e-9:
            break
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [round(number * step, 6) for number in numbers]
