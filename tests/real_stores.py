"""The object stores that the tests talk to, built here from their Go modules: MinIO and fake-gcs-server.

`python3 tests/real_stores.py` builds what is not there yet, once, in some minutes, into $FACEMILL_STORES or
~/.cache/facemill/stores; it needs go and nothing of this project. Where one cannot be built, an emulator from a Python
package serves instead, and the names of the tests say which it was: see tests/stores.py.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULES = {
    "minio": ("github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c"),
    "fake-gcs-server": ("github.com/fsouza/fake-gcs-server", "v1.56.1"),
}


def binary(name: str) -> Path:
    """Where the server of this name and version is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("FACEMILL_STORES") or cache / "facemill" / "stores")
    return folder / f"{name}-{MODULES[name][1]}"


def is_built(name: str) -> bool:
    return os.access(binary(name), os.X_OK)


def build(name: str) -> str | None:
    """Build one server; the last line of the compiler where that fails."""
    if shutil.which("go") is None:
        return "there is no go on this machine"
    module, version = MODULES[name]
    with tempfile.TemporaryDirectory() as work:
        # Two compilers at a time: each takes up to 1 GB. Stripped, MinIO is 110 MB.
        command = ["nice", "go", "install", "-p=2", "-ldflags=-s -w", f"{module}@{version}"]
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
    for name, (module, version) in MODULES.items():
        if is_built(name):
            continue
        print(f"building {module} {version}, which takes minutes", file=sys.stderr, flush=True)
        if why := build(name):
            print(f"{name} was not built, the emulator serves: {why}", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
