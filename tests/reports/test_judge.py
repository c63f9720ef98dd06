"""Gates judged: paired tests against a slow reference, and evidence that is missing, damaged or of other records."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recft.errors import DataError, GateError, RecftError, RecipeError
from recft.reports.evidence import DRAWS, Evidence
from recft.reports.gates import parse
from recft.reports.judge import Prospect, foresee, insist, judge, open_reference
from recft.run import hash_file, write_json

PROTOCOL = {"data": "d" * 64, "split": "test", "split_by": "query", "candidates": "all"}
KEYS = ["a", "a", "b", "c", "d", "d", "d", "e", "f", "用户", ""]
"""The user of each record: 9 users."""


def written(folder: Path, columns: dict[str, Any], tuned: dict[str, Any], **more: Any) -> Path:
    """The path of a report whose predictions hold these columns."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame({"record": np.arange(len(columns["key"])), **columns})
    frame.write_parquet(folder / "test.predictions.parquet")
    sha256 = hash_file(folder / "test.predictions.parquet")
    predictions = {"path": "test.predictions.parquet", "sha256": sha256}
    report = {"task": "retrieval", "tuned": tuned, "protocol": PROTOCOL, "predictions": predictions, **more}
    write_json(folder / "test.json", report)
    return folder / "test.json"


def ranked(folder: Path, tuned: np.ndarray, **others: np.ndarray) -> Path:
    """A run that ranks: a score of each record."""
    columns = {f"{name}:ndcg@10": scores for name, scores in {"tuned": tuned, **others}.items()}
    means = {name: {"ndcg@10": float(np.nanmean(scores))} for name, scores in others.items()}
    base = {"base": means.pop("base")} if "base" in means else {}
    return written(folder, {"key": KEYS, **columns}, {"ndcg@10": float(np.nanmean(tuned))}, baselines=means, **base)


def judged(gate: str, ours: Path, reference: Path | None = None) -> dict[str, Any]:
    gates = [parse(gate)]
    report = open_reference(ours, []).report  # type: ignore[union-attr]
    (found,) = judge(gates, report, ours, open_reference(reference, gates))
    return found


