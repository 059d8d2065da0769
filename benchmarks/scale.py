"""`just bench-scale`: planning, listing, manifest and resume of very many synthetic images; seconds and peak memory.

Each step is a process of its own, so that its peak is its own. No image is made: what grows with their number is names.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from dataset_tools import storage
from dataset_tools.counts import Counts
from dataset_tools.limits import Limits
from dataset_tools.listing import Listing, read_refs
from dataset_tools.run_folder import RunFolder, listing_starts
from dataset_tools.shards import done_marker
from dataset_tools.sources import list_images
from workflows.listed_run import begin, standing

_SHARD_IMAGES = 512
_ARCHIVE_SHARE = 10
"""An archive has a tenth of the images: some have a million members, none that we know of ten."""


def _key(number: int) -> str:
    return f"s3://a-bucket-of-photos/2026/{number // 1000:07d}/photo-{number:09d}.jpg"


def make(folder: Path, images: int) -> None:
    """A list file, a zip and a tar of empty members, a run folder with a done marker for every shard."""
    with (folder / "list.txt").open("w") as file:
        file.writelines(f"{_key(number)}\n" for number in range(images))
    members = [f"2026/{number // 1000:05d}/photo-{number:09d}.jpg" for number in range(images // _ARCHIVE_SHARE)]
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name in members:
            archive.writestr(name, b"")
    header = bytearray(512)
    with (folder / "photos.tar").open("wb") as tar:
        for name in members:
            header[:100] = name.encode().ljust(100, b"\0")
            header[100:148] = b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2
            header[148:157] = b" " * 8 + b"0"
            header[257:265] = b"ustar\x0000"
            header[148:156] = b"%06o\0 " % sum(header)
            tar.write(header)
        tar.write(bytes(1024))
    for shard in range(-(-images // _SHARD_IMAGES)):
        counts = Counts(images=min(_SHARD_IMAGES, images - shard * _SHARD_IMAGES), fingerprint=shard)
        marker = json.dumps({"shard": shard} | counts.to_dict()).encode()
        storage.write_bytes(done_marker(str(folder / "before"), shard), marker, flush=False)


def _list_file(folder: Path) -> int:
    """list a file of names, write listing and manifest"""
    listing = list_images(str(folder / "list.txt"), Limits())
    begin(RunFolder(str(folder / "out")), "crop-faces", ["list"], {}, listing, _SHARD_IMAGES)
    return len(listing)


def _resume(folder: Path) -> int:
    """continue: read the listing, cut it into shards, read every done marker"""
    (folder / "before" / "done").rename(folder / "out" / "done")
    run = RunFolder(str(folder / "out"))
    found = standing(run, "crop-faces", ["list"], {})
    assert found is not None
    starts = listing_starts(found[0].table, _SHARD_IMAGES)
    assert len(run.done()) == len(starts) - 1
    return len(found[0])


def _hand_out(folder: Path) -> int:
    """make the task of every shard"""
    listing = Listing.from_parquet(str(folder / "out" / "listing.parquet"))
    return sum(len(listing.refs(start, start + _SHARD_IMAGES)) for start in range(0, len(listing), _SHARD_IMAGES))


def _one_unit(folder: Path) -> int:
    """a scoring worker reads its unit's rows of the listing"""
    return len(read_refs(str(folder / "out" / "listing.parquet"), 0, 2048))


def _zip(folder: Path) -> int:
    """list a zip"""
    return len(list_images(str(folder / "photos.zip"), Limits(max_members=10**9)))


def _tar(folder: Path) -> int:
    """list a tar"""
    return len(list_images(str(folder / "photos.tar"), Limits(max_members=10**9)))


STEPS: dict[str, Callable[[Path], int]] = {
    "list": _list_file,
    "resume": _resume,
    "tasks": _hand_out,
    "unit": _one_unit,
    "zip": _zip,
    "tar": _tar,
}


def _peak_mb() -> float:
    """Linux keeps the peak of the process that this one was forked off in what getrusage tells."""
    told = Path("/proc/self/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="just bench-scale", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, metavar="N", help="default 1,000,000")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        started = time.perf_counter()
        count = STEPS[args.step](args.folder)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        took = time.perf_counter() - started
        print(json.dumps([count, took, spent.ru_utime + spent.ru_stime, _peak_mb()]))
        return
    print("| step | images | s | s of one core | peak MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="facemill-scale-") as name:
        make(Path(name), args.images)
        for step, run in STEPS.items():
            command = [sys.executable, "-m", "benchmarks.scale", "--step", step, "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            count, took, core, peak = json.loads(done.stdout)
            print(f"| {run.__doc__} | {count:,} | {took:.1f} | {core:.1f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
