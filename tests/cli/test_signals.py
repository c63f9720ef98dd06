"""Signals: the exit code, and a message that says how to go on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
import recft
from recft.cli import main

def tune(recipe, run, **options):
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: x")
    if "state" in sys.argv[2:]:
        (run / "checkpoints" / "10").mkdir(parents=True)
    print("ready", flush=True)
    time.sleep(60)

recft.__dict__["tune"] = tune
main(["tune", sys.argv[1], "--run", "my run", "--set", "seed=1"])
"""

RECIPE = """\
name: shop
task: retrieval
data:
  items: {path: p.csv, id: id, text: [title]}
  queries: {path: q.csv, query: query, item: item, grade: grade}
method: lora
"""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("saved", [True, False], ids=["with a checkpoint", "without"])
def test_a_signal_ends_tuning_with_its_code_and_a_hint(
    tmp_path: Path, number: signal.Signals, code: int, word: str, saved: bool
) -> None:
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    root = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", SCRIPT, str(recipe), *(["state"] if saved else [])]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": root, "PATH": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        process.send_signal(number)
        process.wait(timeout=30)
        message = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in message
    assert word in message
    assert f"recft tune {recipe} --run 'my run' --set seed=1 --resume" in message
    assert ("state saved; resume with" in message) == saved
