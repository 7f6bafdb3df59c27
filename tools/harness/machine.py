"""Facts about the machine and the code that a figure belongs to.

Why here: a number without them can't be compared with another one.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def facts(data_dir: str) -> dict[str, str]:
    """Processor, cores, memory, kernel, Python, file system of `data_dir`, huge pages, and the commit measured."""
    return {
        "processor": _after("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _after("/proc/meminfo", "MemTotal"),
        "kernel": f"Linux {platform.release()}",
        "libc": "-".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "file_system": _file_system(data_dir),
        "huge_pages_shmem": _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "load_average": _read("/proc/loadavg"),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of this checkout, with a + when files differ from it; "unknown" outside of one."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _after(path: str, label: str) -> str:
    for line in _read(path).splitlines():
        if line.startswith(label):
            return line.partition(":")[2].strip()
    return "unknown"


def _file_system(path: str) -> str:
    wanted = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in _read("/proc/mounts").splitlines():
        device, mount, name, *_ = line.split()
        if (wanted + "/").startswith(mount.rstrip("/") + "/") and len(mount) > len(best):
            best, kind = mount, f"{name} on {device}"
    return kind
