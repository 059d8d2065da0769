"""`just score` on Beam's Prism: client and runner are hosts of their own, the work is done by a pool beside the runner.

Prism tells everybody that it is at localhost, so a client elsewhere reaches it through a tunnel, as `ssh -L` is one.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import hosts, real_servers, score_toy, toy_detector, toy_model
from tests.collection import ROOT, make
from tests.processes import done, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(hosts.REASON), reason=hosts.REASON),
    pytest.mark.skipif(not real_servers.is_built("prism"), reason="build Prism by tests/real_servers.py"),
]
PORT, POOL_PORT = 8073, 50000
FACES = 24
TUNNEL = f"""
import asyncio, sys
async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def serve(reader, writer):
    far_reader, far_writer = await asyncio.open_connection(sys.argv[1], {PORT})
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", {PORT}) as server:
        await server.serve_forever()
asyncio.run(main())
"""
OPTIONS = (
    "--runner=PortableRunner",
    f"--job_endpoint=localhost:{PORT}",
    "--environment_type=EXTERNAL",
    f"--environment_config=localhost:{POOL_PORT}",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_model.folder(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make(tmp_path_factory.mktemp("source") / "photos", faces=FACES)


@pytest.fixture(scope="module")
def here(photos, model, tmp_path_factory):
    """What a plain loop counted, and where its tables are."""
    out = tmp_path_factory.mktemp("here") / "out"
    return out, score_toy.loop([photos], model, out, detect=toy_detector.detect)


@pytest.fixture
def net(tmp_path):
    env = toy_detector.injected(tmp_path / "site", SLOW_DETECTOR_S=0.4)
    with hosts.network("client", "runner") as found:
        start(found, tmp_path, env)
        yield found


def start(net, folder, env):
    runner, client = net["runner"], net["client"]
    command = (real_servers.binary("prism"), "-job_port", PORT, "-serve_http=false", "-log_kind=text")
    runner.start(*command, log=folder / "prism.log")
    env = env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}  # the pool starts what is called `python`
    pool = (sys.executable, "-P", "-m", "apache_beam.runners.worker.worker_pool_main")
    runner.start(*pool, f"--service_port={POOL_PORT}", log=folder / "pool.log", env=env)
    client.start(sys.executable, "-c", TUNNEL, runner.address, log=folder / "tunnel.log")
    until = time.monotonic() + 60
    while sum(f":{port} " in line for port in (PORT, POOL_PORT) for line in sockets(runner)) < 2:
        assert time.monotonic() < until, (folder / "pool.log").read_text()
        time.sleep(0.2)


def sockets(host):
    return subprocess.run(host.words("ss", "-ltnH"), capture_output=True, text=True, check=True).stdout.splitlines()


def started(net, photos, model, out):
    words = score_toy.command(photos, "--model", model, "--out", out, "--json", *OPTIONS)
    return subprocess.Popen(
        net["client"].words(*words), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def assert_same(told, out, here):
    expected_out, expected = here
    assert told["fingerprint"] == f"{expected.fingerprint:064x}"
    assert told["faces"] == expected.faces == FACES + 3
    assert score_toy.predictions(out) == score_toy.predictions(expected_out)
    assert not list(out.rglob("*.part"))


def test_another_host_scores_and_the_result_is_that_of_a_plain_loop(net, photos, model, here, tmp_path):
    out = tmp_path / "out"
    process = started(net, photos, model, out)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "pip" not in stderr
    assert_same(json.loads(stdout), out, here)


def test_a_runner_that_dies_in_mid_run_is_one_line_and_the_repeated_command_completes_it(
    net, photos, model, here, tmp_path
):
    out = tmp_path / "out"
    process = started(net, photos, model, out)
    wait_for(lambda: done(out) >= 3, process)
    net["runner"].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith("error: ")
    assert stderr.splitlines()[-1].endswith("(the same command continues)")
    assert "Traceback" not in stderr
    before = done(out)
    start(net, tmp_path, toy_detector.injected(tmp_path / "site", SLOW_DETECTOR_S=0))
    process = started(net, photos, model, out)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert f"continuing: {before} images are done" in stderr
    assert_same(json.loads(stdout), out, here)
