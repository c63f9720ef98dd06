"""What the measurements side by side share: turns, processes of their own, the machine's facts, the table.

Two sides are only compared in turns (A, B, B, A, ...) on one machine: what else runs there then slows both.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.models.machine import settle
from recft.run import write_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """One line of a table: a workload, both sides' medians in `unit`, how many times better ours is, and its target.

    `target` above 1 is a floor ("at least 6 x"), below 1 a ceiling ("at most 0.25 of it"), None asks for nothing.
    """

    workload: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    target: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio is on the right side of its target; None where one of them is missing."""
        if self.ratio is None or self.target is None:
            return None
        return self.ratio >= self.target if self.target >= 1 else self.ratio <= self.target

    @property
    def verdict(self) -> str:
        """The target and whether it is met, in words."""
        if self.met is None or self.target is None:
            return ""
        bound = f"at least {self.target:g} x" if self.target >= 1 else f"at most {self.target:g} x"
        return f"{bound}: {'met' if self.met else 'missed'}"


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each side's seconds, a list per round: the sides take turns, and every other round goes in reverse.

    A side returns the seconds it counts; what it does before and after its own clock is not in them.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(sides[name]())
            print(f"round {number + 1} of {rounds}, {name}: {found[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return found


def child(script: Path, side: str, options: Sequence[str]) -> dict[str, Any]:
    """What `script --child side` says in a process of its own: its last line's JSON, "peak_bytes" and "seconds".

    The process's peak is its VmHWM, its seconds those from start to end; a child that says either itself is believed.
    A child named `recft` has its threads and memory settled as recft's command line settles them.

    Raises:
        RuntimeError: the child failed.
    """
    command = [sys.executable, __file__, str(script), "--child", side, *options]
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    *_, said, peak = done.stdout.strip().splitlines()
    return {"seconds": seconds, **json.loads(peak), **json.loads(said)}


def main() -> None:
    """Runs the script named on the command line as its own process would, then prints the process's peak memory.

    Asked of the process itself: what wait4 says of a child counts the memory of the parent it was started from.
    """
    sys.argv = sys.argv[1:]
    if sys.argv[1:3] == ["--child", "recft"]:
        settle()  # before libraries are loaded that read it
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(json.dumps({"peak_bytes": memory("VmHWM")}), flush=True)


def memory(field: str) -> int:
    """A figure of /proc/self/status (VmHWM: the peak so far, VmRSS: now), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def machine() -> dict[str, Any]:
    """The machine's facts: CPU model and its matrix instructions, usable cores, memory, Python and torch."""
    import torch

    pairs = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    said = {name.strip(): value.strip() for name, value in pairs}
    flags = set(said.get("flags", "").split())
    return {
        "cpu": said.get("model name", platform.processor()),
        "matrix": sorted(flags & {"amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx2"}),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions(*names: str) -> dict[str, str]:
    """The installed version of each distribution, or "not installed"."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def matrix_rate(m: int, k: int, n: int, dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s of one (m, k) x (k, n) product in `dtype`, the best of a second's tries."""
    import torch

    left = torch.randn(m, k, device=device).to(dtype)
    right = torch.randn(n, k, device=device).to(dtype)  # as a linear layer keeps its weight
    best, until = float("inf"), time.perf_counter() + 1
    tries = 0
    while tries < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device != "cpu":
            torch.cuda.synchronize()
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return 2 * m * k * n / best


def compared(
    workload: str,
    unit: str,
    amounts: tuple[float, float],
    seconds: tuple[Sequence[float], Sequence[float]],
    target: float | None = None,
    note: str = "",
) -> Row:
    """The row of two sides' turns: what each does in a turn (`amounts`: ours, theirs) over its median seconds."""
    ours, theirs = (amount / statistics.median(times) for amount, times in zip(amounts, seconds, strict=True))
    return Row(workload, unit, ours, theirs, ours / theirs, target, note)


def show(rows: Sequence[Row]) -> None:
    """Prints the rows as a table, each with its verdict."""
    width = max((len(row.workload) for row in rows), default=8)
    unit = max((len(row.unit) for row in rows), default=4)
    print(f"{'workload':{width}}  {'unit':{unit}}  {'ours':>11}  {'theirs':>11}  {'ratio':>8}")
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3g} x"
        line = f"{row.workload:{width}}  {row.unit:{unit}}  {row.ours:>11.4g}  {theirs:>11}  {ratio:>8}"
        print("  ".join(part for part in (line, row.verdict, row.note) if part))


def save(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """Writes the rows, the machine and `facts` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": machine(), **facts, "rows": [{**asdict(row), "met": row.met} for row in rows]})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
