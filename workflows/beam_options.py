"""Pipeline options on the command line of `just score`: whatever is not ours is Beam's, or a mistake that is named."""

import argparse
import difflib
from collections.abc import Sequence

from workflows import cli
from workflows.beam_job import Where

_OF_A_JOB_SERVER = ("portablerunner", "flinkrunner", "sparkrunner", "prismrunner")
"""Runners whose job server has options of its own, which Beam's Python does not know."""


def beam_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The command line apart: our arguments, and Beam's options as a word each, `--runner=X`.

    Raises cli.UserError for options that nobody would read, and for runners that are known to lose data.
    """
    try:
        known = _known_options()
    except ModuleNotFoundError:
        raise cli.UserError("just score needs the extra score: uv pip install 'facemill[score]'") from None
    ours = {flag for action in parser._actions for flag in action.option_strings}
    args, rest = parser.parse_known_args(_joined(words, ours, known))
    options = tuple(word for word in rest if word.startswith("-"))
    args.source += [word for word in rest if not word.startswith("-")]
    _check(options, ours, known)
    return args, options


def _joined(words: Sequence[str], ours: set[str], known: dict[str, bool]) -> list[str]:
    """`--runner X` as one word: argparse would take X, which follows a flag it does not know, for an archive."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        wants = word.startswith("--") and word not in ours and known.get(word, False)
        found.append(f"{word}={next(rest, '')}" if wants else word)
    return found


def _check(options: tuple[str, ...], ours: set[str], known: dict[str, bool]) -> None:
    runner = Where(options, 1).runner
    if runner == "daskrunner":
        raise cli.UserError(
            "Beam's DaskRunner loses data while it reports success (2.77: of two sinks one never ran): leave --runner "
            "out to run here, or name FlinkRunner, SparkRunner or DataflowRunner"
        )
    if runner in _OF_A_JOB_SERVER:
        return
    for word in options:
        name = word.partition("=")[0]
        if name not in known:
            near = difflib.get_close_matches(name, [*ours, *known], 2, 0.7)
            step = f"did you mean {' or '.join(near)}?" if near else "just score --help lists the flags"
            raise cli.UserError(f"unknown option {name}: {step}")


def _known_options() -> dict[str, bool]:
    """Beam's flags, and whether each takes a value."""
    from workflows.beam_engine import option_actions

    return {flag: action.nargs != 0 for action in option_actions() for flag in action.option_strings}
