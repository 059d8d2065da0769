"""The servers that the tests talk to, built here from their Go modules: MinIO, fake-gcs-server, and Beam's Prism.

`python3 tests/real_servers.py` builds what is not there yet, once, in some minutes, into $FACEMILL_SERVERS or
~/.cache/facemill/servers; it needs go and nothing of this project. Where a store cannot be built, an emulator from a
Python package serves instead, and the names of the tests say which it was: see tests/stores.py. Without Prism its
tests are skipped.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = {
    "minio": ("github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c"),
    "fake-gcs-server": ("github.com/fsouza/fake-gcs-server", "v1.56.1"),
    "prism": ("github.com/apache/beam/sdks/v2/go/cmd/prism", "v2.77.0"),
}


def binary(name: str) -> Path:
    """Where the server of this name and version is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("FACEMILL_SERVERS") or cache / "facemill" / "servers")
    return folder / f"{name}-{PACKAGES[name][1]}"


def is_built(name: str) -> bool:
    return os.access(binary(name), os.X_OK)


def build(name: str) -> str | None:
    """Build one server; returns the last line of the compiler where that fails."""
    if shutil.which("go") is None:
        return "there is no go on this machine"
    package, version = PACKAGES[name]
    with tempfile.TemporaryDirectory() as work:
        # Two compilers at a time: each takes up to 1 GB. Stripped, MinIO is 110 MB.
        command = ["nice", "go", "install", "-p=2", "-ldflags=-s -w", f"{package}@{version}"]
        done = subprocess.run(command, env={**os.environ, "GOBIN": work}, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip() or "go failed").splitlines()[-1]
        binary(name).parent.mkdir(parents=True, exist_ok=True)
        part = binary(name).with_name(f".{name}.{os.getpid()}.part")
        shutil.move(Path(work) / name, part)
        part.replace(binary(name))
    return None


def main() -> int:
    failed = 0
    for name, (package, version) in PACKAGES.items():
        if is_built(name):
            continue
        print(f"building {package} {version}, which takes minutes", file=sys.stderr, flush=True)
        if why := build(name):
            print(f"{name} was not built: {why}", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
