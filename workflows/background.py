"""Something done again and again beside the main work, on a thread of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(act: Callable[[], None], rest_s: Callable[[], float]) -> Iterator[None]:
    """Call `act` until the block is over, and rest before each time; the last call has ended when the block has."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(rest_s()):
            act()

    thread = threading.Thread(target=repeat, name=f"facemill-{act.__name__}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
