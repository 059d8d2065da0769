"""`just bench-crop`: what everything around detection costs, and what a second process gains, on a folder of photos.

The first figure runs one shard in this process, pinned to one core, with the detector's own time told apart. The second
runs the engine with one worker and with two in turn, on copies of the same photos, and compares images per second from
the moment that the workers stand ready. Medians of the rounds.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

from dataset_tools.detection import DetectorSettings, Face, RgbImage, load_detector
from dataset_tools.faces import Recipe
from dataset_tools.limits import Limits
from dataset_tools.shards import ShardTask, YoloOptions, run_shard
from dataset_tools.sources import ImageRef, list_images
from workflows import dask_engine
from workflows.progress import duration


def overhead(refs: tuple[ImageRef, ...], recipe: Recipe, yolo: YoloOptions) -> tuple[float, float, int]:
    """(CPU s in the detector, CPU s around it, pixels), for one shard of all these images in a temporary folder."""
    detect = load_detector(recipe.detector)
    spent = 0.0

    def timed(pixels: RgbImage) -> list[Face]:
        nonlocal spent
        started = time.process_time()
        found = detect(pixels)
        spent += time.process_time() - started
        return found

    with tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        counts = run_shard(ShardTask(out, 0, 1, refs, recipe, yolo, "affectnet-8"), timed)
        total = time.process_time() - started
    return spent, total - spent, counts.pixels


def throughput(refs: tuple[ImageRef, ...], workers: int, recipe: Recipe) -> float:
    """Images per second of the engine, from the first shard's end to the last's, so that starting does not count."""
    size = max(1, len(refs) // (16 * workers))
    shards = -(-len(refs) // size)
    with tempfile.TemporaryDirectory() as out:
        tasks = (
            ShardTask(out, n, shards, refs[n * size : (n + 1) * size], recipe, YoloOptions(), "affectnet-8")
            for n in range(shards)
        )
        images, started = 0, 0.0
        for number, done in enumerate(
            dask_engine.run(tasks, dask_engine.Where(workers), recipe.detector, lambda *_: None)
        ):
            if number + 1 == workers:  # every worker has done its first
                started = time.perf_counter()
            elif number + 1 > workers:
                images += done.counts.images
        return images / (time.perf_counter() - started)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="just bench-crop", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="folder or archive of photos")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--copies", type=int, default=4, metavar="N", help="of the photos, for two workers; default 4")
    parser.add_argument("--detector", choices=("mtcnn", "yunet"), default="mtcnn")
    args = parser.parse_args(argv)
    recipe = Recipe(detector=DetectorSettings(args.detector))
    refs = tuple(list_images(args.source, Limits()).refs())
    cores = os.sched_getaffinity(0)
    print(f"{len(refs)} images of {args.source}, detector {args.detector}, {len(cores)} cores, {args.rounds} rounds\n")

    os.sched_setaffinity(0, {max(cores)})
    print("| one core | detection, s | around it, s | around / detection | ms/MP in all |\n|---|---|---|---|---|")
    for name, yolo in (("crops, ledger and YOLO copies", YoloOptions()), ("without YOLO", YoloOptions("off"))):
        rounds = [overhead(refs, recipe, yolo) for _ in range(args.rounds)]
        detection, around = (statistics.median(column) for column in list(zip(*rounds, strict=True))[:2])
        ratio = statistics.median(b / a for a, b, _ in rounds)
        per_megapixel = 1e9 * (detection + around) / rounds[0][2]
        print(f"| {name} | {detection:.2f} | {around:.2f} | {ratio:.1%} | {per_megapixel:.1f} |")
    os.sched_setaffinity(0, cores)

    many = tuple(ref for _ in range(args.copies) for ref in refs)
    one, two = [], []
    started = time.perf_counter()
    for _ in range(args.rounds):
        one.append(throughput(many, 1, recipe))
        two.append(throughput(many, 2, recipe))
    gains = [b / a for a, b in zip(one, two, strict=True)]
    print("\n| images/s, 1 worker | 2 workers | gain |\n|---|---|---|")
    print(f"| {statistics.median(one):.1f} | {statistics.median(two):.1f} | {statistics.median(gains):.2f} |")
    print(f"\nin {duration(time.perf_counter() - started)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
