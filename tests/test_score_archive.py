"""`just score` on hostile archives: every member is accounted for, once, and Beam says what a plain loop says."""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataset_tools.archives import archive_suffix_kinds
from tests import collection, hostile_archives, score_toy, toy_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_model.folder(tmp_path_factory.mktemp("model") / "toy")


def assert_accounted_for(out: Path, planned: hostile_archives.Planned, counts: dict) -> None:
    """Each image that was planned has what was planned for it, once, over predictions and failures."""
    scored = Counter(row["key"] for row in score_toy.predictions(out))
    failed = Counter(row["key"] for row in score_toy.failures(out))
    assert set((scored + failed).values()) == {1}
    assert set(scored) == planned.scored
    assert {row["key"]: row["reason"] for row in score_toy.failures(out)} == planned.failures
    assert counts["images"] == planned.images == counts["scored"] + counts["no_face"] + counts["failed"]
    assert (counts["scored"], counts["no_face"], counts["failed"]) == (len(planned.scored), 0, len(planned.failures))
    assert counts["reasons"] == dict(sorted(Counter(planned.failures.values()).items()))
    assert counts["ignored"] == dict(sorted(planned.ignored.items()))


def test_a_loop_over_hostile_archives_gives_each_member_its_row_indexed_or_streamed(tmp_path, model):
    planned = hostile_archives.make(tmp_path / "in", 2400)
    indexed = score_toy.loop(planned.archives, model, tmp_path / "indexed", images=150)
    assert_accounted_for(tmp_path / "indexed", planned, indexed.to_dict())
    streamed = score_toy.loop(planned.archives, model, tmp_path / "streamed", whole=archive_suffix_kinds())
    assert_accounted_for(tmp_path / "streamed", planned, streamed.to_dict())
    assert indexed.fingerprint == streamed.fingerprint
    assert score_toy.predictions(tmp_path / "indexed") == score_toy.predictions(tmp_path / "streamed")
    assert score_toy.failures(tmp_path / "indexed") == score_toy.failures(tmp_path / "streamed")


MEMBERS = int(os.environ.get("HOSTILE_MEMBERS", "24000"))
MODES = {
    "in memory, indexed": ("--workers=9", "--direct_running_mode=in_memory"),
    "in memory, streamed": ("--workers=1", "--direct_running_mode=in_memory"),
    "two threads": ("--workers=2", "--direct_running_mode=multi_threading"),
    "two processes": ("--workers=2",),
}
"""There are eight archives, so they are indexed for nine workers and streamed for less."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, model):
    """The archives, what is planned, and where a plain loop wrote its tables."""
    folder = tmp_path_factory.mktemp("hostile")
    planned = hostile_archives.make(folder / "in", MEMBERS)
    counts = score_toy.loop(planned.archives, model, folder / "loop", images=1000)
    assert_accounted_for(folder / "loop", planned, counts.to_dict())
    return folder, planned, f"{counts.fingerprint:064x}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", MODES)
def test_every_runner_mode_gives_the_table_of_a_plain_loop(hostile, model, tmp_path, mode):
    folder, planned, fingerprint = hostile
    out, scratch = tmp_path / "out", tmp_path / "tmp"
    scratch.mkdir()
    before = sorted(folder.rglob("*"))
    arguments = (*planned.archives, "--faces", "given", "--model", model, "--out", out, "--json", *MODES[mode])
    with watched(scratch) as most:
        told = score_toy.summary(score_toy.score(*arguments, env=os.environ | {"TMPDIR": str(scratch)}))
    assert_accounted_for(out, planned, told)
    assert told["fingerprint"] == fingerprint
    assert score_toy.predictions(out) == score_toy.predictions(folder / "loop")
    assert score_toy.failures(out) == score_toy.failures(folder / "loop")
    assert told["counters"]["images"] == planned.images
    assert max(most) < 100_000  # nothing is unpacked to the disk, but what Beam stages of its own
    assert sorted(folder.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tmp"]
    kinds = {path.name.partition("-")[0] for path in out.iterdir()}
    assert kinds == {"predictions", "failures", "samples", "done", "listing.parquet", "manifest.json"} | {
        "summary.json",
        "report.html",
    }


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The bytes that lie below a folder, seen every 50 ms."""
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(FileNotFoundError):
                seen.append(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_that_run_onnx_import_no_tensorflow_and_no_pandas(tmp_path, model):
    source = collection.make(tmp_path / "photos", faces=3)
    arguments = (source, "--model", model, "--out", tmp_path / "out", "--json", "--workers", 2, "-v")
    done = score_toy.score(*arguments, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})
    told = score_toy.summary(done)
    assert (told["images"], told["scored"], told["no_face"], told["failed"]) == (8, 3, 3, 2)
    imported = Counter(line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line)
    assert imported["infer.predictor"] == 4  # the command, the job and two workers
    assert imported["apache_beam.runners.worker.sdk_worker_main"] == 3  # of the command alone not
    assert not {"tensorflow", "keras", "boto3"} & set(imported)
    assert imported["pandas.core.frame"] <= 1  # of the command, where pyarrow asks for it
