"""A certificate as people read it: every figure beside its limit, or told, within 100 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from recft.reports.certificates import certificate
from recft.reports.sheets import Sheet, plain, rich_sheet

FOUND: dict[str, Any] = {
    "engine": "ONNX Runtime",
    "version": "1.27",
    "dtype": "float32",
    "rows": 500,
    "items": 1000,
    "split": "test",
    "effect_kl": 0.2,
    "kl": 1e-9,
    "largest_score_difference": 2e-7,
    "mean_score_difference": 3e-8,
    "top_k_agreement": 1.0,
    "top_k_agreement_exact": 0.998,
    "metric": "ndcg@10",
    "metrics": {"reference": {"ndcg@10": 0.7}, "served": {"ndcg@10": 0.701}},
    "metric_change": 0.001,
    "metric_interval": [-0.0004, 0.0024],
    "tokenization_differs": 0,
    "batch_change": 1.2e-7,
    "padding_change": 0.41,
    "padding_matters": True,
    "padding_side": {"tuned": "right", "artefact": "right"},
    "max_tokens": {"tuned": 128, "artefact": 512},
    "latency": {"one_ms": 7.125, "texts_per_second": 412.7},
    "own": {"recall@100": 0.981, "index": {"kind": "hnsw"}},
    "k_bit": {"kl": 1e-4, "bound": 2e-3, "effect_kl": 0.2},
    "judged": [
        {"figure": "largest_score_difference", "limit": 1e-4, "key": "score", "at_least": False},
        {"figure": "top_k_agreement", "limit": 0.99, "key": "top_k_agreement", "at_least": True},
        {"figure": "batch_change", "limit": 1e-4, "key": "score", "at_least": False},
        {"figure": "metric_change", "limit": 1e-3, "key": "metric", "at_least": False},
    ],
    "wrong": [],
    "verdict": "passed",
}


def cells(sheet: Sheet) -> dict[str, tuple[str, ...]]:
    return {row[0].strip(): tuple(row[1:]) for row in sheet.rows}


def drawn(sheet: Sheet) -> str:
    screen = Console(file=io.StringIO(), width=100, color_system=None, legacy_windows=False)
    screen.print(rich_sheet(sheet))
    text: str = screen.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_figures_stand_beside_what_is_allowed_or_are_told() -> None:
    rows = cells(certificate(FOUND, {"weights": "original", "reason": "as asked"}))
    assert rows["engine"] == ("ONNX Runtime 1.27", "")
    assert rows["weights"] == ("float32 original", "as asked")
    assert rows["rows compared"] == ("500 of test x 1,000 items", "")
    assert rows["largest score difference"] == ("2.0e-07", "<= 0.0001")
    assert rows["mean score difference"] == ("3.0e-08", "told")
    assert rows["scores' distance, KL"] == ("1.0e-09", "told")
    assert rows["first places that agree"] == ("1.0000", ">= 0.99")
    assert rows["near-equal scores told apart"] == ("0.9980", "told")
    assert rows["ndcg@10, tuned -> served"] == ("0.7000 -> 0.7010", "")
    assert rows["paired change, 95% interval"] == ("+0.0010 [-0.0004, +0.0024]", "+- 0.001")
    assert rows["texts with other tokens"] == ("0", "0")
    assert rows["padding side"] == ("right", "right")
    assert rows["change with the other side"] == ("0.4100, matters", "told")
    assert rows["longest text, in tokens"] == ("512, tuned with 128", "told")
    assert rows["speed, alone and in batches"] == ("7.1250 ms a text, 413 texts/s", "told")
    assert rows["from the k-bit model, KL"] == ("1.0e-04", "<= 0.002")
    assert rows["own: recall@100"] == ("0.9810", "") and rows["own: index kind"] == ("hnsw", "")
    assert rows["verdict"] == ("passed", "")


def test_what_there_is_none_of_is_left_out() -> None:
    rows = cells(certificate({"engine": "transformers", "largest_score_difference": 2.5e-7, "verdict": "passed"}))
    assert set(rows) == {"engine", "largest score difference", "verdict"}
    assert not certificate({}).notes and cells(certificate({})) == {"verdict": ("?", "")}


def test_a_smaller_dtype_shows_its_own_limits_and_a_failure_its_reasons() -> None:
    judged = [{"figure": "kl", "limit": 0.002, "key": "effect", "or_interval": False}]
    judged += [{"figure": "metric_change", "limit": 0.01, "key": "quantized_metric", "or_interval": True}]
    found = {**FOUND, "dtype": "bfloat16", "judged": judged, "verdict": "failed", "wrong": ["KL is above", "more"]}
    sheet = certificate(found | {"distilled": True})
    rows = cells(sheet)
    assert rows["weights"] == ("bfloat16, distilled", "")
    assert rows["largest score difference"] == ("2.0e-07", "told")
    assert rows["scores' distance, KL"] == ("1.0e-09", "<= 0.002")
    assert rows["paired change, 95% interval"][1] == "+- 0.01, or its interval holds 0"
    assert list(sheet.notes) == ["KL is above", "more"]


@pytest.mark.parametrize("layout", [plain, drawn])
def test_it_stands_in_a_hundred_columns(layout: Any) -> None:
    reason = "validation ndcg@10: dequantized 0.8123; original 0.8119; dequantized, requantized (nf4) 0.7990"
    sheet = certificate(FOUND, {"weights": "dequantized", "reason": reason})
    lines = layout(sheet).splitlines()
    assert max(map(len, lines)) <= 100 + len(reason) * (layout is plain)
    assert max(len(line) for line in lines if reason[:20] not in line) <= 100
    assert any(line.split()[:2] == ["verdict", "passed"] for line in lines)
