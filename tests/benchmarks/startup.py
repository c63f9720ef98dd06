"""How long `recft --help` and `recft methods` take, beside importing torch and beside Python alone.

    python tests/benchmarks/startup.py --work /tmp/startup

Each is a process of its own, started from the same interpreter, in turn; all were started once before, so that their
files are in the cache and compiled. Checked: each command ends well and says what it should. The result goes to
WORK/startup.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from _beside import Row, alternate, machine, save, show, versions

SIDES = {
    "recft --help": (["-m", "recft", "--help"], "prepare"),
    "recft methods": (["-m", "recft", "methods"], "adalora"),
    "import torch": (["-c", "import torch; print(torch.__name__)"], "torch"),
    "python": (["-c", "pass"], ""),
}
TARGETS = {"recft --help": 0.25, "recft methods": None}


def seconds(arguments: list[str], says: str) -> float:
    """Wall time of a process from its start to its end."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    found = time.perf_counter() - start
    if says not in done.stdout:
        raise RuntimeError(f"{arguments} said {done.stdout[:200]!r}")
    return found


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    sides = {name: partial(seconds, *side) for name, side in SIDES.items()}
    for side in sides.values():
        side()
    found = alternate(sides, given.rounds)
    medians = {name: statistics.median(times) for name, times in found.items()}
    beside = medians["import torch"]
    rows = [Row(name, "s", medians[name], beside, medians[name] / beside, target) for name, target in TARGETS.items()]
    rows.append(Row("python -c pass", "s", medians["python"], beside, medians["python"] / beside))
    print(machine())
    show(rows)
    save(given.work / "startup.json", rows, versions=versions("torch"), seconds=found)


if __name__ == "__main__":
    main()
