"""What all commands share: flags, exit codes, one-line errors. Nothing heavy is imported: --help answers at once.

stdout carries the result, stderr progress and log. Exit codes: 0 done, 1 the run failed, 2 usage or input missing, 3
done but with more failures than --max-failed, 130 interrupted and resumable.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_FAILED = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """The user can mend this; the message is one line that names the next step. Exit code 2."""


class RunError(Exception):
    """The run failed in a way that the command, repeated, may get past. Exit code 1."""


def add_shared_flags(parser: argparse.ArgumentParser, *, out_help: str) -> None:
    group = parser.add_argument_group("shared flags")
    group.add_argument("--out", metavar="OUT", help=out_help)
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it takes; write nothing"
    )
    group.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images of the listing")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="draws another split (default 0)")
    group.add_argument("--workers", type=positive_int, metavar="N", help="processes here (default: one per core)")
    group.add_argument("--overwrite", action="store_true", help="delete the earlier run in OUT and start anew")
    group.add_argument(
        "--max-failed", type=max_failed, metavar="N|P%", help="exit 3 when more images failed, such as 10 or 1%%"
    )
    group.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    group.add_argument("-v", "--verbose", action="store_true", help="log what the engine does")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def max_failed(text: str) -> tuple[float, bool]:
    """`10` → (10, False); `1%` → (0.01, True): a share of the images."""
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count such as 10 nor a share such as 1%")
    return (value / 100, True) if share else (value, False)


def exit_code_for(failed: int, images: int, bound: tuple[float, bool] | None) -> int:
    """0, or 3 when more images failed than the user bears."""
    if bound is None:
        return 0
    value, is_share = bound
    return EXIT_TOO_MANY_FAILED if failed > (value * images if is_share else value) else 0


def result(lines: list[str], values: dict[str, Any], *, as_json: bool) -> None:
    """The one thing a command writes to stdout: lines for a person, or one JSON object."""
    print(json.dumps(values) if as_json else "\n".join(lines), flush=True)


def note(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


class _WithoutPandas:
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:  # noqa: ARG002
        if fullname == "pandas":
            raise ModuleNotFoundError("no module named 'pandas' for this process", name=fullname)


def without_pandas() -> None:
    """For a process that is all ours. Arrow imports pandas wherever it is installed, to know its types by sight; none
    is ever made here, so that would only cost half a second and 45 MB in each process."""
    sys.meta_path.insert(0, _WithoutPandas())


def run_main(command: Callable[[], int], *, verbose: bool) -> NoReturn:
    """Run a command and leave with its exit code; errors that a user can mend become one line on stderr."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        note("interrupted: the same command continues where it stopped")
        code = EXIT_INTERRUPTED
    except UserError as error:
        note(f"error: {error}")
        code = EXIT_USAGE
    except RunError as error:
        note(f"error: {error}")
        code = EXIT_FAILED
    except BrokenPipeError:  # `just … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
