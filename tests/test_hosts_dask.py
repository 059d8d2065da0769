"""crop-faces on a Dask cluster of hosts with addresses of their own, from one bucket into another, cables pulled."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import collection, hosts, stores
from tests.collection import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(hosts.REASON), reason=hosts.REASON),
    pytest.mark.skipif(stores.S3_SERVER != "minio", reason="moto serves the loopback only: build MinIO"),
]
FACES = 48
PORT, STORE_PORT = 8786, 9000
SETTINGS = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",  # after which a host that is silent counts as gone; 30 s by default
    "DASK_DISTRIBUTED__WORKER__PRELOAD": "tests.crashing_detector",
    "SLOW_DETECTOR_S": "0.2",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return collection.make(tmp_path_factory.mktemp("source") / "photos", faces=FACES)


@pytest.fixture(scope="module")
def here(photos, tmp_path_factory):
    """The same on one machine, from and to its disk."""
    out = tmp_path_factory.mktemp("here") / "out"
    return out, collection.summary(collection.crop_faces(photos, "--out", out, "--json", "--workers", 1))


@pytest.fixture(scope="module")
def net(tmp_path_factory, photos):
    """A client, a scheduler, two workers and a store, each on a host of its own; the photos lie in s3://faces/photos."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts.network("client", "head", "one", "two", "store") as found:
        endpoint = f"http://{found['store'].address}:{STORE_PORT}"
        keys = {"AWS_ACCESS_KEY_ID": stores.KEY, "AWS_SECRET_ACCESS_KEY": stores.SECRET}
        env = os.environ | SETTINGS | keys | {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        store = stores.minio(found["store"].address, STORE_PORT, folder / "store")
        found["store"].start(*store, log=folder / "store.log", env=os.environ | stores.MINIO_SETTINGS)
        put = f"""
import time, s3fs
store = s3fs.S3FileSystem()
for _ in range(100):
    try:
        store.mkdir("faces")
        break
    except OSError:
        time.sleep(0.2)
store.put({str(photos)!r}, "faces/", recursive=True)
"""
        python(found, env, put)
        head = found["head"]
        head.start(*dask("scheduler"), "--host", head.address, "--port", PORT, log=folder / "head.log", env=env)
        for name in ("one", "two"):
            join(found, name, folder, env)
        yield found, env, folder


def dask(role):
    return sys.executable, "-P", "-m", f"distributed.cli.dask_{role}", "--no-dashboard"


def address(net):
    return f"tcp://{net['head'].address}:{PORT}"


def join(net, name, folder, env):
    net[name].start(*dask("worker"), address(net), "--nthreads", 1, log=folder / f"{name}.log", env=env)


def started(net, env, out):
    words = ("s3://faces/photos", "--out", out, "--json", "--scheduler", address(net), "--shard-size", 4)
    return subprocess.Popen(
        net["client"].words(*collection.command(*words)),
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def python(net, env, code):
    """What a line of Python prints on the client's host, which alone reaches the store."""
    command = net["client"].words(sys.executable, "-c", code)
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=90).stdout


def rows(out: Path, source: str):
    return [(row[0].removeprefix(source), *row[1:]) for row in collection.outcome(out)]


def assert_same(told, out, net, here, photos, tmp_path):
    found, env, _ = net
    expected_out, expected = here
    assert told["fingerprint"] == expected["fingerprint"]
    assert (told["images"], told["faces"]) == (FACES + 5, FACES)
    ledger = f"{out.removeprefix('s3://')}/ledger"
    python(found, env, f"import s3fs; s3fs.S3FileSystem().get({ledger!r}, {str(tmp_path)!r} + '/', recursive=True)")
    assert rows(tmp_path, "s3://faces/photos") == rows(expected_out, str(photos))


def test_another_host_does_the_work_and_the_result_is_the_same(net, here, photos, tmp_path):
    found, env, _ = net
    process = started(found, env, "s3://faces/out")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "differ" not in stderr
    told = json.loads(stdout)
    assert told["workers"] == 2
    assert_same(told, "s3://faces/out", net, here, photos, tmp_path)


def test_a_host_cut_off_in_mid_run_loses_nothing(net, here, photos, tmp_path):
    found, env, folder = net
    process = started(found, env, "s3://faces/cut")
    count = "import s3fs; print(len(s3fs.S3FileSystem().glob('faces/cut/done/*.json')))"
    until = time.monotonic() + 90
    while (done := int(python(found, env, count))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
    assert done < (FACES + 5) // 4
    found["two"].cut()
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert_same(json.loads(stdout), "s3://faces/cut", net, here, photos, tmp_path)
    found["two"].kill()
    found["two"].join()
    join(found, "two", folder, env)


def test_workers_with_another_version_of_this_project_are_refused_in_one_line(net, tmp_path):
    found, env, _ = net
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: {'facemill': '0.0.9', 'numpy': '2.0.0'}.get(name) or real(name)\n"
    )
    found["two"].kill()
    join(found, "two", tmp_path, env | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    until = time.monotonic() + 60
    while "Registered to" not in (tmp_path / "two.log").read_text():
        assert time.monotonic() < until, (tmp_path / "two.log").read_text()
        time.sleep(0.1)
    process = started(found, env, "s3://faces/other")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    line = stderr.splitlines()[-1]
    assert line.startswith(f"error: the workers of {address(found)} differ: facemill 0.0.9 there, ")
    assert "numpy 2.0.0 there, " in line
    assert line.endswith("uv pip install -c requirements.lock facemill (the same command continues)")
    assert "Traceback" not in stderr
