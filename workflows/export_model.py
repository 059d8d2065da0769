"""`just export MODEL --to onnx|savedmodel|litert`: another file of a trained model, held against its master.

This module reads the arguments; the run is in `workflows.export_run`, imported when it starts, so that --help answers
at once.
"""

import argparse
import sys

from workflows import cli

FORMATS = ("onnx", "savedmodel", "litert")

EXAMPLES = """examples:
  just export fer2013-faces-compact48_fer2013 --to litert            → model.tflite in the model folder
  just export models/baseline --to savedmodel --faces my-faces       compared on the faces of another data set
  just export gs://bucket/model --to onnx --overwrite
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just export",
        description="Write a trained model in another form into its folder, compared with model.keras on real faces.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model folder, local or a URL")
    parser.add_argument(
        "--to", required=True, choices=FORMATS, help="model.onnx, savedmodel/ (TensorFlow) or model.tflite (LiteRT)"
    )
    parser.add_argument(
        "--faces",
        metavar="DATASET",
        help="face data set to compare on, labelled or not (default: the one that the model was trained on)",
    )
    shared = parser.add_argument_group("shared flags")
    shared.add_argument("--dry-run", action="store_true", help="look for model and faces; write nothing")
    shared.add_argument("--overwrite", action="store_true", help="replace the export that is there")
    shared.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    shared.add_argument("-v", "--verbose", action="store_true", help="log what the libraries do")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    def command() -> int:
        with cli.muted():
            try:
                from workflows.export_run import export_model
            except ModuleNotFoundError as error:
                raise cli.UserError(
                    f"just export needs the extra train ({error.name} is missing): uv pip install 'facemill[train]'"
                ) from None
        return export_model(args)

    cli.run_main(command, verbose=args.verbose)


if __name__ == "__main__":
    main(sys.argv[1:])
