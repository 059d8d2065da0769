"""A Dask worker preload: the detector dies, as a segmentation fault would, on any picture that is 333 px wide.

It also can be told to be slow, so that a test has time to kill what works.
"""

import os
import signal
import time

from workflows import dask_engine

_load = dask_engine.load_detector


def _load_crashing(settings):
    find = _load(settings)

    def detect(pixels):
        if pixels.shape[1] == 333:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SLOW_DETECTOR_S", "0")))
        return find(pixels)

    return detect


dask_engine.load_detector = _load_crashing
