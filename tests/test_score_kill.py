"""What real deaths do to `just score`: nothing. Processes are killed; the tables then equal those of a plain loop."""

import contextlib
import json
import os
import signal
import subprocess
import zipfile

import cv2
import numpy as np
import psutil
import pytest

from tests import score_toy, toy_detector, toy_model
from tests.processes import done, enlarge, small_disk, started, wait_for
from tests.score_toy import score, summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES = 96
UNIT = 3
"""Images of a unit, with two workers: 16 units for each."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_model.folder(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture
def slow(tmp_path):
    return toy_detector.injected(tmp_path / "site", SLOW_DETECTOR_S=0.1)


def pictures(path, widths):
    """A zip of pictures so many pixels wide, each of a colour of its own."""
    with zipfile.ZipFile(path, "w") as file:
        for number, width in enumerate(widths):
            pixels = np.full((40, width, 3), (number * 37 % 256, number * 91 % 256, number * 53 % 256), np.uint8)
            file.writestr(f"{number:03d}.png", cv2.imencode(".png", pixels)[1].tobytes())
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("source") / "pictures.zip", [40] * IMAGES)


@pytest.fixture(scope="module")
def undisturbed(archive, model, tmp_path_factory):
    """Where a plain loop wrote its tables, and what it counted."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, score_toy.loop([archive], model, out, detect=toy_detector.detect)


def assert_same(out, told, undisturbed):
    """Every image has one row, no face stands twice, and all is as in the plain loop."""
    expected_out, expected = undisturbed
    assert told["fingerprint"] == f"{expected.fingerprint:064x}"
    assert (told["images"], told["scored"], told["faces"]) == (IMAGES, IMAGES, IMAGES)
    assert score_toy.predictions(out) == score_toy.predictions(expected_out)
    assert score_toy.failures(out) == []
    assert not list(out.rglob("*.part"))
    assert not (out / "attempts").exists()


def below(process, *, worker):
    """The job's process, or its workers, of a running command."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if "workflows.beam_process" in words and ("worker" in words) == worker:
                    found.append(child)
    return found


def test_a_killed_worker_and_a_killed_job_lose_nothing_and_the_command_goes_on(
    archive, model, slow, tmp_path, undisturbed
):
    out = tmp_path / "out"
    with started(score_toy.command(archive, "--model", model, "--out", out, "--json", "--workers", 2), slow) as process:
        wait_for(lambda: done(out) >= 3, process)
        workers = below(process, worker=True)
        assert len(workers) == 2
        workers[0].kill()
        _, alive = psutil.wait_procs(workers, timeout=60)  # Beam would wait for ever for the dead one
        assert alive == []
        before = done(out)
        wait_for(lambda: done(out) >= before + 3, process)
        workers = below(process, worker=True)
        below(process, worker=False)[0].kill()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert alive == []
        stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert stderr.count("a worker process died; going on with what is left\n") == 2
    assert "Traceback" not in stderr
    assert_same(out, json.loads(stdout), undisturbed)


def test_a_killed_command_leaves_no_process_and_continues_when_repeated(archive, model, slow, tmp_path, undisturbed):
    out = tmp_path / "out"
    with started(score_toy.command(archive, "--model", model, "--out", out, "--workers", 2), slow) as process:
        wait_for(lambda: done(out) >= 3, process)
        others = psutil.Process(process.pid).children(recursive=True)
        assert len(others) >= 3
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(others, timeout=30)
        assert alive == []
    before = done(out)
    assert 3 <= before < IMAGES // UNIT
    again = score(archive, "--model", model, "--out", out, "--json", "--workers", 1, env=slow)
    assert f"continuing: {before * UNIT} images are done" in again.stderr
    assert summary(again)["counters"]["images"] == IMAGES - UNIT * before
    assert_same(out, summary(again), undisturbed)


def test_an_interrupted_run_exits_with_130_and_continues(archive, model, slow, tmp_path, undisturbed):
    out = tmp_path / "out"
    with started(score_toy.command(archive, "--model", model, "--out", out, "--workers", 1), slow) as process:
        wait_for(lambda: done(out) >= 2, process)
        others = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted: the same command continues where it stopped"
    assert "Traceback" not in stderr
    assert others
    assert not any(other.is_running() for other in others)
    again = score(archive, "--model", model, "--out", out, "--json", "--workers", 1, env=slow)
    assert_same(out, summary(again), undisturbed)


def test_pictures_that_kill_their_process_each_time_are_failed_rows(model, tmp_path):
    """Two of them in one segment."""
    widths = [40, 40, toy_detector.KILLS_PX, 40, 40, toy_detector.KILLS_PX, 40, 40]
    archive = pictures(tmp_path / "pictures.zip", widths)
    in_one = tmp_path / "pictures.tar"
    subprocess.run(["tar", "cf", in_one, "-C", _unpacked(archive), "."], check=True)
    out = tmp_path / "out"
    env = toy_detector.injected(tmp_path / "site")
    arguments = (in_one, archive, "--model", model, "--out", out, "--json", "--workers", 1)
    told = summary(score(*arguments, env=env))
    assert (told["images"], told["faces"], told["reasons"]) == (16, 12, {"detector_crash": 4})
    rows = score_toy.failures(out)
    assert {row["key"] for row in rows} == {
        f"{archive}#002.png",
        f"{archive}#005.png",
        f"{in_one}#./002.png",
        f"{in_one}#./005.png",
    }
    assert {(row["stage"], row["detail"]) for row in rows} == {("detect", "its worker process died each time")}
    assert not (out / "attempts").exists()


def _unpacked(archive):
    folder = archive.with_suffix("")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


def test_a_slow_picture_is_not_blamed_for_the_deaths_of_another_worker(model, tmp_path):
    archive = pictures(tmp_path / "pictures.zip", [toy_detector.KILLS_PX, toy_detector.SLOW_PX])
    out = tmp_path / "out"
    env = toy_detector.injected(tmp_path / "site", SLOW_PICTURE_S=8)
    told = summary(score(archive, "--model", model, "--out", out, "--json", "--workers", 2, env=env))
    assert (told["scored"], told["reasons"]) == (1, {"detector_crash": 1})


def test_a_full_disk_ends_the_run_with_one_line_and_the_repeated_command_completes_it(
    archive, model, tmp_path, undisturbed
):
    env = toy_detector.injected(tmp_path / "site")
    with small_disk(tmp_path / "disk", "300k") as disk:
        out = disk / "out"
        full = score(archive, "--model", model, "--out", out, "--workers", 2, env=env)
        assert full.returncode == 1
        last = full.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert last.endswith("No space left on device (the same command continues)")
        assert "Traceback" not in full.stderr
        enlarge(disk)
        again = score(archive, "--model", model, "--out", out, "--json", "--workers", 1, env=env)
        assert_same(out, summary(again), undisturbed)
