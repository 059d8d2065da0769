"""How a run of crop-faces is cut and counted, where the number of images is too large for a test to crop them."""

import io

import pytest

from dataset_tools.counts import Counts
from workflows import crop_run, dask_engine, progress

HERE, CLUSTER = dask_engine.Where(4), dask_engine.Where(4, "tcp://10.0.0.1:8786")


@pytest.mark.parametrize(
    ("images", "where", "expected"),
    [
        (5, HERE, 1),
        (1_600, HERE, 100),
        (1_600, CLUSTER, 13),
        (10**6, HERE, 512),
        (10**7, CLUSTER, 512),
        (2 * 10**7, CLUSTER, 1_000),
        (10**9, CLUSTER, 4_096),
    ],
)
def test_shards_are_small_in_a_small_run_and_grow_in_a_very_large_one(images, where, expected):
    assert crop_run._shard_images(images, where) == expected


def test_the_progress_counts_each_image_once_whatever_is_heard_when(monkeypatch):
    shown = []
    monkeypatch.setattr(progress.Progress, "show", lambda _, *sums: shown.append(sums))
    monkeypatch.setattr("sys.stderr", io.StringIO())
    tally = crop_run._Tally(100, {0: Counts(images=10, faces=3, failed=1)})
    tally.heard(1, {"images": 4, "faces": 1, "failed": 0})
    tally.heard(1, {"images": 6, "faces": 2, "failed": 1})
    tally.heard(2, {"images": 5, "faces": 0, "failed": 0})
    tally.finished(1, Counts(images=10, faces=4, failed=1))
    tally.heard(1, {"images": 9, "faces": 3, "failed": 1})  # late: events and results take different ways
    tally.finished(2, Counts(images=10))
    assert shown == [(14, 4, 1), (16, 5, 2), (21, 5, 2), (25, 7, 2), (25, 7, 2), (30, 7, 2)]
    assert tally.images == 30


def test_a_thousand_workers_report_less_often_than_four():
    assert dask_engine._report_every_s(4) == 0.5
    assert dask_engine._report_every_s(1_000) == 10.0
