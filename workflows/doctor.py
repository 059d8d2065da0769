"""`just doctor [WHERE …]`: whether this machine, a bucket, a Dask scheduler or a Ray cluster is fit for the jobs.

Every check is a line: ok, note (something is not there that some jobs need) or fault, with what to do. An engine or a
store is imported when it is asked about. Exit code 1 with a fault.
"""

import argparse
import os
import platform
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from workflows import cli

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EXAMPLES = """examples:
  just doctor                                        this machine
  just doctor s3://bucket/faces tcp://10.0.0.1:8786  a bucket and a Dask scheduler too
  just doctor ray://10.0.0.1:10001 --json
"""
OK, NOTE, FAULT = "ok", "note", "fault"
_ROLES = {
    "": "crop-faces, import-labels",
    "yunet": "--detector yunet",
    "s3": "s3://",
    "train": "train",
    "score": "score",
}
"""What each extra of the package is for."""
_WORKER_BYTES = 400_000_000
"""A crop worker on photos of 24 megapixels."""
_LEAST_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """what: was looked at. state: ok, note or fault. told: what was found, and what to do."""

    what: str
    state: str
    told: str


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="just doctor",
        description="Check this machine and what the jobs are to reach; say what to do for each fault.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "where", nargs="*", metavar="WHERE", help="folder or bucket (gs://, s3://), Dask scheduler (tcp://) or ray://"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser


def checks(where: list[str]) -> Iterator[Check]:
    """One check after the other, as they are made."""
    yield _python()
    yield from packages()
    yield from _machine()
    for place in where:
        if place.startswith(("tcp://", "tls://")):
            yield _scheduler(place)
        elif place.startswith("ray://"):
            yield _ray(place)
        else:
            yield _files(place)


def _python() -> Check:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", FAULT, f"{version}; 3.11 to 3.13 are known to work: uv venv --python 3.11")
    return Check("Python", OK, version)


def packages(lock: Path = Path(__file__).parent.parent / "requirements.lock") -> Iterator[Check]:
    """For each role: whether its packages are there, in versions that are allowed, and in those of the lock file."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in metadata.requires("facemill") or []]
    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", lock.read_text(), re.M)) if lock.exists() else {}
    for role, what in _ROLES.items():
        own = [one for one in needed if _is_of(one, role)]
        versions = {one.name: _version(one.name) for one in own}
        missing = [name for name, version in versions.items() if version is None]
        wrong = [f"{one.name} {versions[one.name]}, not {one.specifier}" for one in own if not _fits(one, versions)]
        other = [
            f"{name} {version}, not {locked[name]}"
            for name, version in versions.items()
            if version is not None and version != locked.get(name, version)
        ]
        step = f"uv pip install -c requirements.lock 'facemill{f'[{role}]' if role else ''}'"
        if wrong:
            yield Check(what, FAULT, f"{'; '.join(wrong)}: {step}")
        elif missing:
            yield Check(what, NOTE if role else FAULT, f"{', '.join(missing)} missing: {step}")
        elif other:
            yield Check(what, NOTE, f"not as tested, {'; '.join(other)}: {step}")
        else:
            yield Check(what, OK, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _is_of(requirement: "Requirement", role: str) -> bool:
    if requirement.marker is None:
        return role == ""
    return (
        role != "" and requirement.marker.evaluate({"extra": role}) and not requirement.marker.evaluate({"extra": ""})
    )


def _fits(requirement: "Requirement", versions: dict[str, str | None]) -> bool:
    version = versions[requirement.name]
    return version is None or requirement.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Check]:
    from workflows import machine
    from workflows.progress import size

    own = machine.share()
    if own.quota is not None and own.quota < own.cores:
        usable = max(1, int(own.quota))
        yield Check("cores", NOTE, f"{own.cores}, of which this container may use {own.quota:g}: --workers {usable}")
    else:
        yield Check("cores", OK, str(own.cores))
    memory = f"{size(own.free_bytes)} free of {size(own.memory_bytes)}"
    workers = own.free_bytes // _WORKER_BYTES
    if workers < own.cores:
        told = f"--workers {workers}" if workers else "end something else first"
        yield Check("memory", FAULT, f"{memory}, and a crop worker takes {size(_WORKER_BYTES)}: {told}")
    else:
        yield Check("memory", OK, memory)
    cards = machine.gpus()
    yield Check("GPU", OK, "; ".join(cards)) if cards else Check("GPU", NOTE, "none, or no driver: train takes the CPU")
    for what, folder in (("disk here", os.getcwd()), ("disk of TMPDIR", tempfile.gettempdir())):  # noqa: PTH109
        free = machine.free_disk_bytes(folder)
        if free < _LEAST_DISK_BYTES:
            yield Check(what, FAULT, f"{size(free)} free in {folder}: make room, or work elsewhere (--out, TMPDIR)")
        else:
            yield Check(what, OK, f"{size(free)} free in {folder}")


def _files(place: str) -> Check:
    """Look at a folder or bucket, write a small file there and remove it."""
    from dataset_tools import storage

    what = storage.redact(place)
    started = time.monotonic()
    try:
        there = storage.exists(place)
    except storage.StorageError as error:
        return Check(what, FAULT, str(error))
    probe = storage.join(place, f".facemill-doctor-{secrets.token_hex(4)}")
    if not there and storage.is_local(place):
        return Check(what, FAULT, "does not exist: make the folder, or check its name")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except storage.DeniedError as error:
        state = NOTE if there else FAULT
        return Check(what, state, f"may be read but not written, so it can be SOURCE but not --out: {error}")
    except storage.StorageError as error:
        return Check(what, FAULT, str(error))
    return Check(what, OK, f"read and written in {time.monotonic() - started:.1f} s")


def _scheduler(address: str) -> Check:
    from workflows import dask_engine

    try:
        found = dask_engine.describe(address)
    except dask_engine.EngineError as error:
        return Check(address, FAULT, f"{error}; start one: dask scheduler --host ADDRESS, and open its port")
    if not found.workers:
        return Check(address, FAULT, f"has no worker: dask worker {address} --nthreads 1")
    return _told_cluster(address, f"{found.workers} workers, {found.threads} threads", found.differences)


def _ray(address: str) -> Check:
    try:
        from workflows import ray_engine
    except ModuleNotFoundError as error:
        return Check(address, FAULT, f"{error.name} is missing: uv pip install 'facemill[train]'")
    try:
        found = ray_engine.describe(address)
    except ray_engine.EngineError as error:
        return Check(address, FAULT, f"{error}; start one: ray start --head --ray-client-server-port 10001")
    return Check(address, OK, ", ".join(f"{count:g} {name}" for name, count in found.items()))


def _told_cluster(address: str, told: str, differences: list[str]) -> Check:
    if differences:
        return Check(
            address,
            FAULT,
            f"{told}; versions differ: {'; '.join(differences)}: install the same on both, "
            "uv pip install -c requirements.lock facemill",
        )
    return Check(address, OK, told)


def doctor(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    made = []
    for check in checks(args.where):
        made.append(check)
        if not args.json:
            print(f"{check.state:<6}{check.what:<26}{check.told}", flush=True)
    faults = sum(check.state == FAULT for check in made)
    if args.json:
        cli.result([], {"faults": faults, "checks": [asdict(check) for check in made]}, as_json=True)
    return cli.EXIT_FAILED if faults else 0


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    cli.run_main(lambda: doctor(args), verbose=False)


if __name__ == "__main__":
    main(sys.argv[1:])
