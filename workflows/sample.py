"""`just sample`: crop the faces of photos that scikit-image and matplotlib ship: a first try that needs no data."""

import importlib.util
import sys
from pathlib import Path

from workflows import cli, crop_faces

_PHOTOS = {"skimage": "data/*.[jp][pn]g", "matplotlib": "mpl-data/sample_data/*.[jp][pn]g"}


def sources() -> list[str]:
    """Globs of the photos, found without importing their packages. Exits with one line when a package is missing."""
    found = []
    for package, photos in _PHOTOS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"error: the sample photos need {package}: uv pip install 'facemill[sample]'")
        found.append(str(Path(spec.origin).parent / photos))
    return found


if __name__ == "__main__":
    cli.without_pandas()
    crop_faces.main([*sources(), "--out", "sample-faces", *sys.argv[1:]])
