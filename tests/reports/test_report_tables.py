"""Sheets: what verbs report, as text whose columns stand straight."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from recft.reports.tables import (
    Sheet,
    certificate,
    differences,
    facts,
    markdown,
    number,
    plain,
    protocol,
    ranking,
    rich_sheet,
    scores,
)

CHINESE = Sheet(columns=("商品", "score"), rows=[("保温瓶🔥", "0.5"), ("a|b", "12.25")], notes=["note"])


def drawn(sheet: Sheet, width: int = 100) -> str:
    screen = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    screen.print(rich_sheet(sheet))
    text: str = screen.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("layout", [markdown, plain, drawn])
def test_wide_characters_keep_columns_straight(layout: Any) -> None:
    lines = [line for line in layout(CHINESE).splitlines() if "0.5" in line or "12.25" in line]
    ends = [
        cell_len(line[: line.index(figure) + len(figure)]) for line, figure in zip(lines, ("0.5", "12.25"), strict=True)
    ]
    assert ends[0] == ends[1]


def test_markdown_is_a_table_of_equal_rows() -> None:
    text = markdown(CHINESE)
    table = text.splitlines()[:4]
    assert table[1] == "| --- | ----: |".replace("---", "-" * 8, 1)
    assert {line.replace("\\|", "").count("|") for line in table} == {3}
    assert "a\\|b" in text
    assert text.endswith("\n\nnote\n")


def test_scores_keep_missing_values_apart_from_zero() -> None:
    report = {
        "name": "x",
        "base": {"auc": 0.0},
        "tuned": {"auc": 0.5, "f1": None},
        "ci": {"tuned": {"auc": [0.4, 0.6]}, "base": {"auc": None}},
        "protocol": {"split": "test", "counted": "pairs", "sampled": True},
    }
    sheet = scores(report)
    assert sheet.columns == ("", "auc", "f1")
    assert sheet.rows == [("base", "0.0000", "-"), ("tuned", "0.5000 [0.4000, 0.6000]", "-")]
    assert "sampled negatives" in sheet.notes[0]
    assert "history" not in sheet.notes[0]


def test_only_intervals_clear_of_zero_get_a_star() -> None:
    entries = {"above": [0.1, 0.3], "below": [-0.3, -0.1], "across": [-0.1, 0.3], "touching": [0.0, 0.3]}
    rows = differences({name: {"m": {"mean": 0.2, "ci": ci}} for name, ci in entries.items()}).rows
    assert [row[0] for row in rows if row[1].endswith("*")] == ["above", "below"]
    assert differences({"a - b": {"m": {"mean": None, "ci": None}}}).rows == [("a - b", "-")]


def test_the_protocol_says_what_is_masked_and_left_out() -> None:
    line = protocol(
        {
            "split": "test",
            "split_by": "time",
            "n": 1027,
            "left_out": 5,
            "candidates": "all",
            "n_candidates": 3659,
            "history_masked": True,
        }
    )
    assert line.startswith("test split by time; n = 1,027 records (5 without")
    assert "candidates: 3,659 (all); history masked; nothing sampled" in line


def test_facts_flatten_and_name_units() -> None:
    sheet = facts("t", {"a": {"b": {"c": 1}}, "peak_memory_bytes": 3 * 2**20, "l": [0.5, 1], "none": {}})
    assert sheet.rows == [("a.b.c", "1"), ("peak_memory_bytes", "3 MiB"), ("l", "0.5000, 1"), ("none", "")]


def test_a_ranking_numbers_places_itself_where_nobody_has() -> None:
    sheet = ranking([{"item": 7, "score": 1, "title": "x"}, {"item": 8, "score": 0.25}])
    assert sheet.rows == [("1", "7", "1.0000", "x"), ("2", "8", "0.2500", "")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "-"),
        (1e-9, "1.0e-09"),
        (-0.5, "-0.5000"),
        (123456.7, "123,457"),
        ("x", "x"),
        ((1, 2), "1, 2"),
        (0.0, "0.0000"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text


def test_a_certificate_shows_what_is_allowed_beside_what_is() -> None:
    found = {
        "engine": "onnxruntime",
        "version": "1.27",
        "dtype": "float32",
        "effect_kl": 0.2,
        "kl": 1e-9,
        "largest_score_difference": 2e-7,
        "top_k_agreement": 1.0,
        "metric": "ndcg@10",
        "metrics": {"reference": {"ndcg@10": 0.7}, "served": {"ndcg@10": 0.701}},
        "k_bit": {"kl": 1e-4, "bound": 2e-3, "effect_kl": 0.2},
        "tolerances": {"score": 1e-4, "top_k_agreement": 0.99, "metric": 1e-3},
        "wrong": ["ndcg@10 changes by +0.0010"],
        "verdict": "failed",
    }
    rows = {row[0]: row[1:] for row in certificate(found, {"weights": "original", "reason": "as asked"}).rows}
    assert rows["engine"] == ("onnxruntime 1.27", "")
    assert rows["weights"] == ("float32 original", "as asked")
    assert rows["largest score difference"] == ("2.0e-07", "<= 0.0001")
    assert rows["ndcg@10, tuned -> served"] == ("0.7000 -> 0.7010", "change <= 0.001")
    assert rows["from the k-bit model, KL"] == ("1.0e-04", "<= 0.002")
    assert rows["verdict"] == ("failed", "ndcg@10 changes by +0.0010")
    assert "rows compared" not in rows
    smaller = {row[0]: row[1:] for row in certificate({**found, "dtype": "bfloat16", "kl": 1e-4}).rows}
    assert smaller["largest score difference"] == ("2.0e-07", ""), "a smaller dtype is judged by KL"
    assert smaller["scores' distance, KL"] == ("1.0e-04", "<= 0.002")
