"""Gates: what is written is what is compared, and a wrong one says how to mend it."""

from __future__ import annotations

import doctest
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.errors import DataError, RecipeError
from recft.reports import gates
from recft.reports.gates import NOT_WORSE, check, parse, read, read_file

REPORT: dict[str, Any] = {
    "base": {"ndcg@10": 0.8796, "log_loss": 0.5, "auc": 0.6},
    "tuned": {"ndcg@10": 0.8712, "log_loss": 0.4, "auc": 0.7, "mrr": None, "gauc": float("nan")},
    "baselines": {"bm25": {"ndcg@10": 0.82}, "item-knn": {"ndcg@10": 0.9}},
    "fused": {"ndcg@10": 0.91},
    "slices": {
        "cold_item": {"n": 9, "rows": {"tuned": {"ndcg@10": 0.3}, "base": {"ndcg@10": 0.2}, "bm25": {"ndcg@10": 0.25}}},
        "brand=打印机 [A]": {"n": 4, "rows": {"tuned": {"ndcg@10": 0.5}, "base": {"ndcg@10": 0.6}}},
    },
    "task": "retrieval",
}
SEVERAL: dict[str, Any] = {
    "tasks": {
        "purchase": {"task": "purchase", "tuned": {"auc": 0.7}, "base": {"auc": 0.6}},
        "next-item": {"task": "next-item", "tuned": {"ndcg@10": 0.2}, "slices": REPORT["slices"]},
    }
}


def test_doctests() -> None:
    result = doctest.testmod(gates)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("gate", "passed", "line"),
    [
        ("ndcg@10 >= base + 0.01", False, "ndcg@10 = 0.8712 is not >= base + 0.01 = 0.8896"),
        ("ndcg@10>=base-0.01", True, "ndcg@10 = 0.8712 is >= base - 0.01 = 0.8696"),
        ("  auc >= 0.7 ", True, "auc = 0.7000 is >= 0.7"),
        ("auc > 0.7", False, "auc = 0.7000 is not > 0.7"),
        ("auc < .71", True, "auc = 0.7000 is < 0.71"),
        ("auc == 7e-1", True, "auc = 0.7000 is == 0.7"),
        ("log_loss <= base", True, "log_loss = 0.4000 is <= base = 0.5000"),
        ("log-loss <= base", True, "log-loss = 0.4000 is <= base = 0.5000"),
        ("ndcg@10 >= bm25 + 0.05", True, "ndcg@10 = 0.8712 is >= bm25 + 0.05 = 0.8700"),
        ("ndcg@10 >= item-knn-0.1", True, "ndcg@10 = 0.8712 is >= item-knn - 0.1 = 0.8000"),
        ("ndcg@10 >= item_knn", False, "ndcg@10 = 0.8712 is not >= item_knn = 0.9000"),
        ("ndcg@10 >= reference - 0.005", False, "ndcg@10 = 0.8712 is not >= reference - 0.005 = 0.8850"),
        ("ndcg@10 >= -1", True, "ndcg@10 = 0.8712 is >= -1"),
        ("ndcg@10 >= 0.87121", False, "ndcg@10 = 0.87120 is not >= 0.87121"),
        ("ndcg@10 >= fused", False, "ndcg@10 = 0.8712 is not >= fused = 0.9100"),
        ("retrieval:ndcg@10 >= 0", True, "retrieval:ndcg@10 = 0.8712 is >= 0"),
        ("ndcg@10[cold_item] >= 0.1", True, "ndcg@10[cold_item] = 0.3000 is >= 0.1"),
        ("ndcg@10 [ cold-item ]>=bm25", True, "ndcg@10[cold-item] = 0.3000 is >= bm25 = 0.2500"),
        (
            "ndcg@10[brand=打印机 [A]] >= base",
            False,
            "ndcg@10[brand=打印机 [A]] = 0.5000 is not >= base = 0.6000",
        ),
    ],
)
def test_check(gate: str, passed: bool, line: str) -> None:
    assert check(gate, REPORT, {"tuned": {"ndcg@10": 0.89}}) == (passed, line)


