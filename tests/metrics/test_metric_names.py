"""Reading `ndcg@10`, and means over what is defined."""

from __future__ import annotations

import numpy as np
import pytest

from recft.errors import RecipeError
from recft.metrics._base import mean, parse


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ndcg@10", ("ndcg", 10)),
        (" mrr ", ("mrr", None)),
        ("map", ("map", None)),
        ("log_loss", ("log-loss", None)),
        ("log-loss", ("log-loss", None)),
        ("recall", ("recall", None)),
    ],
)
def test_parse(expression: str, expected: tuple[str, int | None]) -> None:
    assert parse(expression) == expected


@pytest.mark.parametrize(
    ("expression", "output", "said"),
    [
        ("ndgc@10", None, "Did you mean 'ndcg'?"),
        ("ndcg@", None, "a name, or name@cutoff"),
        ("ndcg@0", None, "cutoff from 1"),
        ("ndcg@-1", None, "cutoff from 1"),
        ("ndcg@ten", None, "cutoff from 1"),
        ("", None, "a name, or name@cutoff"),
        ("auc@10", None, "write auc"),
        ("hr", None, "for example hr@10"),
        ("recall", "ranking", "for example recall@10"),
        ("recall@10", "labels", "write recall"),
        ("ndcg@10", "labels", "this task answers yes or no"),
        ("auc", "ranking", "this task ranks items"),
        ("auc", "ranking", "coverage@10, "),
        ("rmse", "labels", "rmse scores predicted numbers (rule: this task answers yes or no; fix: take one of acc"),
        ("brier", "values", "brier scores yes-or-no answers or classes (rule: this task predicts numbers"),
        ("rmse", "classes", "this task chooses among classes; fix: take one of accuracy, brier, ece, log-loss, macro"),
        ("macro_f1@3", "classes", "macro-f1 of classes has none; fix: write macro-f1"),
        ("perplexity", "values", "fix: take one of mae, rmse"),
        ("rmse", "likelihood", "this task says how likely replies are; fix: take one of nll, perplexity"),
        ("coverage", "ranking", "for example coverage@10"),
        ("coverage@10", "labels", "coverage scores rankings"),
    ],
)
def test_mistakes(expression: str, output: object, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(expression, output)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "(rule: " in str(caught.value)
    assert "fix: " in str(caught.value)


def test_both_forms() -> None:
    assert parse("recall@10", "ranking") == ("recall", 10)
    assert parse("recall", "labels") == ("recall", None)


def test_every_output() -> None:
    assert parse("coverage@10", "ranking") == ("coverage", 10)
    assert parse("invalid", "ranking") == ("invalid", None)
    assert parse("judged@5", "ranking") == ("judged", 5)
    assert parse("brier", "labels") == parse("brier", "classes") == ("brier", None)
    assert parse("macro_f1", "classes") == ("macro-f1", None)
    assert parse("rmse", "values") == ("rmse", None)
    assert parse("nll", "likelihood") == ("nll", None)


def test_mean_over_nothing() -> None:
    score, n = mean(np.array([np.nan]))
    assert np.isnan(score)
    assert n == 0
