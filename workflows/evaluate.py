"""`just evaluate MODEL… DATASET`: one or several models on the same labelled faces, as page and numbers.

This module reads the arguments; the run is in `workflows.evaluate_run`, imported when it starts, so that --help answers
at once.
"""

import argparse
import sys

from schemas.tables import SPLITS
from workflows import cli

EXAMPLES = """examples:
  just evaluate models/baseline fer2013-faces
  just evaluate models/a models/b fer2013-faces --out a-or-b          side by side, on the same faces
  just evaluate models/a raf-faces --label-map names --trained-on fer2013-faces
  just evaluate models/seven affectnet-faces --label-map names --allow-drop
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just evaluate",
        description="Score one or several models on the same labelled faces, with intervals, and write a report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="+", metavar="MODEL", help="model folders, local or a URL; several are told side by side"
    )
    parser.add_argument("dataset", metavar="DATASET", help="face data set with labels: a folder or a URL")
    group = parser.add_argument_group("shared flags")
    group.add_argument("--out", metavar="OUT", help="folder of the evaluation (default: NAME-evaluation here)")
    group.add_argument("--dry-run", action="store_true", help="check models and labels, say how long; write nothing")
    group.add_argument("--limit", type=cli.positive_int, metavar="N", help="only the first N faces of the split")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (default 0)")
    group.add_argument(
        "--workers", type=cli.positive_int, metavar="N", help="threads of the network (default: one per core)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the evaluation in OUT")
    group.add_argument(
        "--max-failed", type=cli.max_failed, metavar="N|P%", help="exit 3 when more faces could not be scored"
    )
    group.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    group.add_argument("-v", "--verbose", action="store_true", help="log what the libraries do")
    faces = parser.add_argument_group("faces")
    faces.add_argument("--split", choices=SPLITS, default="test", help="default test")
    faces.add_argument(
        "--trained-on",
        action="append",
        default=[],
        metavar="FOLDER",
        help="another data set that a model was trained on: photos shared with its train or validation count too",
    )
    labels = parser.add_argument_group("labels (a model with other classes than the data set is refused without these)")
    labels.add_argument(
        "--label-map",
        metavar="names|A=B,…",
        help="classes of the data set to those of the model: by name, and A of the data set as B of the model",
    )
    labels.add_argument(
        "--allow-drop", action="store_true", help="leave out faces of a class that a model does not have; counted"
    )
    models = parser.add_argument_group("models")
    models.add_argument("--runtime", choices=("onnx", "keras"), default="onnx", help="which file (default onnx)")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with flags anywhere between the folders: the last folder is the data set."""
    parser = build_parser()
    # argparse takes b for the data set in `a b --split test faces`; its own way round, parse_intermixed_args, fails at
    # --help on the percent sign of a metavar (Python 3.11).
    args, rest = parser.parse_known_args(argv)
    if any(text.startswith("-") for text in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    folders = [*args.model, args.dataset, *rest]
    args.model, args.dataset = folders[:-1], folders[-1]
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    def command() -> int:
        from workflows.evaluate_run import evaluate

        return evaluate(args)

    cli.run_main(command, verbose=args.verbose)


if __name__ == "__main__":
    main(sys.argv[1:])
