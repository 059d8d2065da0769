"""The scoring pipeline on a Beam runner: units and options in, the job's metrics out. Only this module runs Beam.

Without --runner it is Beam's own FnApiRunner, with a process for each core; it is named in full, since a plain
DirectRunner first tries to fetch another runner from the internet. `beam_process` says in which processes this runs.
"""

import argparse
import contextlib
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from infer.beam_score import NAMESPACE, build
from infer.scoring import Scoring, Unit
from workflows.beam_job import Where
from workflows.beam_process import WORKER


def run(units: Sequence[Unit], scoring: Scoring, where: Where) -> dict[str, int]:
    """Score the units; returns the job's counters. Raises whatever the runner raises."""
    options = PipelineOptions([word for word in where.options if not (where.local and word.startswith("--runner="))])
    runner: Any = None
    if where.local:
        runner = FnApiRunner()
        direct = options.view_as(DirectOptions)
        if not any(word.startswith("--direct_running_mode") for word in where.options):
            # One worker needs no process beside the job's, which has one of its own already.
            alone = where.in_process or where.workers == 1
            direct.direct_running_mode = "in_memory" if alone else "multi_processing"
        if not any(word.startswith("--direct_num_workers") for word in where.options):
            direct.direct_num_workers = 1 if direct.direct_running_mode == "in_memory" else where.workers
        if direct.direct_running_mode == "multi_processing":
            command = f"exec {shlex.quote(sys.executable)} -P -m workflows.beam_process {WORKER}"
            if not where.verbose:
                command += " 2>/dev/null"  # Beam's workers print the traceback of an error that is told as one line
            runner = FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))
            direct.direct_running_mode = "in_memory"  # or it would put its own command in the place of this one
    with _quiet():
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline, units, scoring)
        result = pipeline.run()
        result.wait_until_finish()
    return _counters(result)


def run_worker() -> None:
    """The life of one worker process, as the runner's environment variables tell it."""
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])


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
