"""What `just doctor` finds, with machines and clusters made for it."""

import json
import socket
from types import SimpleNamespace

import pytest
from distributed import LocalCluster

from tests.stores import SECRET, STORES
from workflows import doctor, machine
from workflows.doctor import Check, packages


def state_of(place):
    (check,) = [check for check in doctor.checks([place]) if check.what == place]
    return check.state, check.told


def test_what_is_found_is_printed_and_a_fault_gives_exit_code_1(monkeypatch, capsys):
    found = [Check("Python", "ok", "3.11.7"), Check("GPU", "note", "none")]
    monkeypatch.setattr(doctor, "checks", lambda where: iter(found))
    assert doctor.doctor(SimpleNamespace(where=[], json=False)) == 0
    assert capsys.readouterr().out.splitlines() == [f"ok    {'Python':<26}3.11.7", f"note  {'GPU':<26}none"]
    found.append(Check("memory", "fault", "--workers 1"))
    assert doctor.doctor(SimpleNamespace(where=[], json=True)) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["faults"], told["checks"][2]) == (1, {"what": "memory", "state": "fault", "told": "--workers 1"})


@pytest.fixture
def installed(monkeypatch):
    """Three packages, of which one is for an extra; `installed[name] = version` puts one in."""
    versions = {"dask": "2026.8.0", "numpy": "2.4.0", "s3fs": "2026.9.0"}
    needed = ["dask>=2026.8", "numpy<2.5,>=2.2", 's3fs>=2026.9; extra == "s3"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "_version", versions.get)
    return versions


@pytest.mark.parametrize(
    ("package", "version", "what", "state", "told"),
    [
        ("dask", "2026.8.0", "crop-faces, import-labels", "ok", "dask 2026.8.0, numpy 2.4.0"),
        (
            *("numpy", "2.5.0", "crop-faces, import-labels", "fault"),
            "numpy 2.5.0, not <2.5,>=2.2: uv pip install -c requirements.lock 'facemill'",
        ),
        (
            *("dask", "2026.9.0", "crop-faces, import-labels", "note"),
            "not as tested, dask 2026.9.0, not 2026.8.0: uv pip install -c requirements.lock 'facemill'",
        ),
        (
            *("dask", None, "crop-faces, import-labels", "fault"),
            "dask missing: uv pip install -c requirements.lock 'facemill'",
        ),
        ("s3fs", None, "s3://", "note", "s3fs missing: uv pip install -c requirements.lock 'facemill[s3]'"),
    ],
)
def test_packages_are_held_to_what_the_project_allows_and_to_the_lock(
    tmp_path, installed, package, version, what, state, told
):
    (tmp_path / "lock").write_text("dask==2026.8.0\n    # via x\nnumpy==2.4.0 ; python_version < '4'\n")
    installed[package] = version
    assert Check(what, state, told) in list(packages(tmp_path / "lock"))


GIB = 2**30


def made_machine(root, files):
    """A /proc and /sys of 16 GiB, of which 8 are free, and these files."""
    known = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"}
    for name, text in (known | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return machine.share(root)


def test_a_container_has_the_share_of_its_control_group_or_of_one_above(tmp_path):
    bare = made_machine(tmp_path / "bare", {})
    assert (bare.quota, bare.memory_bytes, bare.free_bytes) == (None, 16 * GIB, 8 * GIB)
    second = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "sys/fs/cgroup/pod/box/memory.max": "max\n",
        "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
    }
    told = made_machine(tmp_path / "two", second)
    assert (told.quota, told.memory_bytes, told.free_bytes) == (1.5, 4 * GIB, 2 * GIB)
    first = {
        "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB // 2}\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
    }
    told = made_machine(tmp_path / "one", first)
    assert (told.quota, told.memory_bytes, told.free_bytes) == (0.5, GIB, GIB // 2)


@pytest.mark.parametrize("kind", STORES)
def test_a_bucket_is_read_and_written_and_left_as_it_was(request, kind):
    from dataset_tools import storage

    folder = request.getfixturevalue(f"{kind}_store")
    state, told = state_of(folder)
    assert (state, told.partition(" in ")[0]) == ("ok", "read and written")
    assert list(storage.list_files(folder)) == []
    missing = f"{folder.split('://')[0]}://no-such-bucket/x"
    state, told = state_of(missing)
    assert (state, "its bucket does not exist" in told, SECRET in told) == ("fault", True, False)


def test_a_folder_that_is_not_there_is_a_fault(tmp_path):
    assert state_of(f"{tmp_path}/x") == ("fault", "does not exist: make the folder, or check its name")


def test_a_dask_cluster_is_counted_and_one_without_workers_is_a_fault():
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        assert state_of(cluster.scheduler_address) == ("ok", "1 workers, 2 threads")
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        assert state_of(address) == ("fault", f"has no worker: dask worker {address} --nthreads 1")


def test_other_versions_on_the_workers_are_a_fault_that_names_them(monkeypatch):
    from workflows import dask_engine

    other = dask_engine.Cluster(2, 4, ["numpy 2.3.0 there, 2.4.0 here"])
    monkeypatch.setattr(dask_engine, "describe", lambda address: other)
    state, told = state_of("tcp://127.0.0.1:1")
    assert state == "fault"
    assert told.startswith("2 workers, 4 threads; versions differ: numpy 2.3.0 there, 2.4.0 here: install the same")


def test_a_scheduler_that_does_not_answer_is_a_fault(monkeypatch):
    from workflows import dask_engine

    monkeypatch.setattr(dask_engine, "_CONNECT_S", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    state, told = state_of(address)
    assert state == "fault"
    assert told.startswith(f"no Dask scheduler answers at {address}")
    assert "start one: dask scheduler" in told
