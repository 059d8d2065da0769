"""How long a collection will take and what it will leave, from a few of its images timed one by one."""

import time
from dataclasses import dataclass

import numpy as np

from dataset_tools import sources
from dataset_tools.detection import Detector
from dataset_tools.faces import Recipe, process_image

_SAMPLE_IMAGES = 24


@dataclass(frozen=True)
class Estimate:
    """Means over the sample; seconds_per_image: of one core, reading included."""

    sampled: int
    seconds_per_image: float
    faces_per_image: float
    bytes_per_image: float
    face_bytes_per_image: float


def estimate(listing: sources.Listing, recipe: Recipe, detector: Detector, seed: int = 0) -> Estimate:
    """Process up to 24 images drawn from the listing and write nothing.

    The first one is done twice, the first time untimed: it pays for what is loaded on first use.
    """
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.permutation(len(listing))[:_SAMPLE_IMAGES]).tolist()
    refs = [ref for row in rows for ref in listing.refs(row, row + 1)]
    for ref, data in sources.read_images(refs[:1], recipe.limits):
        process_image(ref.key, data, detector, recipe)
    faces = read_bytes = face_bytes = 0
    started = time.perf_counter()
    for ref, data in sources.read_images(refs, recipe.limits):
        result = process_image(ref.key, data, detector, recipe)
        faces += len(result.faces)
        read_bytes += result.ledger.bytes or 0
        face_bytes += sum(len(face.image["bytes"]) for face in result.faces)
    seconds, count = time.perf_counter() - started, max(len(refs), 1)
    return Estimate(len(refs), seconds / count, faces / count, read_bytes / count, face_bytes / count)
