"""`just train --address ray://…` from one host to a Ray cluster of three others, one of which dies in mid-run."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from dataset_tools import parquet
from tests import hosts, train_toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(hosts.REASON), reason=hosts.REASON),
]
ROOT = Path(__file__).parent.parent
RAY = Path(sys.executable).parent / "ray"
HEAD_PORT, CLIENT_PORT = 6379, 10001
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    # A node that does not answer is dead after a quarter of a minute, not a half.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
}
RECIPE = """model = "linear"
input_px = 16
batch_size = 8
rate = 0.002
dropout = 0.0
balance = "weights"
[augment]
mirror = 0.1
rotate_deg = 8.0
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return train_toy.build(str(tmp_path_factory.mktemp("set") / "set"), train=405, validation=51)


@pytest.fixture(scope="module")
def net():
    """A client, a head without work of its own, and two nodes that could each hold both workers."""
    folder = Path(tempfile.mkdtemp(prefix="fm-ray-", dir="/tmp"))  # short: sockets have names of 107 bytes at most
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | SETTINGS
    try:
        with hosts.network("client", "head", "one", "two") as found:
            head = found["head"].address
            ports = [f"--port={HEAD_PORT}", f"--ray-client-server-port={CLIENT_PORT}"]
            ray(found["head"], folder, env, "--head", *ports, f"--temp-dir={folder}/r", "--num-cpus=0")
            for name in ("one", "two"):  # one after the other: on a shared disk they draw lots for the same sockets
                ray(found[name], folder, env, f"--address={head}:{HEAD_PORT}", "--num-cpus=2")
            yield found, env
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ray(host, folder, env, *words):
    """Start a node, and wait until it runs."""
    log = folder / f"{host.name}.log"
    common = ["--block", "--disable-usage-stats", "--num-gpus=0", "--object-store-memory=100000000"]
    command = [RAY, "start", *words, f"--node-ip-address={host.address}", *common]
    if "--head" in words:
        command.append("--include-dashboard=false")
    process = host.start(*command, log=log, env=env)
    until = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def command(dataset, out, epochs, *more):
    recipe = out.parent / "tiny.toml"
    recipe.write_text(RECIPE)
    words = [dataset, "--recipe", recipe, "--out", out, "--workers", 2, "--json", "--set", f"epochs={epochs}", *more]
    return [sys.executable, "-m", "workflows.train_expressions", *map(str, words)]


def on_one_machine(dataset, out, epochs, env):
    done = subprocess.run(command(dataset, out, epochs), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def history(out):
    with (out / "history.csv").open() as file:
        return [(int(row["epoch"]), float(row["loss"]), float(row["val_loss"])) for row in csv.DictReader(file)]


def assert_same(out, expected):
    """The same course and the same answers; a cluster's TensorFlow may sum in another order."""
    np.testing.assert_allclose(history(out), history(expected), atol=1e-5)
    mine, theirs = (parquet.read_part(str(one / "predictions_validation.parquet")) for one in (out, expected))
    for name in ("key", "predicted"):
        assert mine[name].to_pylist() == theirs[name].to_pylist()
    np.testing.assert_allclose(mine["logits"].to_pylist(), theirs["logits"].to_pylist(), atol=1e-4)


def test_a_cluster_on_other_hosts_trains_the_same_model_and_survives_the_death_of_one(net, dataset, tmp_path):
    found, env = net
    address = f"ray://{found['head'].address}:{CLIENT_PORT}"
    epochs = 40
    on_one_machine(dataset, tmp_path / "here", epochs, env)
    out = tmp_path / "out"
    process = subprocess.Popen(
        found["client"].words(*command(dataset, out, epochs, "--address", address)),
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 200
    while train_toy.known_to_ray(out) < 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    working = [name for name in ("one", "two") if trains(found[name])]
    assert working
    found[working[0]].cut()
    found[working[0]].kill()
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert "differ" not in stderr
    assert json.loads(stdout)["epochs"] == epochs
    assert_same(out, tmp_path / "here")


def trains(host):
    pids = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout.split()
    names = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    return any(b"RayTrainWorker" in name.read_bytes() for name in names if name.exists())


def test_doctor_finds_the_cluster_from_another_host(net):
    found, env = net
    address = f"ray://{found['head'].address}:{CLIENT_PORT}"
    words = found["client"].words(sys.executable, "-m", "workflows.doctor", address, "--json")
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    (check,) = [one for one in json.loads(done.stdout)["checks"] if one["what"] == address]
    assert check["state"] == "ok"
    assert check["told"] in ("2 nodes, 2 CPU", "3 nodes, 4 CPU")  # by whether a host has died in it
