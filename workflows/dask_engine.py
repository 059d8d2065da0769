"""Shards on Dask: the only module that knows it. Tasks go in, counts come out as shards finish, in any order.

A bounded window of tasks is in flight, so a million images cost the scheduler no more than a thousand. Each worker
process loads the detector once. A shard that kills its worker again and again comes back as a careful one, which finds
the image at fault by noting each before it touches it.
"""

import contextlib
import logging
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import dask
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker
from distributed.utils import get_mp_context

from dataset_tools.counts import Counts
from dataset_tools.detection import Detector, DetectorSettings, load_detector
from dataset_tools.shards import ShardTask, run_shard
from schemas import versions
from workflows import cli
from workflows.background import repeating

_TOPIC = "facemill-progress"
_REPORT_EVERY_S = 0.5
_MOST_REPORTS_PER_S = 100
"""Of all workers together: each passes through the scheduler, whose one core a thousand workers would fill so."""
_TASKS_PER_WORKER = 2
"""Waiting work for each process: one being done and one at hand, so that none waits for the scheduler."""
_MOST_CAREFUL_TRIES = 50
_COMPARED = (*versions.PACKAGES, "dask", "distributed")
_CONNECT_S = 15
_WATCH_EVERY_S = 1.0
_REPLACE_AFTER_S = 15.0
"""Longer than a restart takes on a busy machine."""
_SETTINGS = {
    "distributed.comm.timeouts.connect": "60s",
    # Dask has glibc give each array's memory back at once; to map and clear it anew costs a third more CPU.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    "distributed.worker.profile.enabled": False,  # 100 looks a second at what each thread does
}
_IMPORTED_ONCE = ["distributed", "workflows.dask_engine", "dataset_tools.mtcnn"]


class EngineError(RuntimeError):
    """The cluster cannot be reached or lost its workers; one line."""


@dataclass(frozen=True)
class Where:
    """workers: processes to start here. scheduler: the address of a cluster that runs already, instead. in_process: one
    worker inside this process, for `memory://`, which other processes cannot see."""

    workers: int
    scheduler: str | None = None
    in_process: bool = False


@dataclass(frozen=True)
class ShardDone:
    shard: int
    counts: Counts


@dataclass(frozen=True)
class Cluster:
    """differences: of versions on the workers from those here, a line each."""

    workers: int
    threads: int
    differences: list[str]


def describe(address: str) -> Cluster:
    """What stands behind the address of a scheduler. Raises EngineError when nobody answers there."""

    with _client(Where(0, address)) as client:
        threads = client.nthreads()
        here, there = _versions(client)
    differences = {line for one in there for line in versions.unlike(here, one)}
    return Cluster(len(threads), sum(threads.values()), sorted(differences))


def _versions(client: Client) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Versions here, and those of the workers, each set of them once."""

    # Made in here, it travels by value: a worker may not have this project at all.
    def installed(names: tuple[str, ...]) -> dict[str, str]:
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in names:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found

    there: list[dict[str, str]] = []
    for one in client.run(installed, _COMPARED).values():
        if one not in there:
            there.append(one)
    return versions.installed_versions(_COMPARED), there


def _check_versions(client: Client, address: str) -> None:
    """Tell how the workers' versions differ from those here. Raises EngineError where they cannot do the work."""
    here, there = _versions(client)
    try:
        for line in filter(None, (versions.compare(here, one, address) for one in there)):
            cli.note(line)
    except versions.VersionError as error:
        raise EngineError(str(error)) from None


class DetectorPlugin(WorkerPlugin):
    """Loads the networks when a worker process starts, and again when it was started anew after a death."""

    name = "facemill-detector"

    def __init__(self, settings: DetectorSettings, *, own_process: bool) -> None:
        self._settings, self._own_process = settings, own_process

    def setup(self, worker: object) -> None:  # noqa: ARG002
        if self._own_process:  # Ctrl-C reaches the whole process group; the client ends its workers in good order
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            cli.without_pandas()
        _detector(self._settings)


_loaded = threading.local()


def _detector(settings: DetectorSettings) -> Detector:
    """One detector for each thread: it is not made to be shared, and a foreign cluster may run several threads."""
    if getattr(_loaded, "settings", None) != settings:
        _loaded.detector, _loaded.settings = load_detector(settings), settings
    return _loaded.detector


def _shard_on_worker(task: ShardTask, report_every_s: float) -> Counts:
    worker, reported = get_worker(), time.monotonic()

    def report(counts: Counts) -> None:
        nonlocal reported
        if time.monotonic() - reported >= report_every_s:
            reported = time.monotonic()
            worker.log_event(
                _TOPIC,
                {"shard": task.shard, "images": counts.images, "faces": counts.faces, "failed": counts.failed},
            )

    return run_shard(task, _detector(task.recipe.detector), report)


