"""`just train DATASET`: an expression model from a labelled data set of faces, by a recipe, on this machine or on Ray.

This module reads the arguments; the story of the run is in `workflows.train_run`, the engine in `workflows.ray_engine`,
and both are imported when a run starts, so that --help answers at once.
"""

import argparse
import sys

from workflows import cli

EXAMPLES = """examples:
  just train fer2013-faces --recipe compact48_fer2013
  just train affectnet-faces --recipe mobilenetv2_affectnet --weights mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5
  just train fer2013-faces --recipe resnet34_fer2013 --set epochs=5 --set augment.blur=0
  just train gs://bucket/faces --out gs://bucket/model --workers 4 --gpu --address ray://10.0.0.1:10001
  just train --list                                         the recipes, with expected time and result
"""  # noqa: E501


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just train",
        description="Train an expression model on a labelled data set of faces (made by just import-labels).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="data set folder or URL")
    parser.add_argument("--list", action="store_true", help="the recipes, with expected time and result")
    how = parser.add_argument_group("recipe")
    how.add_argument(
        "--recipe", default="compact48_fer2013", metavar="NAME|FILE", help="default compact48_fer2013; --list names all"
    )
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    how.add_argument(
        "--weights", metavar="PATH|URL", help="pretrained weights: ImageNet's .h5, or a model.keras; none: from scratch"
    )
    how.add_argument("--teacher", metavar="MODEL", help="model folder whose answers become a part of the targets")
    how.add_argument("--folds", type=cli.positive_int, metavar="K", help="K models by cross-validation, by photo")
    engine = parser.add_argument_group("Ray")
    engine.add_argument("--workers", type=cli.positive_int, default=1, metavar="N", help="processes; default 1")
    engine.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    engine.add_argument(
        "--address", metavar="URL", help="a Ray cluster that runs already, such as ray://10.0.0.1:10001"
    )
    engine.add_argument("--storage", metavar="URL", help="where checkpoints go, for all machines (default: OUT)")
    engine.add_argument(
        "--max-failures", type=int, default=3, metavar="N", help="deaths of workers to get over; default 3"
    )
    shared = parser.add_argument_group("shared flags")
    shared.add_argument("--out", metavar="OUT", help="model folder (default: DATASET-RECIPE here)")
    shared.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    shared.add_argument("--limit", type=cli.positive_int, metavar="N", help="only the first N faces of each split")
    shared.add_argument("--seed", type=int, metavar="N", help="other draws (default: the recipe's)")
    shared.add_argument("--overwrite", action="store_true", help="delete the earlier run in OUT and start anew")
    shared.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    shared.add_argument("-v", "--verbose", action="store_true", help="log what the engine does")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.dataset is None and not args.list:
        parser.error("name a DATASET folder, or --list the recipes")

    def command() -> int:
        if args.list:
            return _list_recipes(as_json=args.json)
        with cli.muted():
            try:
                from workflows.train_run import train_expressions
            except ModuleNotFoundError as error:
                raise cli.UserError(
                    f"just train needs the extra train ({error.name} is missing): uv pip install 'facemill[train]'"
                ) from None
        return train_expressions(args)

    cli.run_main(command, verbose=args.verbose)


def _list_recipes(*, as_json: bool) -> int:
    from train import recipes_io

    abouts = {name: recipes_io.load(name)[1] for name in recipes_io.names()}
    lines = [
        f"{name}\n    {one.title}\n    {one.command}\n    time: {one.expected_time}\n    result: {one.expected_result}"
        for name, one in abouts.items()
    ]
    cli.result(lines, {name: vars(one) for name, one in abouts.items()}, as_json=as_json)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
