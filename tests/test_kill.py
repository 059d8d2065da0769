"""What real deaths do to a run: nothing. Real processes are killed; the tables then equal those of a quiet run."""

import contextlib
import json
import os
import signal
import time

import psutil
import pytest
from distributed import Status

from dataset_tools.encoding import encode
from tests import collection
from tests.collection import crop_faces, faces, ledger, summary
from tests.processes import done, enlarge, small_disk, started, wait_for
from workflows import dask_engine

pytestmark = pytest.mark.slow

SLOW = {**os.environ, "DASK_DISTRIBUTED__WORKER__PRELOAD": "tests.crashing_detector", "SLOW_DETECTOR_S": "0.1"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return collection.make(tmp_path_factory.mktemp("source") / "photos", faces=60)


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, summary(crop_faces(photos, "--out", out, "--json", "--workers", 1))


def assert_same(out, told, undisturbed):
    """Every image has one row, no face stands twice, and all is as in a run that nothing disturbed."""
    expected_out, expected = undisturbed
    assert told["fingerprint"] == expected["fingerprint"]
    assert collection.outcome(out) == collection.outcome(expected_out)
    keys = [(row["key"], row["face_index"]) for row in faces(out).select(["key", "face_index"]).to_pylist()]
    assert len(set(keys)) == len(keys) == expected["faces"]
    assert not list(out.rglob("*.part"))


def workers_of(process):
    """The worker processes of a run: Dask has them forked off a server, which is a child of the command."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [worker for child in psutil.Process(process.pid).children() for worker in child.children()]
    return []


def test_a_worker_killed_three_times_loses_nothing(photos, tmp_path, undisturbed):
    out = tmp_path / "out"
    with started(
        collection.command(photos, "--out", out, "--json", "--workers", 2, "--shard-size", 4), SLOW
    ) as process:
        for kill in range(3):
            wait_for(lambda wanted=2 * kill + 1: done(out) >= wanted and workers_of(process), process)
            workers_of(process)[0].kill()
            time.sleep(0.5)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert_same(out, json.loads(stdout), undisturbed)


def test_a_killed_client_leaves_no_process_and_continues_when_repeated(photos, tmp_path, undisturbed):
    out = tmp_path / "out"
    with started(collection.command(photos, "--out", out, "--workers", 2, "--shard-size", 4), SLOW) as process:
        wait_for(lambda: done(out) >= 2, process)
        workers = workers_of(process)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []
    before = done(out)
    assert 2 <= before < 17
    again = crop_faces(photos, "--out", out, "--json", "--workers", 1)
    assert "continuing: " in again.stderr
    assert summary(again)["images_processed"] <= 65 - 4 * before
    assert_same(out, summary(again), undisturbed)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_with_130_and_continues(photos, tmp_path, undisturbed, sign):
    out = tmp_path / "out"
    with started(collection.command(photos, "--out", out, "--workers", 2, "--shard-size", 4), SLOW) as process:
        wait_for(lambda: done(out) >= 2, process)
        workers = workers_of(process)
        if sign == signal.SIGINT:
            os.killpg(process.pid, sign)  # a terminal sends Ctrl-C to the whole group
        else:
            process.send_signal(sign)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted: the same command continues where it stopped"
    assert "Traceback" not in stderr
    assert not any(worker.is_running() for worker in workers)
    assert_same(out, summary(crop_faces(photos, "--out", out, "--json", "--workers", 2)), undisturbed)


def test_a_photo_that_kills_its_worker_each_time_is_one_failed_row(tmp_path):
    source = collection.make(tmp_path / "photos", faces=6)
    quiet = summary(crop_faces(source, "--out", tmp_path / "quiet", "--json", "--workers", 2))
    (source / "killer.jpg").write_bytes(encode(collection.portrait(70)[:, :200].repeat(2, 1)[:, :333], "jpeg", 95))
    out = tmp_path / "out"
    env = {**SLOW, "SLOW_DETECTOR_S": "0"}
    told = summary(crop_faces(source, "--out", out, "--json", "--workers", 2, "--shard-size", 5, env=env))
    assert told["reasons"] == {"detector_crash": 1, "not_an_image": 1, "truncated": 1}
    assert (told["images"], told["faces"]) == (12, 6)
    assert told["fingerprint"] == quiet["fingerprint"]
    (row,) = [row for row in ledger(out) if row["reason"] == "detector_crash"]
    assert row["key"] == str(source / "killer.jpg")
    assert row["detail"] == "its worker process died each time"
    assert not (out / "attempts").exists()


def test_a_full_disk_ends_the_run_with_one_line_and_the_repeated_command_completes_it(photos, tmp_path, undisturbed):
    with small_disk(tmp_path / "disk", "600k") as disk:
        out = disk / "out"
        full = crop_faces(photos, "--out", out, "--workers", 2, "--shard-size", 4)
        assert full.returncode == 1
        last = full.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert last.endswith("No space left on device (the same command continues)")
        assert "Traceback" not in full.stderr
        enlarge(disk)
        assert_same(out, summary(crop_faces(photos, "--out", out, "--json", "--workers", 2)), undisturbed)


def test_a_worker_whose_nanny_gave_up_is_replaced(monkeypatch):
    monkeypatch.setattr(dask_engine, "_REPLACE_AFTER_S", 1.0)
    with dask_engine._client(dask_engine.Where(workers=1)) as client:
        cluster = client.cluster
        (nanny,) = cluster.workers.values()
        pid = nanny.pid
        nanny.status = Status.starting  # caught in the middle of a start: it will not bring its worker back
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while client.run(os.getpid, on_error="ignore") in ({}, None) or pid in client.run(os.getpid).values():
            assert time.monotonic() < until
            time.sleep(0.2)
        assert client.submit(int, 7).result(timeout=30) == 7
