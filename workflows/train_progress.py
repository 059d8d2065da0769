"""Progress of training on stderr: one line that is written anew on a terminal, a line each ten seconds elsewhere, and
a line that stays for every epoch."""

import time
from typing import Any, TextIO

_LOG_S = 10.0


class TrainProgress:
    """Hears the loop's messages and shows them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._shown = time.monotonic()
        self._open = False

    def heard(self, message: dict[str, Any]) -> None:
        """A message of `train.loop`: progress within an epoch, or the row of one that is over."""
        if "row" in message:
            self._line(_epoch_line(message["row"]))
        elif "unreadable" in message:
            self._line(f"worker {message['rank']}: {message['unreadable']:,} faces cannot be decoded and are left out")
        elif self._terminal:
            self._stream.write("\r\x1b[K" + _step_line(message))
            self._stream.flush()
            self._open = True
        elif time.monotonic() - self._shown >= _LOG_S:
            self._line(_step_line(message))

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()

    def _line(self, text: str) -> None:
        self._stream.write(("\r\x1b[K" if self._terminal else "") + text + "\n")
        self._stream.flush()
        self._shown, self._open = time.monotonic(), False


def _step_line(message: dict[str, Any]) -> str:
    return (
        f"{message['stage']} epoch {message['epoch']}/{message['epochs']}  step {message['step']}/{message['steps']}  "
        f"{message['images_per_s']:,.0f} images/s  loss {message['loss']:.4f}"
    )


def _epoch_line(row: dict[str, Any]) -> str:
    return (
        f"{row['stage']} epoch {row['epoch']}: loss {row['loss']:.4f}  validation loss {row['val_loss']:.4f}  accuracy "
        f"{row['val_accuracy']:.4f}  macro F1 {row['val_macro_f1']:.4f}{'  best' if row['best'] else ''}  "
        f"({row['images_per_s']:,.0f} images/s, {row['seconds']:.0f} s)"
    )