def run(
    tasks: Iterable[ShardTask],
    where: Where,
    settings: DetectorSettings,
    on_progress: Callable[[int, dict[str, int]], None],
) -> Iterator[ShardDone]:
    """Run every task; yields each shard as it is done. on_progress: called, from another thread, with a shard and its
    counts so far (`images`, `faces`, `failed`).

    Raises EngineError for a cluster that fails, StorageError when a worker cannot write.
    """
    with _client(where) as client:
        workers = _wait_for_workers(client, where)
        if where.scheduler is not None:
            _check_versions(client, where.scheduler)
        client.register_plugin(DetectorPlugin(settings, own_process=where.scheduler is None and not where.in_process))
        client.subscribe_topic(_TOPIC, lambda event: on_progress(event[1]["shard"], event[1]))
        try:
            yield from _in_window(client, iter(tasks), workers)
        finally:
            client.unsubscribe_topic(_TOPIC)


def _in_window(client: Client, tasks: Iterator[ShardTask], workers: int) -> Iterator[ShardDone]:
    every_s = _report_every_s(workers)
    waiting: dict[str, tuple[ShardTask, int]] = {}
    completed = as_completed()

    def submit(task: ShardTask, tries: int = 0) -> None:
        future = client.submit(_shard_on_worker, task, every_s, key=f"shard-{task.shard:05d}-{tries}", pure=False)
        waiting[str(future.key)] = task, tries
        completed.add(future)

    for task in _first(tasks, _TASKS_PER_WORKER * workers):
        submit(task)
    for future in completed:
        task, tries = waiting.pop(str(future.key))
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker) and tries < _MOST_CAREFUL_TRIES:
            submit(replace(task, careful=True), tries + 1)
            continue
        if error is not None:
            raise error
        yield ShardDone(task.shard, future.result())
        for following in _first(tasks, 1):
            submit(following)


def _report_every_s(workers: int) -> float:
    return max(_REPORT_EVERY_S, workers / _MOST_REPORTS_PER_S)


def _first(tasks: Iterator[ShardTask], count: int) -> Iterator[ShardTask]:
    for _, task in zip(range(count), tasks, strict=False):
        yield task


@contextlib.contextmanager
def _client(where: Where) -> Iterator[Client]:
    quiet = logging.INFO if logging.getLogger().level <= logging.INFO else logging.CRITICAL
    # A worker that is replaced is no news, our counts tell; nor is what its loop had still to do when all ends.
    for noisy in ("distributed", "tornado.application"):
        logging.getLogger(noisy).setLevel(quiet)
    if where.scheduler is not None:
        try:
            client = Client(where.scheduler, timeout=_CONNECT_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise EngineError(f"no Dask scheduler answers at {where.scheduler}: {type(error).__name__}") from None
        with client:
            yield client
        return
    with (
        dask.config.set(_SETTINGS | _forked_workers()),
        LocalCluster(
            n_workers=1 if where.in_process else where.workers,
            threads_per_worker=1,
            processes=not where.in_process,
            dashboard_address="127.0.0.1:0",  # None still takes port 8787, and warns when it is taken
            silence_logs=quiet,
        ) as cluster,
        Client(cluster) as client,
        _replacing_lost(cluster, len(cluster.worker_spec)),
    ):
        yield client


def _forked_workers() -> dict[str, str]:
    """Have workers forked off one process that has everything imported: they start at once, after a death too, and
    share its memory. Linux only: libraries of macOS do not bear a fork."""
    if sys.platform != "linux":
        return {}
    method = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(method):
        get_mp_context()  # makes a list of its own the first time, with pandas on it
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
    return method


@contextlib.contextmanager
def _replacing_lost(cluster: LocalCluster, wanted: int) -> Iterator[None]:
    """Start another worker for one that stays away.

    A nanny restarts a worker that died, but not one that died while it was starting, which a photo that kills its
    process does when it is handed to a fresh worker. With the last worker gone so the run would wait for ever.
    """
    short_s = 0.0

    def replace_lost() -> None:
        nonlocal short_s
        lost = wanted - len(cluster.scheduler.workers)
        short_s = short_s + _WATCH_EVERY_S if lost > 0 else 0.0
        if short_s >= _REPLACE_AFTER_S:
            cluster.scale(len(cluster.worker_spec) + lost)
            short_s = 0.0

    with repeating(replace_lost, lambda: _WATCH_EVERY_S):
        yield


def _wait_for_workers(client: Client, where: Where) -> int:
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError:
        raise EngineError(f"the cluster at {where.scheduler or 'this machine'} has no worker") from None
    return max(1, sum(client.nthreads().values()))
