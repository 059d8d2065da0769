"""`just crop-faces SOURCE`: every face of an image collection, as a Parquet data set with YOLO labels and a report.

This module reads the arguments and tells the story of a run; the work is in `dataset_tools`, the engine in
`workflows.dask_engine`. Both are imported when a run starts, so that --help answers at once.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from workflows import cli

if TYPE_CHECKING:
    from dataset_tools.faces import Recipe

EXAMPLES = """examples:
  just crop-faces bucket/                                   a folder, with all below it
  just crop-faces 'gs://bucket/2024/*.jpg' --out gs://bucket/faces
  just crop-faces photos.tar more.zip --out faces --split 0.8,0.1,0.1
  just crop-faces bucket/ --detector yunet --min-face 24 --no-align
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just crop-faces",
        description="Detect and crop the faces of an image collection into a Parquet data set with YOLO labels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folder, glob, file, list of files (.txt), tar, zip, WebDataset or Parquet; local, gs://, s3://",
    )
    cli.add_shared_flags(parser, out_help="data set folder (default: NAME-faces here, NAME being that of SOURCE)")
    run = parser.add_argument_group("run")
    run.add_argument("--scheduler", metavar="ADDRESS", help="run on this Dask cluster, such as tcp://10.0.0.1:8786")
    run.add_argument(
        "--shard-size", type=cli.positive_int, metavar="N", help="images in one output part (default: up to 512)"
    )
    run.add_argument(
        "--retry-failed", nargs="?", const="", metavar="REASON", help="process again only what failed, or failed so"
    )
    find = parser.add_argument_group("detection")
    cli.add_detector_flags(find)
    crop = parser.add_argument_group("crops")
    crop.add_argument("--size", type=cli.positive_int, default=224, metavar="PX", help="side of a crop, default 224")
    crop.add_argument(
        "--margin", type=float, default=0.2, metavar="F", help="each side, of the longer side; default 0.2"
    )
    crop.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="by five landmarks to ArcFace's template, or the upright box (default: align)",
    )
    crop.add_argument("--format", choices=("jpeg", "png", "webp"), default="jpeg", help="default jpeg")
    crop.add_argument("--quality", type=cli.positive_int, default=95, metavar="Q", help="1 to 100, default 95")
    screen = parser.add_argument_group("screening (faces held back are counted, by default none)")
    screen.add_argument("--min-sharpness", type=float, metavar="V", help="variance of the Laplacian at 112 px")
    screen.add_argument("--min-luminance", type=cli.fraction, metavar="0..1", help="mean luminance")
    screen.add_argument("--max-luminance", type=cli.fraction, metavar="0..1", help="mean luminance")
    screen.add_argument("--min-inter-eye", type=float, metavar="PX", help="distance between the eyes")
    screen.add_argument("--max-roll", type=float, metavar="DEG", help="head roll in either direction")
    write = parser.add_argument_group("data set")
    write.add_argument("--split", default="1,0,0", metavar="T,V,S", help="train,validation,test; default 1,0,0")
    write.add_argument(
        "--label-set", default="affectnet-8", metavar="NAME", help="class names of the empty label column"
    )
    write.add_argument("--yolo", choices=("boxes", "pose", "off"), default="boxes", help="labels (default boxes)")
    write.add_argument(
        "--yolo-images", choices=("copy", "none"), help="upright copies of the photos (default: copy if OUT is local)"
    )
    cli.add_limit_flags(parser)
    return parser


def recipe_from(args: argparse.Namespace) -> "Recipe":
    """The recipe that the flags describe. Raises UserError for values that make no sense."""
    from dataset_tools.crop import CropRecipe
    from dataset_tools.faces import Recipe
    from dataset_tools.quality import Screen
    from dataset_tools.splits import parse_fractions

    detector = cli.detector_from(args)
    try:
        return Recipe(
            detector=detector,
            crop=CropRecipe(args.align, args.margin, args.size, args.format, args.quality),
            screen=Screen(
                args.min_sharpness, args.min_luminance, args.max_luminance, args.min_inter_eye, args.max_roll
            ),
            limits=cli.limits_from(args),
            split=parse_fractions(args.split),
            seed=args.seed,
        )
    except ValueError as error:
        raise cli.UserError(str(error)) from None


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)

    def command() -> int:
        from workflows.crop_run import crop_faces

        return crop_faces(args, recipe_from(args))

    cli.run_main(command, verbose=args.verbose)


if __name__ == "__main__":
    cli.without_pandas()
    main(sys.argv[1:])
