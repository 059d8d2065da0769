"""Shards of a labelled set in processes of this machine, and in this process where that is quicker.

Crops are imported at a thousand a second and core, so no cluster is needed; with --detect the worker processes load the
detector once each.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from dataset_tools.counts import Counts
from dataset_tools.detection import Detector, DetectorSettings, load_detector
from dataset_tools.importers.shard import ImportTask, run_shard
from workflows import cli


def run(tasks: Iterator[ImportTask], settings: DetectorSettings | None, workers: int) -> Iterator[Counts]:
    """Make every shard; yields the counts of each as it is done. settings: None where no face is looked for.

    Raises BrokenProcessPool when a worker dies, StorageError when one cannot write.
    """
    if workers > 1:
        yield from _in_processes(tasks, settings, workers)
        return
    detector = load_detector(settings) if settings else None
    for task in tasks:
        yield run_shard(task, detector)


def _in_processes(tasks: Iterator[ImportTask], settings: DetectorSettings | None, workers: int) -> Iterator[Counts]:
    """Every task, a few of them at a time; leaves no process behind, however it ends."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(settings,))
    running: set[Future[Counts]] = set()
    try:
        for task in tasks:
            running.add(pool.submit(_on_worker, task))
            if len(running) >= 2 * workers:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in finished)
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in finished)
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_detector: Detector | None = None


def _start_worker(settings: DetectorSettings | None) -> None:
    global _worker_detector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cli.without_pandas()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_detector = load_detector(settings) if settings else None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_worker(task: ImportTask) -> Counts:
    return run_shard(task, _worker_detector)
