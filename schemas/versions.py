"""Versions of what decides a result: recorded with every run, and compared with those of the machines that work."""

import platform
from collections.abc import Sequence
from importlib import metadata

PACKAGES = (
    "facemill",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "pillow",
    "pillow-heif",
    "simplejpeg",
    "pyarrow",
    "mtcnn",
)
_INSTALL = "install the same on both: uv pip install -c requirements.lock facemill"


class VersionError(RuntimeError):
    """A worker that would fail, or mean something else than the client; one line that names the next step."""


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of what decides pixels and boxes; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def unlike(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """`numpy 2.3.0 there, 2.4.0 here` for each that differs, of those that are here."""
    return [
        f"{name} {there.get(name, 'missing')} there, {version} here"
        for name, version in here.items()
        if there.get(name) != version
    ]


def compare(here: dict[str, str], there: dict[str, str], where: str) -> str | None:
    """None for equal versions, or one line that says how the workers of `where` differ.

    Raises VersionError where the work cannot go there: this project differs, whose functions are called there by name,
    or Python in its minor version, since what is sent is pickled. Any other package may change a pixel, and no more.
    """
    if not (found := unlike(here, there)):
        return None
    line = f"the workers of {where} differ: {'; '.join(found)}"
    if there.get("facemill") != here.get("facemill") or _minor(there) != _minor(here):
        raise VersionError(f"{line}: {_INSTALL}")
    return f"{line}; results may differ in single pixels"


def _minor(versions: dict[str, str]) -> str:
    return versions.get("python", "").rpartition(".")[0]
