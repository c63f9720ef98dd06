"""Pictures: written whole, from full, thin and empty logs, and equal for equal input."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from recft.reports.plots import bars, curves

STEPS = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-4} for step in range(10, 110, 10)]
JUDGED = [{"step": step, "metric": "ndcg@10", "value": 0.5 + step / 1000, "best": step < 90} for step in (30, 60, 90)]


def size(picture: Path) -> tuple[int, int]:
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize(
    "lines",
    [STEPS + JUDGED, STEPS, JUDGED, [], [{"step": 1, "metric": "auc", "value": None, "best": False}]],
    ids=["full", "no evaluation", "no loss", "empty", "undefined"],
)
def test_curves(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    curves(log, tmp_path / "curves.png")
    assert size(tmp_path / "curves.png") == (960, 540)
    first = (tmp_path / "curves.png").read_bytes()
    curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_bars(tmp_path: Path) -> None:
    report = {
        "base": {"ndcg@10": 0.46},
        "tuned": {"ndcg@10": 0.64},
        "baselines": {"bm25": {"ndcg@10": 0.42}, "popularity": {"ndcg@10": None}},
        "ci": {"tuned": {"ndcg@10": [0.6, 0.68]}, "base": {"ndcg@10": None}},
        "protocol": {"split": "test", "n": 90},
    }
    bars(report, "ndcg@10", tmp_path / "rows.png")
    assert size(tmp_path / "rows.png") == (960, 540)
