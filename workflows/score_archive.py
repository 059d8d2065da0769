"""`just score ARCHIVE… --model MODEL`: the expression of every face in stored archives, as Parquet tables and a report.

This module reads the arguments; the story of the run is in `workflows.score_run`, and the engine, Beam, runs in a
process of its own. Both are imported when a run starts, so that --help answers at once.
"""

import argparse
import sys

from workflows import cli

EXAMPLES = """examples:
  just score photos.tar                                     the model that ships, one worker per core
  just score 'gs://bucket/2024/*.tar' --model gs://bucket/model --out gs://bucket/scores
  just score crops.zip --faces given --model models/mine    each image is a face that was cropped already
  just score 'gs://bucket/*.tar' --out gs://bucket/scores --runner=DataflowRunner --region=europe-west4 \\
      --temp_location=gs://bucket/tmp                       any option of a Beam pipeline, as --name=value
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just score",
        description="Find and score every face of stored image archives offline with Apache Beam.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --run would else be taken for --runtime, when --runner was meant
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="ARCHIVE",
        help="tar, zip, WebDataset, Parquet, folder, glob or list of files (.txt); local, gs://, s3://",
    )
    cli.add_shared_flags(parser, out_help="folder of the predictions (default: NAME-scores here)", seed=False)
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="MODEL", help="model folder or URL (default: the one that ships)")
    model.add_argument(
        "--runtime", choices=("onnx", "keras"), default="onnx", help="model.onnx, or model.keras on a GPU; default onnx"
    )
    faces = parser.add_argument_group("faces")
    faces.add_argument(
        "--faces", choices=("detect", "given"), default="detect", help="find them, or take each image as one crop"
    )
    cli.add_detector_flags(faces)
    cli.add_limit_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args, foreign = parser.parse_known_args(words)

    def command() -> int:
        from workflows.score_run import score_archive

        if not any(word.startswith("-") for word in foreign):  # archives behind a flag
            args.source += foreign
            return score_archive(args, ())
        from workflows.beam_options import beam_options

        return score_archive(*beam_options(parser, words))

    cli.run_main(command, verbose=args.verbose)


if __name__ == "__main__":
    main()
