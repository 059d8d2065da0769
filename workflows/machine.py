"""What a process may use of its machine: cores, memory, disk, graphics cards, as plain numbers.

A container shows all cores and all memory of its host and gives some of them: its control group says how much. Both
versions of control groups are read, at the group of this process and at all groups above it.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Share:
    """cores: that this process may run on. quota: how many of them at a time, None for all. memory_bytes: all that it
    may have. free_bytes: what of it is free now."""

    cores: int
    quota: float | None
    memory_bytes: int
    free_bytes: int


def share(root: Path = Path("/")) -> Share:
    """The share of this process. root: where /proc and /sys lie."""
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    total, free = (int(meminfo[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    quotas = []
    for group in _groups(root):
        limit, used = _limit(group)
        if limit is not None and limit < total:
            total, free = limit, min(free, max(0, limit - used))
        quotas += _quota(group)
    return Share(len(os.sched_getaffinity(0)), min(quotas, default=None), total, free)


def free_disk_bytes(folder: str) -> int:
    return shutil.disk_usage(folder).free


def gpus() -> list[str]:
    """A line for each NVIDIA card (name, driver, memory); empty where there is none, or no driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _groups(root: Path) -> list[Path]:
    """The folders of the control groups of this process and of those above, of version 2 and of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for base in [""] if not controllers else [one for one in ("cpu", "memory") if one in controllers.split(",")]:
            own = Path(group.lstrip("/"))
            found += [root / "sys/fs/cgroup" / base / part for part in (own, *own.parents)]
    return found


def _limit(group: Path) -> tuple[int | None, int]:
    """(bytes that the group may have or None, bytes that it has), page cache that could be dropped left out."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        text = _read(group / limit)
        if text.isdigit():
            cached = dict(line.split() for line in _read(group / "memory.stat").splitlines()).get("inactive_file", "0")
            return int(text), int(_read(group / used) or 0) - int(cached)
    return None, 0


def _quota(group: Path) -> list[float]:
    """How many cores the group may use at a time; empty for no bound."""
    quota, _, period = (_read(group / "cpu.max") or "max").partition(" ")
    if not quota.isdigit():
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() else []


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
