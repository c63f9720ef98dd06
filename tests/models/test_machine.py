"""The cores and the memory of a container, from fake control groups, and the threads that are set to them."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recft.models import machine


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(machine, "_processors", lambda: set(range(8)))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def lay(root: Path, files: dict[str, str]) -> Path:
    """A file system with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


SECOND = "sys/fs/cgroup"
FIRST = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "6400000 100000\n"}, 8),
        # A limit on a group above one's own holds too.
        (
            {
                "proc/self/cgroup": "0::/shop/job\n",
                f"{SECOND}/shop/cpu.max": "300000 100000\n",
                f"{SECOND}/shop/job/cpu.max": "max 100000\n",
            },
            3,
        ),
        # Version 1, its controllers mounted together; -1 is no limit.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/0a\n3:memory:/docker/0a\n",
                f"{FIRST}/cpu.cfs_quota_us": "400000\n",
                f"{FIRST}/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_the_quota_of_a_container_counts(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    root = lay(tmp_path, files)
    assert machine.cores(root) == expected
    assert machine.threads(root) == expected


def test_two_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    pairs = {
        f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": f"{number % 4},{number % 4 + 4}\n"
        for number in range(8)
    }
    assert machine.cores(lay(tmp_path, pairs)) == 4
    assert machine.threads(tmp_path) == 8


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, 2),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "64"}, 2),  # the pools stay within the quota; OMP's own number is the user's
        ({"MKL_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,4"}, 1),
        ({"OMP_NUM_THREADS": "many"}, 2),
    ],
)
def test_pools_never_have_more_threads_than_the_user_or_the_quota_says(
    given: dict[str, str], threads: int, tmp_path: Path
) -> None:
    root = lay(tmp_path, {"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "200000 100000\n"})
    found = dict(given)
    machine.settle(found, root)
    assert {found["POLARS_MAX_THREADS"], found["RAYON_NUM_THREADS"]} == {str(threads)}
    assert found["OMP_NUM_THREADS"] == given.get("OMP_NUM_THREADS", str(threads))
    assert int(found["GOMP_SPINCOUNT"]) < 1_000_000 and "OMP_WAIT_POLICY" not in found


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    mine = {"OMP_WAIT_POLICY": "ACTIVE", "POLARS_MAX_THREADS": "7", "RAYON_NUM_THREADS": "5", "OMP_NUM_THREADS": "3"}
    mine |= {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_ARENA_MAX": "4"}
    found = dict(mine)
    machine.settle(found, tmp_path)
    assert found == mine


def test_threads_of_a_torch_that_is_loaded_are_lowered_and_never_raised(tmp_path: Path) -> None:
    root = lay(tmp_path, {"proc/self/cgroup": "0::/\n", f"{SECOND}/cpu.max": "300000 100000\n"})
    for has, expected in ((6, 3), (2, 2)):
        torch.set_num_threads(has)
        machine.settle({}, root)
        assert torch.get_num_threads() == expected


def test_a_verb_is_loaded_with_threads_that_fit() -> None:
    """In a process of its own: `recft.tune` is asked for, and torch comes up with one thread for one processor."""
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import recft; recft.prepare; import torch\n"
        "assert os.environ['OMP_NUM_THREADS'] == os.environ['POLARS_MAX_THREADS'] == '1', os.environ\n"
        "recft.Recipe\n"
        "assert torch.get_num_threads() == torch.get_num_interop_threads() == 1"
    )
    plain = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    subprocess.run([sys.executable, "-c", script], check=True, env=plain)


def test_memory_is_what_the_group_leaves(tmp_path: Path) -> None:
    meminfo = "MemTotal: 64000 kB\nMemAvailable: 32000 kB\n"
    assert machine.available_bytes(lay(tmp_path / "host", {"proc/meminfo": meminfo})) == 32_000 * 1024
    second = {
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": "9000000\n",
        "sys/fs/cgroup/job/memory.current": "8000000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 5000000\ninactive_file 2500000\n",
    }
    # Files in the page cache are given up when memory is asked for.
    assert machine.available_bytes(lay(tmp_path / "second", second)) == 3_500_000
    first = {
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "9:memory:/docker/0a\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "7000000\n",
    }
    assert machine.available_bytes(lay(tmp_path / "first", first)) == 0
    first["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
    assert machine.available_bytes(lay(tmp_path / "unlimited", first)) == 32_000 * 1024


FAULTS = """
import resource, sys
from recft.models import machine
if sys.argv[1] == "settled":
    machine.settle()
def once():
    parts = [bytearray(24 << 20) for _ in range(3)]  # 72 MiB, written
for _ in range(3):
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another system's allocator")
def test_memory_that_was_freed_is_used_again_and_not_mapped_anew() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}

    def faults(how: str, **more: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, env=clean | more, capture_output=True, check=True, text=True).stdout)

    pages = 5 * (72 << 20) // resource.getpagesize()
    assert faults("settled") < pages // 50 < pages // 2 < faults("as it is")
    assert faults("settled", MALLOC_MMAP_THRESHOLD_="100000") > pages // 2, "what the user has set stays"
