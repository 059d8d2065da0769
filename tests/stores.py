"""Object stores for tests: S3 and Google Cloud Storage, each a process of its own on the loopback.

They are MinIO and fake-gcs-server where `tests/real_servers.py` has built them, and the emulators moto and
gcp-storage-emulator elsewhere; the ids of the tests name the one that served.

`s3_store` and `gcs_store` are the URL of an empty folder in
a bucket, `any_store` is one of four kinds in turn. The servers start when first asked for and end with the tests.
"""

import atexit
import functools
import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests import real_servers

BUCKET = "faces"
KEY, SECRET = "testing", "testing-secret"
"""The credentials of the S3 server's owner."""
MINIO_SETTINGS = {
    "MINIO_ROOT_USER": KEY,
    "MINIO_ROOT_PASSWORD": SECRET,
    "MINIO_BROWSER": "off",
    "MINIO_UPDATE": "off",
}
S3_SERVER = "minio" if real_servers.is_built("minio") else "moto"
GCS_SERVER = "fake-gcs-server" if real_servers.is_built("fake-gcs-server") else "gcp-storage-emulator"
STORES = (pytest.param("s3", id=S3_SERVER), pytest.param("gcs", id=GCS_SERVER))
"""For `parametrize`: the kind of store, under the name of the server that stands for it."""
_folders = itertools.count()


def pytest_report_header() -> str:
    return f"stores: {S3_SERVER}, {GCS_SERVER}"


@pytest.fixture
def s3_store(monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://faces/NNN on the S3 server."""
    if importlib.util.find_spec("s3fs") is None or (S3_SERVER == "moto" and importlib.util.find_spec("moto") is None):
        pytest.skip("moto[server] and s3fs are not installed (extra dev)")
    point_at_s3(monkeypatch, s3_server())
    return f"s3://{BUCKET}/{next(_folders)}"


@pytest.fixture
def gcs_store(monkeypatch: pytest.MonkeyPatch) -> str:
    """gs://faces/NNN on the GCS server."""
    if GCS_SERVER != "fake-gcs-server" and importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gcp-storage-emulator is not installed (extra dev)")
    point_at_gcs(monkeypatch, gcs_server())
    return f"gs://{BUCKET}/{next(_folders)}"


@pytest.fixture(params=["local", "memory", *STORES])
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


def point_at_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str, key: str = KEY, secret: str = SECRET) -> None:
    """Make s3:// mean this server, also in the processes that are started from here."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the server and the key that it began with


def point_at_gcs(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make gs:// mean this server, also in the processes that are started from here."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read when gcsfs is imported
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()


@functools.cache
def s3_server() -> str:
    """The address of the S3 server, which has one bucket."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    if S3_SERVER == "minio":
        folder = tempfile.mkdtemp(prefix="facemill-minio-")
        _start(minio("127.0.0.1", port, folder), f"{endpoint}/minio/health/live", MINIO_SETTINGS)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    else:
        start = f"import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
        _start([sys.executable, "-c", start], endpoint)
    s3_client(endpoint).create_bucket(Bucket=BUCKET)
    return endpoint


def minio(address: str, port: int, folder: str | Path) -> list[str]:
    """The command line of a MinIO that keeps its objects in a folder."""
    words = [real_servers.binary("minio"), "server", "--quiet", "--address", f"{address}:{port}", folder]
    return [str(word) for word in words]


def s3_client(endpoint: str) -> Any:
    """The owner's client."""
    import botocore.session

    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    return botocore.session.Session().create_client("s3", "us-east-1", endpoint_url=endpoint, **keys)


@functools.cache
def gcs_server() -> str:
    """The address of the GCS server, which has one bucket."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    if GCS_SERVER == "fake-gcs-server":
        where = ["-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", f"127.0.0.1:{port}"]
        command = [real_servers.binary("fake-gcs-server"), "-backend", "memory", "-log-level", "error", *where]
        _start(command, f"{endpoint}/storage/v1/b")
        bucket = json.dumps({"name": BUCKET}).encode()
        _request("POST", f"{endpoint}/storage/v1/b", bucket)
    else:
        start = f"""
import time
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", {port}, in_memory=True, default_bucket="{BUCKET}").start()
time.sleep(86400)
"""
        _start([sys.executable, "-c", start], f"{endpoint}/storage/v1/b")
    return endpoint


def _start(command: Sequence[object], url: str, settings: Mapping[str, str] = MappingProxyType({})) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **settings}
    if shutil.which("setpriv"):  # the server ends even when the tests are killed
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([str(word) for word in command], env=environment, **quiet)
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


def _request(method: str, url: str, body: bytes | None = None) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=5) as answer:
        answer.read()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
