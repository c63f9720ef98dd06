"""Gates: what is written is what is compared, and a wrong one says how to mend it."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.errors import RecipeError
from recft.reports import gates
from recft.reports.gates import check, parse

REPORT: dict[str, Any] = {
    "base": {"ndcg@10": 0.8796, "log_loss": 0.5, "auc": 0.6},
    "tuned": {"ndcg@10": 0.8712, "log_loss": 0.4, "auc": 0.7, "mrr": None, "gauc": float("nan")},
    "baselines": {"bm25": {"ndcg@10": 0.82}, "item-knn": {"ndcg@10": 0.9}},
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
    ],
)
def test_check(gate: str, passed: bool, line: str) -> None:
    assert check(gate, REPORT, {"tuned": {"ndcg@10": 0.89}}) == (passed, line)


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


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        gate = parse(text)
    except RecipeError:
        return
    assert gate.operator in (">=", ">", "<=", "<", "==")


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
