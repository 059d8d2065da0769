"""Training on Ray Train: the only module that knows Ray. A job goes in, the state of its last checkpoint comes out.

Keras 3 cannot `fit` under MultiWorkerMirroredStrategy (keras#20585, ray#47464), so the strategy serves as the
collective alone: each worker holds an ordinary model, and `train.loop` all-reduces one vector a step. Progress comes
back through a small actor, since Ray's own log is for Ray's developers. Without an address, Ray starts here and stops
at the end.
"""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read by Ray when it is imported: no statistics are sent, no notes on standard error about what we do not use.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # an epoch's report waits for the next check
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more; a node that goes is got over anyway
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # two cores take 40 s, busy ones twice that
os.environ.setdefault("RAY_worker_niceness", "0")  # the default, 15, lets any other program of the machine starve us

import ray
import ray.exceptions
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dataset_tools import storage
from schemas.versions import compare, installed_versions
from train.checkpoint import State, read_state
from train.job import Job
from workflows import cli
from workflows.background import repeating

RUN_NAME = "checkpoints"
_POLL_S = 0.3
_COLLECTIVE_TIMEOUT_S = 300
_CONNECT_S = 10
_KEPT = 2
_PACKAGES = ("schemas", "dataset_tools", "train", "workflows")
_COMPARED = ("keras", "numpy", "opencv-python-headless", "ray", "tensorflow")
"""Our own code travels with the job, and Ray itself refuses another Python."""


class EngineError(RuntimeError):
    """The cluster cannot be reached, or lost its workers for good; one line."""


class JobError(ValueError):
    """A worker refused the job for a reason that the user can mend; one line."""


@dataclass(frozen=True)
class Where:
    """workers: processes that train together. gpu: one for each. address: of a Ray cluster that runs already.

    storage: folder or URL for the checkpoints, which all machines can reach. max_failures: deaths of workers that are
    got over from the last checkpoint.
    """

    workers: int
    storage: str
    gpu: bool = False
    address: str | None = None
    max_failures: int = 3
    timeout_s: int = _COLLECTIVE_TIMEOUT_S


@dataclass
class Trained:
    """state: of the last checkpoint. weights_sha256: by rank, at the end."""

    state: State
    weights_sha256: dict[int, str] = field(default_factory=dict)


def run(job: Job, where: Where, heard: Callable[[dict[str, Any]], None]) -> Trained:
    """Train, or go on from the last checkpoint in `where.storage`. heard: progress, on a thread of this process.

    Raises JobError and EngineError.
    """
    for noisy in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with _session(where):
        mailbox = _start_mailbox()
        hashes: dict[int, str] = {}
        differences: set[str] = set()
        refused: list[str] = []

        def told(message: dict[str, Any]) -> None:
            if "refused" in message:
                refused.append(message["refused"])
            elif "weights_sha256" in message:
                hashes[message["rank"]] = message["weights_sha256"]
            elif "versions" in message:
                line = compare(installed_versions(_COMPARED), message["versions"], where.address or "Ray")
                if line is not None and line not in differences:
                    differences.add(line)
                    cli.note(line)
            else:
                heard(message)

        resources = {"CPU": 1.0} | ({"GPU": 1.0} if where.gpu else {})
        trainer = TensorflowTrainer(
            _train_worker,
            train_loop_config={"job": job, "mailbox": mailbox, "threads": _threads(where), "timeout": where.timeout_s},
            scaling_config=ScalingConfig(num_workers=where.workers, use_gpu=where.gpu, resources_per_worker=resources),
            run_config=RunConfig(
                name=RUN_NAME,
                **_storage(where),
                failure_config=FailureConfig(max_failures=where.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=_KEPT),
            ),
        )
        failed: Exception | None = None
        with _listening(mailbox, told), _interrupts():
            try:
                result = trainer.fit()
            except Exception as error:
                failed = error
        if refused:
            raise JobError(refused[0])
        if failed is not None:
            raise _translated(failed, where) from None
        if result.checkpoint is None:
            raise EngineError("Ray ended without a checkpoint: repeat the command with --overwrite")
        with result.checkpoint.as_directory() as folder:
            state = read_state(folder)
    if len(set(hashes.values())) > 1:
        raise EngineError("the workers ended with different weights: report this, with the recipe")
    return Trained(state, hashes)


def describe(address: str) -> dict[str, float]:
    """Nodes and resources of the cluster at an address. Raises EngineError when it does not answer."""
    with _session(Where(1, "", address=address)):
        resources = ray.cluster_resources()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return {"nodes": nodes} | {name: resources[name] for name in ("CPU", "GPU") if name in resources}