@pytest.mark.parametrize(
    ("written", "bound"),
    [
        ("lora-16", "lora-16"),
        ("lora-4bit-16", "lora-4bit-16"),
        ("lora-16-0.01", "lora-16 - 0.01"),
        ("lora-16-.5", "lora-16 - 0.5"),
        ("lora-16 - 1", "lora-16 - 1"),
        ("lora-16+2", "lora-16 + 2"),
        ("lora - 16", "lora - 16"),
        ("lora -16", "lora - 16"),
        ("lora-0.01", "lora - 0.01"),
        ("lora-1e-3", "lora - 0.001"),
        ("lora-16.", "lora - 16"),
        ("base-0.01", "base - 0.01"),
        ("base-1", "base - 1"),
        ("base-1-0.5", "base-1 - 0.5"),
        ("base2-1", "base2-1"),
        ("reference-2", "reference - 2"),
        ("fused_without_model-1", "fused_without_model - 1"),
        ("bm25-1", "bm25 - 1"),
        ("item-knn-1", "item-knn - 1"),
        ("item_knn-1", "item_knn - 1"),
        ("item-16", "item-16"),
        ("base-lora-16", "base-lora-16"),
    ],
)
def test_a_hyphen_before_a_digit_is_a_minus_or_part_of_a_name(written: str, bound: str) -> None:
    assert parse(f"auc >= {written}").bound == bound


def test_a_test_names_a_row_with_digits() -> None:
    assert parse("auc not worse than lora-16 by 0.01").bound == "lora-16 by 0.01"


def test_decimal_not_binary() -> None:
    assert 0.28 + 0.01 > 0.29
    assert check("auc >= base + 0.01", {"base": {"auc": 0.28}, "tuned": {"auc": 0.29}})[0]


def test_near_misses_are_told_apart() -> None:
    report = {"base": {"auc": 0.7000001}, "tuned": {"auc": 0.7}}
    assert check("auc >= base", report) == (False, "auc = 0.7000000 is not >= base = 0.7000001")


@pytest.mark.parametrize("value", [np.float64(0.7), 1, 0.7])
def test_numbers_of_any_kind(value: Any) -> None:
    assert check("auc >= 0.5", {"tuned": {"auc": value}})[0]


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("", "''"),
        ("ndcg@10", "is not understood"),
        ("ndcg@10 => 0.7", "is not understood"),
        ("ndcg@10 >= 0.7 + base", "is not understood"),
        ("ndcg@10 >= base + base", "is not understood"),
        ("ndcg@10 >= base * 2", "is not understood"),
        ("ndcg@10 >= nan", "there is no row 'nan'"),
        ("ndcg@10 >= __import__('os')", "is not understood"),
        ("ndgc@10 >= 0.7", "Did you mean 'ndcg'?"),
        ("ndcg@0 >= 0.7", "cutoff from 1"),
        ("auc@10 >= 0.7", "has none"),
        ("ndcg@20 >= 0.7", "ndcg@20 of tuned was not measured. Did you mean 'ndcg@10'?"),
        ("auc >= bm25", "auc of bm25 was not measured"),
        ("ndcg@10 >= bm52", "Did you mean 'bm25'?"),
        ("ndcg@10 >= reference", "--reference FILE"),
        ("mrr >= 0.1", "mrr of tuned is None"),
        ("gauc >= 0.1", "gauc of tuned is nan"),
        ("ndcg@10[cold_itme] >= 0.1", "there is no slice 'cold_itme' in this report. Did you mean 'cold_item'?"),
        ("mrr[cold_item] >= 0.1", "mrr[cold_item] of tuned was not measured"),
        ("ndcg@10[cold_item] >= item-knn", "there is no row 'item-knn'"),
        ("ndcg@10[cold_item] >= reference", "--reference FILE"),
        ("ndcg@10[] >= 0.1", "is not understood"),
        ("ndcg@10 not worse", "is not understood"),
        ("ndcg@10 not worse than 0.7", "is not understood"),
        ("ndcg@10 not worse than base by -0.1", "is not understood"),
        ("ndcg@10not worse than base", "is not understood"),
        ("purchase:auc >= 0.7", "there is no task 'purchase'"),
        (":auc >= 0.7", "is not understood"),
    ],
)
def test_mistakes_name_place_rule_and_fix(gate: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(gate, REPORT)
    message = str(caught.value)
    assert message.startswith("gate")
    assert said in message
    assert "(rule: " in message
    assert "fix: " in message
    assert "\n" not in message


def test_a_reference_without_the_metric() -> None:
    with pytest.raises(RecipeError, match="auc of reference was not measured"):
        check("auc >= reference", REPORT, {"tuned": {}})
    with pytest.raises(RecipeError, match="auc of reference was not measured"):
        check("auc >= reference", REPORT, {})


def test_tasks_are_named_before_a_colon() -> None:
    assert check("purchase:auc >= base", SEVERAL) == (True, "purchase:auc = 0.7000 is >= base = 0.6000")
    assert check("next_item:ndcg@10[cold_item] >= 0.3", SEVERAL)[0]
    with pytest.raises(RecipeError, match=r"several tasks.*name it before a colon, as in purchase:auc"):
        check("auc >= 0.5", SEVERAL)
    with pytest.raises(RecipeError, match=r"no task 'purchas' in this report. Did you mean 'purchase'"):
        check("purchas:auc >= 0.5", SEVERAL)
    with pytest.raises(RecipeError, match=r"no task 'purchase' in the reference"):
        check("purchase:auc >= reference", SEVERAL, {"task": "rating", "tuned": {}})


def test_tests_are_read() -> None:
    gate = parse(" purchase:log_loss[brand=a b] not  worse than reference by .005 ")
    assert (gate.task, gate.metric, gate.slice, gate.row) == ("purchase", "log_loss", "brand=a b", "reference")
    assert gate.is_test and gate.operator == NOT_WORSE
    assert gate.bound == "reference by 0.005"
    assert parse("ndcg@10 not worse than item-knn").bound == "item-knn"


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,5}(-[A-Za-z][a-z]{0,3})?", fullmatch=True)
SLICES = st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r", exclude_categories=("Cc", "Zl", "Zp")), min_size=1
)
SPACE = st.sampled_from(["", " ", "  ", "\t"])


