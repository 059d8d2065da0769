"""A Beam job in a process of its own, watched: units in, counters out, and no process left behind.

Beam's local runner waits for ever for a worker process that was killed (2.77), and a job that is cut off leaves its
workers running. So the job has a process group of its own, which ends with the job, with this process, and with any of
its workers; what is on the store by then is good. Beam itself is imported over there only.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from infer import score_journal
from infer.scoring import Scoring, Unit

_LOCAL = ("", "fnapirunner", "directrunner", "bundlebaseddirectrunner")
_END_S = 10.0


class EngineError(RuntimeError):
    """The runner cannot be used, or the job failed; one line."""


class WorkerDiedError(EngineError):
    """A process of this machine died under its work; the job, repeated, goes on."""


@dataclass(frozen=True)
class Where:
    """options: Beam's, a word each (`--runner=X`). workers: processes here, where the runner is the local one.
    in_process: in this process, for `memory://`, which others cannot see. verbose: show what Beam logs."""

    options: tuple[str, ...]
    workers: int
    in_process: bool = False
    verbose: bool = False

    @property
    def runner(self) -> str:
        named = [word.partition("=")[2] for word in self.options if word.startswith("--runner=")]
        return named[-1].rpartition(".")[2].lower() if named else ""

    @property
    def local(self) -> bool:
        return self.runner in _LOCAL


def run(units: Sequence[Unit], scoring: Scoring, where: Where) -> dict[str, int]:
    """Score the units; returns the job's counters. Raises EngineError, and WorkerDiedError where trying again helps."""
    if where.in_process:
        from workflows import beam_engine

        return beam_engine.run(units, scoring, where)
    job = subprocess.Popen(
        [sys.executable, "-P", "-m", "workflows.beam_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Its errors come as a line of JSON; what Beam prints for a job elsewhere is its log.
        stderr=None if where.local or where.verbose else subprocess.DEVNULL,
        start_new_session=True,
        # Workers are started with `python -m`, which would look for our packages in the user's own folder first.
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    assert job.stdin is not None
    assert job.stdout is not None
    try:
        # Its standard input stays open: the job takes the end of it for the end of this process.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((list(units), scoring, where), job.stdin)
            job.stdin.flush()
        said = job.stdout.read()
        job.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait(_END_S)
        with contextlib.suppress(BrokenPipeError):
            job.stdin.close()
        job.stdout.close()
    if job.returncode < 0 and where.local:
        if said:
            score_journal.acquit(scoring.out, json.loads(said).get("alive", ()))
        raise WorkerDiedError("a worker process died")
    try:
        told = json.loads(said)
    except ValueError:
        raise EngineError(f"the Beam job ended with code {job.returncode} and said nothing: -v shows its log") from None
    if "error" in told:
        raise EngineError(told["error"])
    return {name: int(value) for name, value in told["counters"].items()}