def slow_p(ours: np.ndarray, theirs: np.ndarray, keys: list[str]) -> float:
    """The exact p: every way of exchanging the rows, user by user, in plain Python."""
    users = sorted(set(keys))
    differences = [sum(a - b for a, b, key in zip(ours, theirs, keys, strict=True) if key == user) for user in users]
    observed = sum(differences)
    totals = [
        sum(sign * difference for sign, difference in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(users))
    ]
    return float(np.mean([total <= observed + 1e-12 for total in totals]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_p_is_the_share_of_exchanges_that_are_as_bad(seed: int, margin: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(len(KEYS)), rng.random(len(KEYS)) + 0.15
    run, reference = ranked(tmp_path / "run", ours), ranked(tmp_path / "main", theirs)
    found = judged(f"ndcg@10 not worse than reference by {margin}", run, reference)
    exact = slow_p(ours + margin, theirs, KEYS)
    assert found["p"] == pytest.approx(exact, abs=4 * np.sqrt(0.25 / DRAWS))
    assert found["mean"] == pytest.approx((ours - theirs).mean())
    assert found["ci"][0] < found["mean"] < found["ci"][1]
    assert found["n"] == len(KEYS)
    assert found["passed"] == (found["p"] >= 0.05)


def test_worse_fails_better_and_equal_pass_and_the_line_says_why(tmp_path: Path) -> None:
    scores = np.linspace(0.2, 0.7, len(KEYS))
    main = ranked(tmp_path / "main", scores)
    worse = judged("ndcg@10 not worse than reference", ranked(tmp_path / "worse", scores - 0.1), main)
    assert not worse["passed"]
    assert worse["p"] < 0.01
    assert worse["line"].startswith(
        "ndcg@10 = 0.3500 is worse than reference = 0.4500: difference -0.1000 [-0.1000, -0.1000], n = 11, p = 0.00"
    )
    assert worse["line"].endswith("< 0.05")
    equal = judged("ndcg@10 not worse than reference", ranked(tmp_path / "equal", scores), main)
    assert equal["passed"] and equal["p"] == 1.0
    assert "is not shown to be worse than reference = 0.4500: difference +0.0000" in equal["line"]
    assert judged("ndcg@10 not worse than reference", ranked(tmp_path / "better", scores + 0.1), main)["passed"]
    granted = judged("ndcg@10 not worse than reference by 0.11", tmp_path / "worse" / "test.json", main)
    assert granted["passed"] and "by more than 0.11" in granted["line"]
    assert not judged("ndcg@10 not worse than reference by 0.09", tmp_path / "worse" / "test.json", main)["passed"]


def test_rows_of_the_same_report_are_rivals_too(tmp_path: Path) -> None:
    scores = np.linspace(0.2, 0.7, len(KEYS))
    scores[3] = np.nan
    run = ranked(tmp_path, scores, base=scores - 0.1, bm25=scores + 0.1)
    better = judged("ndcg@10 not worse than base", run)
    assert better["passed"] and better["n"] == 10
    assert not judged("ndcg@10 not worse than bm25", run)["passed"]
    assert "no row 'bm52'. Did you mean 'bm25'" in judged("ndcg@10 not worse than bm52", run)["line"]


def test_records_in_another_order_are_matched(tmp_path: Path) -> None:
    scores = np.linspace(0.2, 0.7, len(KEYS))
    run = ranked(tmp_path / "run", scores)
    main = ranked(tmp_path / "main", scores - 0.1)
    frame = pl.read_parquet(main.parent / "test.predictions.parquet").sample(fraction=1, shuffle=True, seed=1)
    report = dict(open_reference(main, []).report)  # type: ignore[union-attr]
    shuffled = written(tmp_path / "other", frame.drop("record").to_dict(as_series=False), report["tuned"])
    frame.write_parquet(shuffled.parent / "test.predictions.parquet")
    report["predictions"] = {
        "path": "test.predictions.parquet",
        "sha256": hash_file(shuffled.parent / "test.predictions.parquet"),
    }
    write_json(shuffled, report)
    gate = "ndcg@10 not worse than reference"
    assert judged(gate, run, shuffled) == judged(gate, run, main)


def paired_labels(folder: Path, scores: np.ndarray, base: np.ndarray, metric: str, values: tuple[float, float]) -> Path:
    """A run that answers yes or no: a score of each pair."""
    columns = {
        "key": [f"u{pair // 4}" for pair in range(32)],
        "item": [f"i{pair}" for pair in range(32)],
        "label": np.tile([1, 0, 0, 1], 8),
        "tuned:score": scores,
        "base:score": base,
        "slice:cold_item": np.arange(32) % 4 < 2,
    }
    return written(folder, columns, {metric: values[0]}, base={metric: values[1]}, task="purchase")


def slow_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(pairs))


def slow_log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.mean(np.log(np.where(labels == 1, scores, 1 - scores))))


@pytest.mark.parametrize(("metric", "slow", "up"), [("auc", slow_auc, 1), ("log_loss", slow_log_loss, -1)])
@pytest.mark.parametrize("margin", [0.0, 0.04])
def test_scores_of_pairs_are_exchanged_user_by_user(
    metric: str, slow: Any, up: int, margin: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    labels = np.tile([1, 0, 0, 1], 8)
    base = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.15, 32), 0.05, 0.95)
    ours = np.clip(0.5 + 0.1 * (labels - 0.5) + rng.normal(0, 0.15, 32), 0.05, 0.95)
    run = paired_labels(tmp_path, ours, base, metric, (slow(ours, labels), slow(base, labels)))
    found = judged(f"{metric} not worse than base by {margin}", run)
    observed = up * (slow(ours, labels) - slow(base, labels)) + margin
    drawn = []
    for coins in itertools.product((False, True), repeat=8):
        swap = np.repeat(coins, 4)
        first, second = np.where(swap, base, ours), np.where(swap, ours, base)
        drawn.append(up * (slow(first, labels) - slow(second, labels)))
    exact = np.mean(np.array(drawn) <= observed + 1e-12)
    assert found["p"] == pytest.approx(exact, abs=4 * np.sqrt(0.25 / DRAWS))
    assert found["mean"] == pytest.approx(slow(ours, labels) - slow(base, labels))
    assert found["n"] == 32


def test_slices_are_tested_where_the_predictions_tell_them_apart(tmp_path: Path) -> None:
    scores = np.linspace(0.2, 0.7, len(KEYS))
    cold = np.where(np.arange(len(KEYS)) % 5 == 4, np.nan, scores)
    columns = {"key": KEYS, "slice:cold_item:tuned:ndcg@10": cold - 0.2, "slice:cold_item:base:ndcg@10": cold}
    rows = {"tuned": {"ndcg@10": float(np.nanmean(cold - 0.2))}, "base": {"ndcg@10": float(np.nanmean(cold))}}
    slices = {"cold_item": {"n": 9, "rows": rows}, "novel": {"n": 9, "rows": rows}}
    run = written(tmp_path / "run", columns, {"ndcg@10": 0.5}, base={"ndcg@10": 0.6}, slices=slices)
    found = judged("ndcg@10[cold_item] not worse than base", run)
    assert not found["passed"] and found["n"] == 9
    assert judged("ndcg@10[cold-item] not worse than reference", run, run)["passed"]
    refused = judged("ndcg@10[novel] not worse than base", run)
    assert refused["error"] and "hold no ndcg@10[novel] of tuned record by record" in refused["line"]
    assert "fix: write ndcg@10[novel] >= base - a margin" in refused["line"]
    labels = np.tile([1, 0, 0, 1], 8)
    part = np.arange(32) % 4 < 2
    ours, base_scores = np.linspace(0.9, 0.1, 32), np.linspace(0.2, 0.8, 32)
    pairs = paired_labels(tmp_path / "pairs", ours, base_scores, "auc", (0.0, 0.0))
    report = dict(open_reference(pairs, []).report)  # type: ignore[union-attr]
    values = [slow_auc(scores[part], labels[part]) for scores in (ours, base_scores)]
    report["slices"] = {"cold_item": {"n": 16, "rows": {"tuned": {"auc": values[0]}, "base": {"auc": values[1]}}}}
    write_json(pairs, report)
    assert judged("auc[cold_item] not worse than base", pairs)["n"] == 16


