"""The processes of a Beam job on this machine: the job itself (`python -m workflows.beam_process`) and its workers.

Beam imports the clients of all clouds that it knows, and pandas: half of the six CPU seconds that each process starts
for. Where everything runs here, reading and writing with fsspec, they are kept out.
"""

import json
import logging
import os
import pickle
import signal
import sys
import threading
from functools import partial

from infer import score_journal
from workflows import cli

WORKER = "worker"
_NOT_NEEDED_HERE = (
    "apache_beam.io.aws.s3filesystem",
    "apache_beam.io.gcp.bigquery",
    "apache_beam.io.gcp.gcsfilesystem",
    "apitools",
    "boto3",
    "google.cloud.dataflow_v1beta3",
    "pandas",
)
"""Beam goes without each of these where it is not installed."""


def main(arguments: list[str]) -> None:
    if arguments == [WORKER]:
        cli.keep_out(_NOT_NEEDED_HERE)
        from workflows.beam_engine import run_worker

        run_worker()
    else:
        _run_job()


def _run_job() -> None:
    """The job that comes on standard input; its counters, or the error as one line, go to standard output as JSON."""
    units, scoring, where = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the process that started this one)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO if where.verbose else logging.ERROR)
    if where.local:
        threading.excepthook = partial(_end_with_worker, scoring.out)
        cli.keep_out(_NOT_NEEDED_HERE)
    told: dict[str, object]
    try:
        from workflows import beam_engine

        told = {"counters": beam_engine.run(units, scoring, where)}
    except Exception as error:
        logging.getLogger("facemill").info("the job failed", exc_info=True)
        told = {"error": _line(error)}
    _tell(told)
    os._exit("error" in told)  # Beam's threads may still wait for workers that nobody needs any more


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _end_with_worker(out: str, raised: threading.ExceptHookArgs) -> None:
    """Beam watches each worker process in a thread of this name, which raises when it died, and then waits for it.

    The job says which processes were at work and had not died, and kills the whole group at once: workers that outlive
    it fill the terminal with their tracebacks.
    """
    if raised.thread is None or raised.thread.name != "run_worker":
        return
    try:
        _tell({"alive": [process for process in score_journal.processes(out) if _lives(process)]})
    finally:
        os.killpg(0, signal.SIGKILL)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a number that was given to another user's process since
        return False
    return True


def _tell(values: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(values))
    sys.stdout.flush()


def _line(error: Exception) -> str:
    """The last line of the last traceback in the text: Beam wraps an error of a worker in its own, several times."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if ": " in line and not line.startswith(("File ", "Traceback"))]
    text = (wanted or lines or [type(error).__name__])[-1]
    return text.rpartition(" [while running")[0] or text


if __name__ == "__main__":
    main(sys.argv[1:])
