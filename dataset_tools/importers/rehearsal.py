"""What an import would give, without writing it: the set's counts, and the time that a few of its images take."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataset_tools.archives import STREAMED
from dataset_tools.detection import Detector
from dataset_tools.importers.annotations import Annotation, LabelledSet
from dataset_tools.importers.shard import read
from dataset_tools.importers.step import ImportRecipe, import_image

_SAMPLE_IMAGES = 24


def rehearse(found: LabelledSet, recipe: ImportRecipe, detector: Detector | None) -> dict[str, Any]:
    """Counts of a set as it is annotated, and seconds_per_image of one core, from up to 24 images."""
    counts: dict[str, Counter[int]] = {}
    for one in found.annotations:
        if one.label is not None and one.dropped is None and one.failure is None:
            counts.setdefault(one.split or "drawn", Counter())[one.label] += 1
    names = dict(enumerate(found.labels.names))
    classes = {split: {name: counts[split][label] for label, name in names.items()} for split in sorted(counts)}
    draw = np.random.default_rng(0)
    rows = np.sort(draw.permutation(len(found.annotations))[:_SAMPLE_IMAGES]).tolist()
    sample = [found.annotations[row] for row in rows]
    for one in sample[:1]:  # untimed: it pays for what is loaded on first use
        _import([one], recipe, detector)
    streamed = [one for one in sample if one.ref.kind in STREAMED]
    plain = [one for one in sample if one.ref.kind not in STREAMED]
    # Of a compressed tar, all are read in one go, and the way there is not counted: a run goes it once for many.
    seconds = _import(streamed, recipe, detector, count_reading=False) + _import(plain, recipe, detector)
    return {
        "images": len(found.annotations),
        "dropped": sum(one.dropped is not None for one in found.annotations),
        "failed": sum(one.failure is not None for one in found.annotations),
        "classes": classes,
        "sampled": len(sample),
        "seconds_per_image": seconds / max(len(sample), 1),
    }


def _import(
    sample: Sequence[Annotation], recipe: ImportRecipe, detector: Detector | None, *, count_reading: bool = True
) -> float:
    """Process some images; returns the seconds it took."""
    started = time.perf_counter()
    seconds = 0.0
    for one, (_, data) in zip(sample, read([one.ref for one in sample], recipe), strict=True):
        step = time.perf_counter()
        import_image(one, data, recipe, detector)
        seconds += time.perf_counter() - step
    return time.perf_counter() - started if count_reading else seconds
