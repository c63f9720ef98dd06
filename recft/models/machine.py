"""The machine this process runs on: the cores and the memory that it may use, and threads set to them.

A container is often given a part of a machine, as a quota of processor time that most libraries do not read: they
start a thread for each of the host's cores, which then wait for each other's turn. What counts here is the least of
the cores this process is bound to, the quota of its control group and of those above it, and what the user has set.

Nothing here imports torch: threads are settled before it is loaded, and again where it was loaded before.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

__all__ = ["available_bytes", "cores", "settle", "threads"]

ROOT = Path("/")

FROM_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What people set to say how many threads they want."""

OWN_POOLS = ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
"""Read once by libraries with pools of their own: polars, and tokenizers."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of glibc's `mallopt`."""


def settle(environment: MutableMapping[str, str] = os.environ, root: Path = ROOT) -> None:
    """Sets the threads of libraries that are not loaded yet, and of torch where it is; never above what is set.

    Args:
        environment: where variables are set that are not there.
        root: of the file system that is asked.
    """
    wanted = _wanted(environment)
    for name in OWN_POOLS:
        environment.setdefault(name, str(max(1, min(wanted, threads(root)))))
    matrix = max(1, min(wanted, cores(root)))
    environment.setdefault("OMP_NUM_THREADS", str(matrix))
    # torch and bitsandbytes each bring an OpenMP runtime: threads that spin while they wait take the cores from the
    # other one's, which on a busy machine makes k-bit tuning several times slower. Threads that sleep at once wake up
    # late: a step takes half as long again. So they spin for some microseconds: ten times as long is a seventh faster
    # on an idle machine, and three times slower on a busy one. Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")
    # Freed memory that went back to the system would be wiped and mapped anew, page by page, in every step.
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes what is large in pages of 2 MiB
    said = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment)
    if environment is os.environ and not said:
        _keep_freed_memory(matrix)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_interop_threads"):
        if torch.get_num_threads() > matrix:
            torch.set_num_threads(matrix)
        if torch.get_num_interop_threads() > matrix:
            with contextlib.suppress(RuntimeError):  # they have been set, or have begun to work
                torch.set_num_interop_threads(matrix)


def _keep_freed_memory(threads: int) -> None:
    """Lets glibc's allocator use up to 256 MiB of freed memory again, in as many arenas as there are threads."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system's allocator
        mallopt = ctypes.CDLL(None).mallopt
        # Older ones take no more than half as much; one that takes neither is better left as it is.
        if mallopt(M_MMAP_THRESHOLD, 64 << 20) or mallopt(M_MMAP_THRESHOLD, 32 << 20):
            mallopt(M_TRIM_THRESHOLD, 256 << 20)
            mallopt(M_ARENA_MAX, threads)


def _wanted(environment: MutableMapping[str, str]) -> int:
    """The least that the user has set, or a number larger than any machine has."""
    said = [environment.get(name, "").split(",")[0].strip() for name in FROM_THE_USER]  # "4,2": nested regions
    return min((int(word) for word in said if word.isdigit() and int(word) > 0), default=sys.maxsize)


def threads(root: Path = ROOT) -> int:
    """Threads that this process can run at once: its processors, or its control group's share of them, rounded up."""
    return max(1, min(len(_processors()), _quota(root)))


def cores(root: Path = ROOT) -> int:
    """Cores that this process can use at once: two threads of one core share its matrix units, and count as one."""
    siblings = {_siblings(number, root) for number in _processors()}
    return max(1, min(len(siblings), _quota(root)))


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _siblings(number: int, root: Path) -> str:
    file = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
    return _read(file) or str(number)


def _quota(root: Path) -> int:
    """Processors' time that the control group and those above it grant, in processors, rounded up."""
    least = sys.maxsize
    for folder in _groups("cpu", root):
        if words := _read(folder / "cpu.max").split():  # version 2
            granted, period = words[0], words[1]
        else:  # version 1
            granted, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if granted.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1: no limit
            least = min(least, math.ceil(int(granted) / int(period)))
    return least


def available_bytes(root: Path = ROOT) -> int:
    """Memory that this process can still take: what the machine has left, or its control group's limit leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" in lines:
        free = int(lines["MemAvailable"].split()[0]) * 1024
    for folder in _groups("memory", root):
        for limit, used, files in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, taken = _read(folder / limit), _read(folder / used)
            if most.isdigit() and taken.isdigit():
                stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines())
                # Pages of files that nobody has touched for a while count as used, and are given up at once.
                free = min(free, int(most) - int(taken) + int(stat.get(files, 0)))
    return max(free, 0)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, in both versions' hierarchies."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup"
        for mount in (top / controllers, top / controller) if controllers else (top,):
            if mount.is_dir():
                # In a container the path may be the host's, of which nothing but the top is to be seen.
                inner = mount / path.lstrip("/")
                yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount))
                break


def _read(file: Path) -> str:
    """A file's text without its ends; empty where there is none that can be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