@given(
    st.sampled_from(["", "purchase", "next-item", "a_b"]),
    st.sampled_from(["ndcg@10", "auc", "log_loss", "log-loss", "recall@100"]),
    st.one_of(st.just(""), st.just("cold_item"), SLICES.map(lambda value: f"brand={value}")),
    NAMES,
    st.one_of(st.none(), st.decimals(0, 1, places=4)),
    st.sampled_from([">=", ">", "<=", "<", "==", NOT_WORSE]),
    SPACE,
)
def test_what_is_written_is_what_is_read(
    task: str, metric: str, part: str, row: str, shift: Any, sign: str, space: str
) -> None:
    left = f"{task}{space}:{metric}" if task else metric
    left += f"{space}[{space}{part}]" if part else ""
    right = {True: f"{sign} {row}", False: f"{sign}{space}{row}"}[sign == NOT_WORSE]
    if shift is not None:
        right += f" by {shift}" if sign == NOT_WORSE else f"{space}-{space}{shift}"
    gate = parse(f"{space}{left} {space}{right}{space}")
    assert (gate.task, gate.metric, gate.slice, gate.row) == (task, metric, part.strip(), row)
    assert gate.operator == sign
    assert abs(gate.shift) == (shift or 0)
    assert gate.shift <= 0 or sign == NOT_WORSE


def test_a_file_has_a_gate_a_line(tmp_path: Path) -> None:
    path = tmp_path / "gates.txt"
    path.write_text(
        "\ufeff# 门槛\r\n\r\nndcg@10 >= base  # the untuned model\r\n  \nndcg@10[brand=#1 打印机] >= 0.1#x\nauc >= 0.7",
        encoding="utf-8",
    )
    assert read_file(path) == [
        (f"{path} line 3", "ndcg@10 >= base"),
        (f"{path} line 5", "ndcg@10[brand=#1 打印机] >= 0.1"),
        (f"{path} line 6", "auc >= 0.7"),
    ]
    found = read(["mrr >= 0"], path)
    assert [gate.expression for gate in found][:2] == ["mrr >= 0", "ndcg@10 >= base"]
    assert found[1].place == f"{path} line 3: gate 'ndcg@10 >= base'"
    assert found[0].place == "gate 'mrr >= 0'"


def test_all_mistakes_of_a_file_are_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "gates.txt"
    path.write_text("ndgc@10 >= 0.7\nauc >= 0.7\nauc => 0.7\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read(["f1"], path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("gate: 'f1' is not understood")
    assert lines[1].startswith(f"{path} line 1: gate 'ndgc@10 >= 0.7'")
    assert lines[2].startswith(f"{path} line 3: gate: 'auc => 0.7' is not understood")
    assert all("(rule: " in line and "fix: " in line for line in lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"", "holds no gate"), (b"# none\n\n", "holds no gate"), (b"auc \xff", "not UTF-8")],
)
def test_a_file_that_is_none_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gates.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read([], path)
    assert str(caught.value).startswith(f"{path}: ")


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        gate = parse(text)
    except RecipeError:
        return
    assert gate.operator in (">=", ">", "<=", "<", "==", NOT_WORSE)


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([">=", ">", "<=", "<", "=="]),
    st.decimals(0, 1, places=3),
    st.sampled_from(["+", "-"]),
)
def test_agrees_with_arithmetic(tuned: float, base: float, sign: str, shift: Any, plus: str) -> None:
    passed, line = check(f"auc {sign} base {plus} {shift}", {"base": {"auc": base}, "tuned": {"auc": tuned}})
    bound = base + float(shift) if plus == "+" else base - float(shift)
    if math.isclose(tuned, bound, abs_tol=1e-12):
        return
    assert passed == {">=": tuned >= bound, ">": tuned > bound, "<=": tuned <= bound, "<": tuned < bound}.get(
        sign, False
    )
    assert line.startswith("auc = ")
