"""Hosts with addresses of their own on one machine: network namespaces around a switch, so that what is sent is sent.

    with network("head", "one") as hosts:
        hosts["one"].start("dask", "worker", f"tcp://{hosts['head'].address}:8786")
        hosts["one"].cut()

All hosts share the disk, as machines with a shared folder do. The addresses are of a range kept for documentation, and
nothing leads from these networks to any other. Needs Linux, root and `ip`: `REASON` says what is missing.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_NET = "198.51.100"
_numbers = itertools.count()


def _missing() -> str:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "hosts of their own need Linux, root and ip (iproute2)"
    name = f"facemill-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


REASON = _missing()


class Host:
    """One namespace. address: its own on the network."""

    def __init__(self, name: str, switch: str, number: int) -> None:
        self.name, self.address = name, f"{_NET}.{number}"
        self._switch, self._port = switch, f"port{number}"
        self._processes: list[subprocess.Popen[str]] = []

    def words(self, *command: object) -> list[str]:
        """A command line that runs on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def start(
        self, *command: object, log: Path, env: dict[str, str] | None = None, cwd: str | Path = "/"
    ) -> subprocess.Popen[str]:
        """A process that ends with the network at the latest; what it says goes to the log."""
        with log.open("a") as file:
            process = subprocess.Popen(
                self.words(*command), stdout=file, stderr=file, text=True, env=env, cwd=cwd, start_new_session=True
            )
        self._processes.append(process)
        return process

    def kill(self) -> None:
        """Every process of this host dies at once. After `cut` nobody hears of it, as when the power fails."""
        _end(self.name)

    def cut(self) -> None:
        """Its cable is pulled: processes go on, and reach nobody."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def join(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def reap(self) -> None:
        for process in self._processes:
            process.wait(10)


def _end(namespace: str) -> None:
    """Kill what runs in a namespace, whoever started it there."""
    while pids := subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def network(*names: str) -> Iterator[dict[str, Host]]:
    """A host for each name, all on one switch; everything that runs on them is ended at the end."""
    prefix = f"facemill-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    hosts: dict[str, Host] = {}
    _ip("netns", "add", switch)
    try:
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for number, name in enumerate(names, 1):
            host = hosts[name] = Host(f"{prefix}-{name}", switch, number)
            _ip("netns", "add", host.name)
            _ip(
                "-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", host.name
            )
            _ip("-n", switch, "link", "set", f"port{number}", "master", "switch", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts.values():
            _end(host.name)
            host.reap()
            _ip("netns", "del", host.name)
        _ip("netns", "del", switch)
