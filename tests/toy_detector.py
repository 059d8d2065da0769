"""A face detector for whole runs: each picture is one face; one that is 33 px wide kills the process that looks at it.

`injected(folder)` is an environment in which every Python process, Beam's workers too, has it in place of the real one.
It also can be slow, so that a test has time to kill what works: SLOW_DETECTOR_S for each picture, SLOW_PICTURE_S for
one that is 34 px wide.
"""

import os
import signal
import time
from pathlib import Path

from dataset_tools import detection
from dataset_tools.detection import Face
from tests.collection import ROOT

KILLS_PX, SLOW_PX = 33, 34


def detect(pixels):
    height, width = pixels.shape[:2]
    if width == KILLS_PX:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("SLOW_PICTURE_S" if width == SLOW_PX else "SLOW_DETECTOR_S", "0")))
    return [Face((0.0, 0.0, float(width), float(height)), ((1.0, 2.0),) * 5, 0.5)]


def injected(folder: Path, **values: object) -> dict[str, str]:
    """The environment; values: of the variables above."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        "import sys",
        f"sys.path.append({str(ROOT)!r})",
        "import tests.toy_detector",
        "tests.toy_detector.put_in()",
    )
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return os.environ | {"PYTHONPATH": str(folder)} | {name: str(value) for name, value in values.items()}


def put_in() -> None:
    detection.load_detector = lambda _settings: detect
