"""Batches made ahead of the step that takes them, by one thread: decoding and augmenting go on while it computes."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
_LOOK_S = 0.2


def prefetched(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """The same items in the same order, up to `ahead` of them made beforehand; what making raises is raised here.

    The thread ends with the iterator, also when that is left early.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    left = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> bool:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                made.put((item, error), timeout=_LOOK_S)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=make, name="facemill-feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        left.set()
        thread.join()
