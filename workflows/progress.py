"""Progress of a long run on stderr: a bar that stays on its line on a terminal, a line each ten seconds elsewhere."""

import sys
import time
from typing import TextIO

_BAR_CELLS = 24
_TERMINAL_S = 0.2
_LOG_S = 10.0


class Progress:
    """Images done of a total, with rate and time left. already: done by an earlier run, so not part of the rate."""

    def __init__(self, total: int, already: int = 0, stream: TextIO | None = None) -> None:
        self._total, self._already = total, already
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = self._started if not self._terminal else 0.0

    def show(self, done: int, faces: int, failed: int) -> None:
        """done: images of the total, `already` included. Shows at most a few times a second."""
        now = time.monotonic()
        if now - self._shown < (_TERMINAL_S if self._terminal else _LOG_S):
            return
        self._shown = now
        self._write(done, faces, failed, now - self._started)

    def close(self, done: int, faces: int, failed: int) -> None:
        """The last state, on a terminal on a line of its own."""
        if self._terminal:
            self._write(done, faces, failed, time.monotonic() - self._started)
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, done: int, faces: int, failed: int, elapsed_s: float) -> None:
        rate = (done - self._already) / elapsed_s if elapsed_s > 0 else 0.0
        left = f"{duration((self._total - done) / rate)} left" if rate > 0 else "…"
        line = f"{done:,}/{self._total:,} images  {rate:.1f}/s  {faces:,} faces  {failed:,} failed  {left}"
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
