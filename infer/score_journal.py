"""Who killed the process: a note on the store about the unit that is worked on, so that no image can do it for ever.

The note is there from a unit's first attempt on. Whoever finds it knows that an attempt broke off, and writes down each
image before touching it until a segment is complete: one that was written down at two deaths is given up. Sound units
pay one small write. No engine is needed for it: a retry by a runner and a repeated command look alike.
"""

import contextlib
import json
import os
from collections.abc import Collection, Iterator
from typing import Any

from dataset_tools import storage

_DEATHS_BEFORE_FAILED = 2


class Journal:
    """The note of one unit, OUT/attempts/UNIT.json: how often an attempt broke off at an image, by key; the image that
    is worked on now, and by which process."""

    def __init__(self, out: str, unit: int) -> None:
        self._url = storage.join(_folder(out), f"{unit:06d}.json")
        self.careful = storage.exists(self._url)
        self._deaths: dict[str, int] = _read(self._url)["deaths"] if self.careful else {}
        self._current: str | None = None
        if not self.careful:
            self._write()

    def blamed(self, key: str) -> bool:
        """Ask before working on an image; True: its process died each time, so leave it alone."""
        if not self.careful:
            return False
        self._deaths.pop(self._current or "", None)  # the one before came through
        self._current = None
        if self._deaths.get(key, 0) >= _DEATHS_BEFORE_FAILED:
            return True
        self._deaths[key] = self._deaths.get(key, 0) + 1
        self._current = key
        self._write()
        return False

    def calm(self) -> None:
        """A segment is complete, and what killed the process lay in it: the rest of the unit needs no notes."""
        self.careful = False

    def _write(self) -> None:
        note = {"deaths": self._deaths, "current": self._current, "process": os.getpid()}
        storage.write_bytes(self._url, json.dumps(note).encode(), flush=False)


def acquit(out: str, processes: Collection[int] | None = None) -> None:
    """What these processes worked on when they were ended did not kill them, but somebody who ended the run.

    processes: ids on this machine; None is all of them. To be called when none of them lives any more.
    """
    for url, note in _notes(out):
        if note["current"] is not None and (processes is None or note["process"] in processes):
            note["deaths"][note["current"]] -= 1
            storage.write_bytes(url, json.dumps(note | {"current": None}).encode(), flush=False)


def processes(out: str) -> set[int]:
    """Those that work on an image that they wrote down."""
    return {note["process"] for _, note in _notes(out) if note["current"] is not None}


def given_up(out: str) -> int:
    """How many images of units that are not complete will be left alone."""
    return sum(deaths >= _DEATHS_BEFORE_FAILED for _, note in _notes(out) for deaths in note["deaths"].values())


def forget(out: str, unit: int) -> None:
    """The unit is complete."""
    storage.remove(storage.join(_folder(out), f"{unit:06d}.json"))


def _notes(out: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if storage.is_folder(_folder(out)):
        for url, _ in storage.list_files(_folder(out)):
            with contextlib.suppress(storage.MissingFileError):  # its unit has just been completed
                yield url, _read(url)


def _read(url: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(url))


def _folder(out: str) -> str:
    return storage.join(out, "attempts")
