"""Object stores for tests: S3 (moto) and Google Cloud Storage (gcp-storage-emulator), each a process of its own.

Use: `pytest_plugins = ("tests.stores",)` in a test module. `s3_store` and `gcs_store` are the URL of an empty folder in
a bucket, `any_store` is one of four kinds in turn. The servers start when first asked for and end with the tests.
"""

import atexit
import functools
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "faces"
_folders = itertools.count()


@pytest.fixture
def s3_store(monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://faces/NNN on a moto server."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("moto[server] and s3fs are not installed (extra dev)")
    point_at_s3(monkeypatch, _s3_server())
    return f"s3://{BUCKET}/{next(_folders)}"


@pytest.fixture
def gcs_store(monkeypatch: pytest.MonkeyPatch) -> str:
    """gs://faces/NNN on the emulator."""
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gcp-storage-emulator is not installed (extra dev)")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _gcs_server())
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return f"gs://{BUCKET}/{next(_folders)}"


@pytest.fixture(params=["local", "memory", "s3", "gcs"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder on a disk, in memory, on S3 and on Google Cloud Storage."""
    if request.param == "local":
        yield str(tmp_path / "store")
    elif request.param == "memory":
        import fsspec

        yield f"memory://{BUCKET}/{next(_folders)}"
        fsspec.filesystem("memory").rm("/", recursive=True)
    else:
        yield request.getfixturevalue(f"{request.param}_store")


def point_at_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make s3:// mean this server, with credentials of no worth."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@functools.cache
def _s3_server() -> str:
    port = _free_port()
    start = f"import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    endpoint = f"http://127.0.0.1:{port}"
    _start([sys.executable, "-c", start], endpoint)
    _request("PUT", f"{endpoint}/{BUCKET}")
    return endpoint


@functools.cache
def _gcs_server() -> str:
    port = _free_port()
    start = f"""
import time
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", {port}, in_memory=True, default_bucket="{BUCKET}").start()
time.sleep(86400)
"""
    endpoint = f"http://127.0.0.1:{port}"
    _start([sys.executable, "-c", start], f"{endpoint}/storage/v1/b")
    return endpoint


def _start(command: list[str], url: str) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    atexit.register(_end, server)
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            _request("GET", url)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server of {url} did not start")


def _end(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _request(method: str, url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
        answer.read()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
