"""The scoring pipeline on a Beam runner: units and options in, the job's metrics out. Only this module runs Beam.

Without --runner it is Beam's own FnApiRunner, with a process for each core; it is named in full, since a plain
DirectRunner first tries to fetch another runner from the internet. `python -m workflows.beam_engine` is the process
that `beam_job` starts.
"""

import argparse
import contextlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from infer.beam_score import NAMESPACE, build
from infer.scoring import Scoring, Unit
from workflows.beam_job import WORKER_DIED, Where


def run(units: Sequence[Unit], scoring: Scoring, where: Where) -> dict[str, int]:
    """Score the units; returns the job's counters. Raises whatever the runner raises."""
    options = PipelineOptions([word for word in where.options if not (where.local and word.startswith("--runner="))])
    runner: Any = None
    if where.local:
        runner = FnApiRunner()
        direct = options.view_as(DirectOptions)
        if not any(word.startswith("--direct_running_mode") for word in where.options):
            direct.direct_running_mode = "in_memory" if where.in_process else "multi_processing"
        if not any(word.startswith("--direct_num_workers") for word in where.options):
            direct.direct_num_workers = 1 if direct.direct_running_mode == "in_memory" else where.workers
    with _quiet():
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline, units, scoring)
        result = pipeline.run()
        result.wait_until_finish()
    return _counters(result)


def _counters(result: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    query = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    for counter in query["counters"]:
        name = counter.key.metric.name
        found[name] = found.get(name, 0) + (counter.committed or counter.attempted or 0)
    for distribution in query["distributions"]:
        if (value := distribution.committed or distribution.attempted) is not None:
            found[f"{distribution.key.metric.name}_sum"] = int(value.sum)
    return found


def option_actions() -> list[argparse.Action]:
    """Every pipeline option that Beam's Python knows."""
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    waiting: list[Any] = [PipelineOptions]
    while waiting:
        for options in waiting.pop().__subclasses__():
            waiting.append(options)
            if "_add_argparse_args" in vars(options):
                options._add_argparse_args(parser)
    return parser._actions


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("apache_beam", "root")]
    before = [one.level for one in loggers]
    if logging.getLogger().level > logging.INFO:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def main() -> None:
    """The job that comes on standard input; its counters, or the error as one line, go to standard output as JSON."""
    units, scoring, where = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the process that started this one)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if where.local:
        threading.excepthook = _end_with_worker
    told: dict[str, Any]
    try:
        told = {"counters": run(units, scoring, where)}
    except Exception as error:
        logging.getLogger("facemill").info("the job failed", exc_info=True)
        told = {"error": _line(error)}
    sys.stdout.write(json.dumps(told))
    sys.stdout.flush()
    os._exit("error" in told)  # Beam's threads may still wait for workers that nobody needs any more


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _end_with_worker(told: threading.ExceptHookArgs) -> None:
    """Beam watches each worker process in a thread of this name, which raises when it died, and then waits for it."""
    if told.thread is not None and told.thread.name == "run_worker":
        os._exit(WORKER_DIED)


def _line(error: Exception) -> str:
    """The last line of the last traceback in the text: Beam wraps an error of a worker in its own, several times."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if ": " in line and not line.startswith(("File ", "Traceback"))]
    text = (wanted or lines or [type(error).__name__])[-1]
    return text.rpartition(" [while running")[0] or text


if __name__ == "__main__":
    main()