def _train_worker(config: dict[str, Any]) -> None:
    """What runs in each worker process."""
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray sets it, and it would swap Keras 3 for Keras 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from train import collective

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    collective.prepare(config["threads"])
    all_reduce = collective.collective(config["timeout"]) if world > 1 else _alone

    from train.job import run_worker
    from train.loop import Worker

    mailbox = config["mailbox"]
    mailbox.put.remote({"versions": installed_versions(_COMPARED)})

    def report(message: dict[str, Any]) -> None:
        if rank == 0 or "rank" in message:
            mailbox.put.remote(message)

    def save(row: dict[str, Any], write: Callable[[str], None]) -> None:
        if rank:
            ray.train.report(row)
            return
        with tempfile.TemporaryDirectory(prefix="facemill-checkpoint-") as folder:
            write(folder)
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))
        mailbox.put.remote({"row": row})

    with contextlib.ExitStack() as stack:
        last = ray.train.get_checkpoint()
        restore = stack.enter_context(last.as_directory()) if last else None
        try:
            run_worker(config["job"], Worker(rank, world, all_reduce, save, report, restore))
        except _refusals() as error:
            # Told and not raised: Ray would start the workers again, who would refuse again.
            mailbox.put.remote({"refused": str(error)})
    ray.get(mailbox.flushed.remote())  # the last words arrive before Ray takes the worker away


def _refusals() -> tuple[type[Exception], ...]:
    """What every worker of a job raises alike, and a second try would too."""
    from train.data import DataError
    from train.loop import TrainError
    from train.models import ModelError

    return DataError, TrainError, ModelError


def _alone(vector: Any) -> Any:
    return vector


def _start_mailbox() -> Any:
    """An actor that holds the workers' messages, in order, until the driver fetches them."""

    # Made in here, the class travels by value: its process would else import this module, and with it TensorFlow.
    class Mailbox:
        def __init__(self) -> None:
            self.messages: list[dict[str, Any]] = []

        def put(self, message: dict[str, Any]) -> None:
            self.messages.append(message)

        def take(self) -> list[dict[str, Any]]:
            taken, self.messages = self.messages, []
            return taken

        def flushed(self) -> bool:
            return True

    # Beside the driver, which the run does not survive anyway: any other machine may go, and take the actor with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


@contextlib.contextmanager
def _listening(mailbox: Any, heard: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    def fetch() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            for message in ray.get(mailbox.take.remote()):
                heard(message)

    try:
        with repeating(fetch, lambda: _POLL_S):
            yield
    finally:
        fetch()


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C as everywhere else: Ray puts a handler of its own in place for good, which ends the process in silence."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _session(where: Where) -> Iterator[None]:
    """A connection to the cluster at the address, or a Ray of our own for as long as the block lasts."""
    if ray.is_initialized():  # the caller's, who also ends it
        yield
        return
    if where.address:
        _check_answers(where.address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if where.address:
            root = Path(__file__).parent.parent
            modules = [str(root / name) for name in _PACKAGES]
            ray.init(where.address, runtime_env={"py_modules": modules}, **quiet)
        else:
            # An own environment variable RAY_ADDRESS must not turn a run on this machine into one on a cluster.
            ray.init("local", num_cpus=where.workers + 1, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises the bare class where a busy machine takes over 30 s to start it
        ray.shutdown()
        place = f"at {storage.redact(where.address)}" if where.address else "here"
        line = " ".join(str(error).split())[:200]
        # Ray brings no token of itself to an address that was named, and tells a refusal like a timeout.
        step = "; one with token authentication wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if where.address else ""
        raise EngineError(f"Ray does not start {place}: {line}{step}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place, which would end the command with code 15
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises EngineError where nothing listens: Ray itself would wait there for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # such as `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        raise EngineError(
            f"no Ray answers at {storage.redact(address)} ({error.strerror or error}): is the cluster up, and its port "
            "open? ray:// wants the port of its client server, 10001, an address without it that of its head, 6379"
        ) from None


def _storage(where: Where) -> dict[str, Any]:
    if storage.is_local(where.storage):
        return {"storage_path": storage.normalize(where.storage)}
    files, path = storage.arrow_filesystem(where.storage)
    return {"storage_filesystem": files, "storage_path": path}


def _threads(where: Where) -> int | None:
    """TensorFlow's threads in each worker on this machine; on a cluster it decides itself."""
    return None if where.address else max(1, len(os.sched_getaffinity(0)) // where.workers)


def _translated(error: BaseException, where: Where) -> Exception:
    """A death as one line that says what to do; anything else as its innermost cause."""
    text = " ".join(str(error).split())
    died = any(sign in text for sign in ("died", "ActorDied", "WorkerDied", "SIGKILL", "unavailable", "killed"))
    if died:
        return EngineError(
            f"a training worker died {where.max_failures + 1} times (out of memory, or its machine is gone): the same "
            "command continues from the last checkpoint; --set batch_size=… or memory_gb=… needs less memory"
        )
    deepest = [*_causes(error)][-1]
    return EngineError(f"training failed: {type(deepest).__name__}: {' '.join(str(deepest).split())[-300:]}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it wraps, as Ray nests it."""
    yield error
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _causes(failure)
    for inner in (getattr(error, "cause", None), error.__cause__):
        if isinstance(inner, BaseException):
            yield from _causes(inner)
