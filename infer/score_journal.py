"""Who killed the process: a note on the store about the unit that is worked on, so that no image can do it for ever.

The note is there from a unit's first attempt on. Whoever finds it knows that an attempt broke off, and from then on
writes down each image before touching it: one that was written down at two deaths is given up. Sound units pay one
small write. No engine is needed for it: a retry by a runner and a repeated command look alike.
"""

import json

from dataset_tools import storage

_DEATHS_BEFORE_FAILED = 2


class Journal:
    """The note of one unit, OUT/attempts/UNIT.json: how often an attempt broke off at an image, by key."""

    def __init__(self, out: str, unit: int) -> None:
        self._url = _url(out, unit)
        self.careful = storage.exists(self._url)
        self._deaths: dict[str, int] = json.loads(storage.read_bytes(self._url)) if self.careful else {}
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

    def _write(self) -> None:
        storage.write_bytes(self._url, json.dumps(self._deaths).encode(), flush=False)


def forget(out: str, unit: int) -> None:
    """The unit is complete."""
    storage.remove(_url(out, unit))


def _url(out: str, unit: int) -> str:
    return storage.join(out, "attempts", f"{unit:06d}.json")