def test_too_few_users_cannot_fail_and_are_refused(tmp_path: Path) -> None:
    four = {"key": ["a", "b", "c", "d"], "tuned:ndcg@10": [0.1] * 4, "base:ndcg@10": [0.9] * 4}
    found = judged("ndcg@10 not worse than base", written(tmp_path, four, {"ndcg@10": 0.1}, base={"ndcg@10": 0.9}))
    assert found["error"] and "4 users or queries" in found["line"]


SCORES = np.linspace(0.2, 0.7, len(KEYS))
GATE = "ndcg@10 not worse than reference"


@pytest.mark.parametrize(
    ("damage", "said", "fix"),
    [
        ("gone", "test.predictions.parquet is missing", "copy both files of one `recft eval`"),
        ("tampered", "is not the file that", "copy both files of one `recft eval`"),
        ("unnamed", "names no predictions", "score that run again"),
        ("garbage", "cannot be read", "copy both files"),
        ("no report", "is no report", "check the path"),
        ("no json", "not JSON", "make it again"),
        ("no file", "the file is missing", "check the path"),
    ],
)
def test_a_reference_without_its_predictions_is_refused_before_scoring(
    damage: str, said: str, fix: str, tmp_path: Path
) -> None:
    main = ranked(tmp_path, SCORES)
    file = tmp_path / "test.predictions.parquet"
    report = dict(open_reference(main, []).report)  # type: ignore[union-attr]
    if damage == "gone":
        file.unlink()
    elif damage == "tampered":
        pl.read_parquet(file).with_columns(pl.col("tuned:ndcg@10") - 0.3).write_parquet(file)
    elif damage == "unnamed":
        del report["predictions"]
        write_json(main, report)
    elif damage == "garbage":
        file.write_bytes(b"x")
        report["predictions"]["sha256"] = hash_file(file)
        write_json(main, report)
    elif damage == "no report":
        main.write_text("[]", encoding="utf-8")
    elif damage == "no json":
        main.write_text("{", encoding="utf-8")
    else:
        main.unlink()
    with pytest.raises(DataError, match=said) as caught:
        open_reference(main, [parse(GATE)])
    assert f"fix: {fix}" in str(caught.value)
    if damage in ("gone", "tampered", "garbage", "unnamed"):
        plain = open_reference(main, [parse("ndcg@10 >= reference")])
        assert isinstance(plain, Evidence) and not plain.frames, "a comparison needs no predictions"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data", "e" * 64, "was scored with data eeee"),
        ("split", "valid", "was scored with split valid, this run with test"),
        ("candidates", "judged", "was scored with candidates judged, this run with all"),
        ("subset", "5 of 10", "was scored with subset 5 of 10, this run with None"),
    ],
)
@pytest.mark.parametrize("gate", [GATE, "ndcg@10 >= reference - 0.5"])
def test_a_reference_under_another_protocol_is_refused(
    key: str, value: str, said: str, gate: str, tmp_path: Path
) -> None:
    run, main = ranked(tmp_path / "run", SCORES), ranked(tmp_path / "main", SCORES)
    report = dict(open_reference(main, []).report)  # type: ignore[union-attr]
    report["protocol"] = {**PROTOCOL, key: value}
    write_json(main, report)
    found = judged(gate, run, main)
    assert found["error"] and not found["passed"]
    assert said in found["line"]
    assert "fix: score the reference run again on this data" in found["line"]
    thresholds = judged("ndcg@10 >= 0.1", run, main)
    assert thresholds["passed"], "a gate that does not name the reference does not care"


