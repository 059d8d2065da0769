"""`just train --address` on a Ray head that the test starts by itself, and --folds on it; nothing of ours stays."""

import contextlib
import csv
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from dataset_tools import parquet
from tests import train_toy
from workflows import ray_engine

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
RECIPE = 'model = "linear"\ninput_px = 16\nbatch_size = 8\nepochs = 4\nrate = 0.01\ndropout = 0.0\n'
PORTS = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head():
    """Address of a cluster of one machine, with a folder of its own that is short enough for socket names.

    Its processes are ended as the group that they are: `ray stop` would end every Ray of the machine.
    """
    folder = tempfile.mkdtemp(prefix="fm-ray-", dir="/tmp")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--block"]
    options += ["--include-dashboard=false", "--num-cpus=3", "--disable-usage-stats", f"--temp-dir={folder}/r"]
    log = Path(folder) / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *options], stdout=file, stderr=file, start_new_session=True, env=ENVIRONMENT
        )
    try:
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{ports['port']}", process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        shutil.rmtree(folder, ignore_errors=True)


def train(*arguments):
    command = [sys.executable, "-m", "workflows.train_expressions", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=ENVIRONMENT)


def test_folds_are_trained_on_a_cluster_that_stays_up(head, tmp_path):
    address, process = head
    dataset = train_toy.build(str(tmp_path / "set"), train=60, validation=30)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    out = tmp_path / "folds"
    arguments = (dataset, "--recipe", tmp_path / "tiny.toml", "--out", out, "--folds", 2, "--workers", 2, "--json")
    done = train(*arguments, "--address", address)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((out / "folds.json").read_text())
    figures = [json.loads((out / f"fold-{number}" / "metrics.json").read_text()) for number in range(2)]
    assert sum(one["faces"] for one in figures) == 90
    assert told["accuracy"]["mean"] == pytest.approx(sum(one["accuracy"] for one in figures) / 2)
    assert told["accuracy"]["spread"] == pytest.approx(abs(figures[0]["accuracy"] - figures[1]["accuracy"]) / 2**0.5)
    assert told["accuracy"]["mean"] > 0.8
    keys = []
    for number in range(2):
        with (out / f"fold-{number}" / "history.csv").open() as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
        table = parquet.read_part(str(out / f"fold-{number}" / "predictions_validation.parquet"))
        keys += table["key"].to_pylist()
    assert len(set(keys)) == len(keys) == 90
    assert process.poll() is None
    assert not [one for one in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in one.name()]
    again = train(*arguments, "--address", address)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is trained already") == 2
    assert json.loads(again.stdout) == told


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_one_line_and_no_wait(scheme):
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(
        ray_engine.EngineError, match=rf"no Ray answers at {scheme}127\.0\.0\.1:{port} \(Conn"
    ) as raised:
        ray_engine._check_answers(f"{scheme}127.0.0.1:{port}")
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 5
