"""`just import-labels SOURCE`: a labelled set in its published form, as the Parquet data set that crop-faces writes.

This module reads the arguments; `import_run` tells the story of a run, and is imported when one starts.
"""

import argparse
import sys

from workflows import cli

EXAMPLES = """examples:
  just import-labels fer2013_images.tar.xz --drop-leaks
  just import-labels fer2013.csv --votes fer2013new.csv                  FER+: votes, and the label most voted for
  just import-labels AffectNet/ --label-set affectnet-7 --out affectnet-7
  just import-labels my-photos/ --format folders --label-set fer2013 --detect
"""
FORMATS = ("auto", "affectnet", "fer2013", "ferplus", "raf-db", "folders", "csv")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just import-labels",
        description="Bring a labelled set into the Parquet data set that crop-faces writes, with its own splits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="the set's folder, csv, Parquet list or archive; local, gs://, s3://"
    )
    cli.add_shared_flags(parser, out_help="data set folder (default: NAME-faces here, NAME being that of SOURCE)")
    read = parser.add_argument_group("the set")
    read.add_argument("--format", choices=FORMATS, default="auto", help="default: by what lies in SOURCE")
    read.add_argument("--images", metavar="FOLDER", help="where the pictures lie, if not where the set has them")
    read.add_argument("--votes", metavar="FILE", help="FER+: fer2013new.csv, or a csv with kaggle_jpg and the votes")
    label = parser.add_argument_group("labels and splits")
    label.add_argument("--label-set", metavar="NAME", help="label set of the data set (default: the set's own)")
    label.add_argument(
        "--drop-unmapped", action="store_true", help="drop classes that the label set lacks, instead of stopping"
    )
    label.add_argument(
        "--drop-leaks",
        nargs="?",
        const="near",
        choices=("near", "exact"),
        help="drop training images that have a copy (near, or exact ones only) in validation or test, and validation "
        "images with one in test",
    )
    label.add_argument(
        "--split", default="1,0,0", metavar="T,V,S", help="for images that the set gives no split; default 1,0,0"
    )
    label.add_argument(
        "--validation", type=cli.fraction, default=0.0, metavar="F", help="move this share of training to validation"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--shard-size", type=cli.positive_int, metavar="N", help="images in one output part (default: up to 2048)"
    )
    run.add_argument("--retry-failed", action="store_true", help="process the parts in which images failed again")
    crop = parser.add_argument_group("crops (of photos with a given box, or with --detect; crops stay as they are)")
    crop.add_argument(
        "--detect", action="store_true", help="find the face first: that of the given box, or the largest"
    )
    cli.add_detector_flags(crop)
    crop.add_argument("--size", type=cli.positive_int, default=224, metavar="PX", help="side of a crop, default 224")
    crop.add_argument(
        "--margin", type=float, default=0.2, metavar="F", help="each side, of the longer side; default 0.2"
    )
    crop.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="by five landmarks, or the upright box (default: align with --detect, else upright)",
    )
    crop.add_argument("--crop-format", choices=("jpeg", "png", "webp"), default="jpeg", help="default jpeg")
    crop.add_argument("--quality", type=cli.positive_int, default=95, metavar="Q", help="1 to 100, default 95")
    cli.add_limit_flags(parser, ("max_pixels", "max_image_bytes", "max_members"))
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)

    def command() -> int:
        from workflows.import_run import import_labels

        return import_labels(args)

    cli.run_main(command, verbose=args.verbose)


if __name__ == "__main__":
    cli.without_pandas()
    main(sys.argv[1:])