@pytest.mark.parametrize("change", ["key", "fewer", "figure", "column"])
def test_predictions_of_other_records_are_refused(change: str, tmp_path: Path) -> None:
    run, keys = ranked(tmp_path / "run", SCORES), [*KEYS]
    columns: dict[str, Any] = {"key": keys, "tuned:ndcg@10": SCORES}
    if change == "key":
        columns["key"] = [*keys[:-1], "someone else"]
    elif change == "fewer":
        columns = {name: values[:-1] for name, values in columns.items()}
    elif change == "column":
        columns["tuned:mrr"] = columns.pop("tuned:ndcg@10")
    figure = 0.9 if change == "figure" else float(np.mean(columns.get("tuned:ndcg@10", SCORES)))
    found = judged(GATE, run, written(tmp_path / "main", columns, {"ndcg@10": figure}))
    said = {
        "key": "1 of 11 rows here, 11 there, have no partner",
        "fewer": "1 of 11 rows here, 10 there, have no partner",
        "figure": "those of reference give 0.450000, its report says 0.900000",
        "column": "hold no ndcg@10 of reference record by record",
    }
    assert found["error"] and said[change] in found["line"]
    assert "fix: " in found["line"]


def test_what_is_known_is_told_before_scoring(tmp_path: Path) -> None:
    main = ranked(tmp_path, SCORES)
    expressions = [
        "mrr >= 0.1",
        "ndcg@10 >= bm52",
        "ndcg@10[cold_item] >= 0.1",
        "rating:log_loss <= 1",
        "recall@20 >= reference",
        "ndcg@10 >= 0.1",
        "retrieval:ndcg@10 not worse than reference",
        "ndcg@10 not worse than bm25",
    ]
    gates = [parse(expression) for expression in expressions]
    reference = open_reference(main, gates)
    protocol = {"data": "d" * 64, "split": "test"}
    one = Prospect("retrieval", ["ndcg@10", "recall@20"], ["base", "bm25"], protocol)
    with pytest.raises(RecipeError) as caught:
        foresee(gates, reference, [one])
    lines = str(caught.value).splitlines()
    assert [line.split(": ", 1)[0] for line in lines] == [f"gate '{expression}'" for expression in expressions[:5]]
    said = [
        "mrr of tuned was not measured",
        "Did you mean 'bm25'",
        "no slice 'cold_item'",
        "no task 'rating'",
        "of reference",
    ]
    assert all(words in line for words, line in zip(said, lines, strict=True))
    foresee(gates[5:], reference, [one])
    foresee(gates[2:3], reference, [replace(one, slices=["cold_item", "warm_item"])])
    with pytest.raises(RecipeError, match="was scored with split test, this run with valid"):
        foresee(gates[6:], reference, [replace(one, protocol={**protocol, "split": "valid"})])
    with pytest.raises(RecipeError, match="was scored with task retrieval, this run with relevance"):
        foresee([parse("ndcg@10 >= reference")], reference, [replace(one, task="relevance")])
    with pytest.raises(RecipeError, match="--reference FILE"):
        open_reference(None, gates)


def test_each_task_has_its_own_metrics_and_rows() -> None:
    several = [
        Prospect("retrieval", ["ndcg@10"], ["base", "bm25"], {}),
        Prospect("rating", ["mae"], ["base", "mf"], {}),
    ]
    foresee([parse("rating:mae <= mf"), parse("retrieval:ndcg@10 >= bm25"), parse("ndcg@10 >= bm25")], None, several)
    with pytest.raises(RecipeError, match=r"rating:mae <= bm25': there is no row 'bm25'"):
        foresee([parse("rating:mae <= bm25")], None, several)
    with pytest.raises(RecipeError, match="mae of tuned was not measured"):
        foresee([parse("mae <= 1")], None, several)


def test_all_gates_are_judged_and_the_errors_carry_the_report() -> None:
    report: dict[str, Any] = {"tuned": {"auc": 0.7}, "task": "purchase"}
    gates = [parse(expression) for expression in ("auc >= 0.8", "auc >= 0.6", "auc >= 0.9")]
    report["gates"] = judge(gates, report, Path("test.json"))
    assert [gate["passed"] for gate in report["gates"]] == [False, True, False]
    with pytest.raises(GateError) as broken:
        insist(report)
    assert str(broken.value).splitlines() == ["auc = 0.7000 is not >= 0.8", "auc = 0.7000 is not >= 0.9"]
    assert broken.value.report is report  # type: ignore[attr-defined]
    report["gates"] = judge([*gates, parse("auc not worse than base")], report, Path("test.json"))
    with pytest.raises(RecipeError) as unjudged:
        insist(report)
    assert unjudged.value.exit_code == 1
    assert len(str(unjudged.value).splitlines()) == 3
    report["gates"] = judge(gates[1:2], report, Path("test.json"))
    insist(report)
    assert issubclass(GateError, RecftError)
