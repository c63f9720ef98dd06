"""Sheets: what verbs report, as text whose columns stand straight."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from recft.reports import reading
from recft.reports.tables import (
    Sheet,
    calibration,
    classes,
    comparison,
    differences,
    facts,
    fusion,
    gaps,
    markdown,
    number,
    of_report,
    plain,
    protocol,
    ranking,
    rich_sheet,
    robustness,
    scores,
    slices,
    verdicts,
)

Report = dict[str, Any]

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
    assert "candidates" not in protocol({"split": "test", "n": 3, "counted": "records", "candidates": None})


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


def column(sheet: Sheet, name: str) -> list[str]:
    return [row[list(sheet.columns).index(name)] for row in sheet.rows]


def test_rows_stand_in_the_order_in_which_they_are_read(reports: dict[str, Report]) -> None:
    sheet = scores(reports["ranking"])
    assert column(sheet, "") == [
        *("base", "tuned", "fused", "fused without the model"),
        *("ease (best classic)", "own-repeats", "popularity", "bm25"),
    ]
    assert column(sheet, "ndcg@10")[-1] == "-", "what could not be scored comes last"
    assert column(scores(reports["values"]), "")[2:] == ["factors (best classic)", "mean"], "less error is better"
    assert column(scores(reports["classes"]), "")[2:] == ["logistic"], "one alone is not called the best"


def test_the_best_classic_row_has_a_score() -> None:
    report = {"base": {"auc": 0.5}, "tuned": {"auc": 0.6}, "baselines": {"a": {"auc": None}, "b": {"auc": 0.1}}}
    assert reading.best_classic(report) == "b"
    assert reading.best_classic({**report, "baselines": {"a": {"auc": None}}}) is None
    assert reading.best_classic({"base": {}, "tuned": {}, "baselines": {"a": {}}}) is None


def test_metrics_of_other_versions_have_a_direction() -> None:
    assert reading.higher_is_better("a-metric-that-was@10")
    assert reading.summary_of("a-metric-that-was") == ""
    assert not reading.higher_is_better("log_loss")


def test_differences_tell_p_as_corrected_where_it_was(reports: dict[str, Report]) -> None:
    sheet = differences(reports["ranking"]["paired"])
    assert column(sheet, "ndcg@10") == [
        "+0.0710 [+0.0600, +0.0820] * p < 0.001",
        "-0.0280 [-0.0400, -0.0160] * p = 0.008",
        "+0.0170 [+0.0080, +0.0260] * p = 0.024",
    ]
    assert column(sheet, "paired difference")[-1] == "fused - fused without the model"
    assert any("Holm" in note for note in sheet.notes)
    alone = differences({"a - b": {"m": {"mean": 0.1, "ci": None, "p": 0.0404, "p_holm": None}}})
    assert alone.rows == [("a - b", "+0.1000 p = 0.040")]
    assert not any("Holm" in note for note in alone.notes)


def test_slices_show_the_main_metric_of_the_rows_that_matter(reports: dict[str, Report]) -> None:
    sheet = slices(reports["ranking"])
    assert sheet.columns == (
        *("slice, ndcg@10", "n", "base", "tuned", "fused", "fused without the model", "ease (best classic)"),
        *("tuned - base", "fused - fused without the model"),
    )
    assert sheet.rows[0][:4] == ("cold_item", "120", "0.3500", "0.4210")
    assert sheet.rows[0][-2] == "+0.0900 [+0.0600, +0.1200] *"
    assert slices(reports["ranking"], "mrr@10").columns[0] == "slice, mrr@10"
    assert slices(reports["values"]).rows == []


def test_gaps_name_their_ends(reports: dict[str, Report]) -> None:
    assert gaps(reports["ranking"]).rows[1] == (
        *("item_popularity", "tuned", "ndcg@10"),
        *("head_item", "cold_item", "0.2200"),
    )


def test_classes_show_all_of_the_tuned_model_and_f1_of_others(reports: dict[str, Report]) -> None:
    sheet = classes(reports["classes"])
    assert sheet.columns == ("class", "n", "base f1", "tuned precision", "tuned recall", "tuned f1")
    assert sheet.rows[2] == ("客服投诉", "104", "0.7700", "0.8000", "0.7500", "0.7700")
    assert classes(reports["ranking"]).rows == []


def test_robustness_stands_beside_clean_texts(reports: dict[str, Report]) -> None:
    rows = robustness(reports["ranking"]).rows
    assert rows[0] == ("clean", "", "0.3500", "0.4210", "")
    assert rows[1] == ("typos", "10%", "0.2000", "0.3000", "-0.1000 [-0.1100, -0.0900] * p = 0.020")
    assert robustness(reports["labels"]).rows == []


def test_fusion_calibration_and_words_are_sheets(reports: dict[str, Report]) -> None:
    assert fusion(reports["ranking"]).rows[0] == ("tuned", "0.6100", "-")
    assert fusion(reports["ranking"]).notes == ["fitted on valid, n = 1,100"]
    assert calibration(reports["labels"]).rows == [("tuned", "0.0300"), ("uncalibrated", "0.1100")]
    assert verdicts(reports["ranking"]).rows[0][0].startswith("The tuned model does not beat the best classic row")


@pytest.mark.parametrize("kind", ["ranking", "classes", "labels", "values", "several", "minimal"])
def test_every_sheet_of_a_report_can_be_laid_out(reports: dict[str, Report], kind: str) -> None:
    sheets = of_report(reports[kind])
    assert sheets
    for sheet in sheets:
        assert sheet.rows
        assert {len(row) for row in sheet.rows} == {len(sheet.columns)}
        assert all(isinstance(cell, str) for row in sheet.rows for cell in row)
        for layout in (markdown, plain, drawn):
            assert layout(sheet)


def test_sheets_of_several_tasks_say_whose_they_are(reports: dict[str, Report]) -> None:
    titles = [sheet.title for sheet in of_report(reports["several"]) if sheet.title]
    assert titles == ["shop-search, next_item: test split", "shop-search, purchase: test split"]
    assert [sheet.columns[0] for sheet in of_report(reports["several"])].count("gate") == 1


def test_runs_are_rows(compared: Report) -> None:
    assert comparison(compared).rows[1] == (
        *("chorus-lora", "3", "135"),
        *("0.8600 [0.8400, 0.8800]", "0.7900 [0.7700, 0.8100]"),
    )
