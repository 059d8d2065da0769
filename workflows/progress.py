"""Progress of a long run on stderr: a bar that stays on its line on a terminal, a line each ten seconds elsewhere."""

import sys
import time
from typing import TextIO

_BAR_CELLS = 24
_TERMINAL_S = 0.2
_LOG_S = 10.0


class Progress:
    """Images done of a total, with rate and time left.

    already: done by an earlier run. noun: what is counted. The rate counts from the first image of this run: until then
    processes start.
    """

    def __init__(self, total: int, already: int = 0, stream: TextIO | None = None, noun: str = "images") -> None:
        self._total, self._already, self._noun = total, already, noun
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = 0.0 if self._terminal else time.monotonic()
        self._first: tuple[float, int] | None = None

    def show(self, done: int, faces: int, failed: int) -> None:
        """done: images of the total, `already` included. Shows at most a few times a second."""
        now = time.monotonic()
        if self._first is None and done > self._already:
            self._first = now, done
        if now - self._shown < (_TERMINAL_S if self._terminal else _LOG_S):
            return
        self._shown = now
        self._write(done, faces, failed, now)

    def close(self, done: int, faces: int, failed: int) -> None:
        """The last state, on a terminal on a line of its own."""
        if self._terminal:
            self._write(done, faces, failed, time.monotonic())
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, done: int, faces: int, failed: int, now: float) -> None:
        first_s, first_done = self._first or (now, done)
        rate = (done - first_done) / (now - first_s) if now > first_s else 0.0
        left = f"{duration((self._total - done) / rate)} left" if rate > 0 else "…"
        line = f"{done:,}/{self._total:,} {self._noun}  {rate:.1f}/s  {faces:,} faces  {failed:,} failed  {left}"
        if self._terminal:
            filled = int(_BAR_CELLS * done / max(self._total, 1))
            self._stream.write(f"\r\x1b[K{'█' * filled}{'░' * (_BAR_CELLS - filled)} {line}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 07 min`, `3 d 04 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def size(count: float) -> str:
    """Bytes for a person: `512 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
