"""The exam: the same candidates for every system, gains, masks, judged places, lists, classes and likelihoods."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from exam_toys import exam, records, table
from hypothesis import given
from hypothesis import strategies as st

from recft.errors import ModelError
from recft.metrics._base import Lists
from recft.registry import load
from recft.training import exam as exam_module
from recft.training import scoring
from recft.training.block_ranking import candidates_of
from recft.training.exam import System, classic_system, corrected, few_records, model_system, places
from recft.training.scoring import score, score_all

DRAW = np.random.default_rng(0)


def ndcg(scores: np.ndarray, grades: dict[int, float], candidates: Sequence[int], cutoff: int = 10) -> float:
    """NDCG of scores without ties, the slow way."""
    order = sorted(candidates, key=lambda item: -scores[item])[:cutoff]
    dcg = sum(grades.get(item, 0) / np.log2(place + 2) for place, item in enumerate(order))
    kept = sorted((grade for item, grade in grades.items() if item in candidates and grade > 0), reverse=True)
    best = sum(grade / np.log2(place + 2) for place, grade in enumerate(kept[:cutoff]))
    return float(dcg / best) if best else float("nan")


def shop(n_records: int = 6, n_items: int = 30, seed: int = 0) -> tuple[Any, np.ndarray, list[dict[int, float]]]:
    """Records with graded items, a table of scores, and the grades again."""
    rng = np.random.default_rng(seed)
    grades = [
        {int(item): float(rng.integers(0, 4)) for item in rng.choice(n_items, 5, replace=False)}
        for _ in range(n_records)
    ]
    histories = [rng.choice(n_items, 6, replace=False).tolist() for _ in range(n_records)]
    own = records([list(one.items()) for one in grades], histories=histories)
    return own, rng.normal(size=(n_records, n_items)).astype(np.float32), grades


# -- rankings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", ["linear", "exponential"])
@pytest.mark.parametrize("mask", [False, True])
def test_ndcg_is_the_slow_one_under_every_rule(gain: str, mask: bool) -> None:
    own, scores, grades = shop()
    asked = exam(own, 30, ["ndcg@10"], settings={"gain": gain, "mask_history": mask})
    found = score(asked, table(own, scores)).per_record["ndcg@10"]

    def worth(grade: float) -> float:
        return 2.0**grade - 1 if gain == "exponential" else grade

    for row, one in enumerate(grades):
        candidates = [item for item in range(30) if not (mask and item in own.history(row))]
        expected = ndcg(scores[row], {item: worth(grade) for item, grade in one.items()}, candidates)
        assert found[row] == pytest.approx(expected, nan_ok=True)


def test_records_are_scored_alike_however_they_fall_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    own, scores, _ = shop(n_records=17)
    asked = exam(own, 30, ["ndcg@10", "recall@5", "judged@5", "coverage@5"], settings={"mask_history": True})
    whole = score(asked, table(own, scores))
    monkeypatch.setattr(exam_module, "BLOCK_SCORES", 70)
    monkeypatch.setattr(exam_module, "LEAST_ROWS", 1)
    parts = score(asked, table(own, scores))
    assert parts.values == pytest.approx(whole.values)
    assert parts.top is not None and whole.top is not None and np.array_equal(parts.top, whole.top)
    assert parts.ranks is not None and whole.ranks is not None
    assert np.array_equal(parts.ranks.pairs, whole.ranks.pairs)


def test_what_is_computed_ahead_is_not_what_is_hidden_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum reads its members' blocks in one thread while another hides histories in those of the part before."""
    own, scores, _ = shop(n_records=120)
    asked = exam(own, 30, ["ndcg@10", "recall@5"], settings={"mask_history": True})
    threads: set[str] = set()

    def computed(_records: Any, part: np.ndarray) -> Any:
        threads.add(threading.current_thread().name)
        return scores[part]

    one, other = classic_system(asked, computed), classic_system(asked, lambda _, part: scores[part][:, ::-1])
    assert one.block is not None and other.block is not None
    total = System(lambda part: one.block(part) + other.block(part), one.pairs)  # type: ignore[misc]
    systems = {"one": one, "sum": total, "other": other}
    monkeypatch.setattr(exam_module, "BLOCK_SCORES", 30)
    monkeypatch.setattr(exam_module, "LEAST_ROWS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ahead = score_all(asked, systems)
    assert any(name.startswith("next-batch") for name in threads)
    threads.clear()
    monkeypatch.setattr(scoring, "AHEAD_BYTES", 0)
    alone = score_all(asked, systems)
    assert threads == {threading.current_thread().name}
    for name in systems:
        assert ahead[name].values == alone[name].values
        assert np.array_equal(ahead[name].top, alone[name].top)  # type: ignore[arg-type]


def sampled(asked: Any, part: np.ndarray) -> list[list[int]]:
    columns = candidates_of(asked, part).columns
    assert columns is not None
    return [[item for item in row if item < len(asked.items)] for row in columns.tolist()]


def test_every_system_meets_the_same_sampled_candidates() -> None:
    own, scores, grades = shop(n_records=8, n_items=60)
    asked = exam(own, 60, ["ndcg@10"], candidates="sampled 10")
    seen = sampled(asked, np.arange(8))
    assert seen == sampled(asked, np.arange(8))
    assert sampled(asked, np.array([5, 6])) == seen[5:7], "a record's candidates do not depend on its block"
    for row, one in enumerate(grades):
        kept = set(seen[row])
        assert set(one) <= kept and 10 <= len(kept) <= 10 + len(one)
        assert score(asked, table(own, scores)).per_record["ndcg@10"][row] == pytest.approx(
            ndcg(scores[row], one, sorted(kept)), nan_ok=True
        )
    assert len(set(map(tuple, seen))) == 8, "each record has candidates of its own"


def test_sampling_more_than_there_are_is_ranking_all() -> None:
    own, scores, _ = shop()
    every = score(exam(own, 30, ["ndcg@10"]), table(own, scores)).values
    assert score(exam(own, 30, ["ndcg@10"], candidates="sampled 99"), table(own, scores)).values == every


def test_a_masked_target_is_none() -> None:
    own = records([[(2, 1.0)], [(3, 1.0)]], histories=[[2, 4], [4]])
    asked = exam(own, 6, ["ndcg@10", "mrr@10"], settings={"mask_history": True})
    found = score(asked, table(own, np.tile(np.arange(6.0), (2, 1))))
    assert (found.n, found.left_out) == (1, 1)
    assert np.isnan(found.per_record["ndcg@10"][0]) and found.per_record["mrr@10"][1] == pytest.approx(1 / 2)
    assert found.top is not None and 4 not in found.top[1] and 2 not in found.top[0]
    assert found.top[0].tolist() == [5, 3, 1, 0, -1, -1]


def test_a_record_without_a_relevant_candidate_is_left_out_of_every_mean() -> None:
    own = records([[(0, 0.0), (1, 0.0)], [(2, 2.0)]])
    for candidates in ("all", "judged"):
        found = score(exam(own, 4, ["ndcg@10", "recall@2"], candidates=candidates), table(own, np.zeros((2, 4))))
        assert (found.n, found.left_out) == (1, 1)
        assert found.values["ndcg@10"] == found.per_record["ndcg@10"][1]


def test_judged_at_k_counts_every_judgement() -> None:
    own = records([[(0, 0.0), (1, 2.0)], [(3, 1.0)]])
    scores = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    found = score(exam(own, 4, ["judged@2", "ndcg@10"]), table(own, scores)).per_record["judged@2"]
    assert found.tolist() == [1.0, 0.0]
    pairs = score(exam(own, 4, ["judged@2", "ndcg@10"], candidates="judged"), table(own, scores))
    assert pairs.per_record["judged@2"].tolist() == [1.0, 0.5]


def test_metrics_of_lists_read_the_exam_s_popularity() -> None:
    own = records([[(0, 1.0)], [(1, 1.0)]])
    scores = np.array([[9.0, 8, 7, 6, 5], [5, 6, 7, 8, 9]])
    popularity = np.array([90, 50, 20, 3, 1])
    names = ["novelty@2", "coverage@2", "tail_share@2", "ndcg@10"]
    found = score(exam(own, 5, names, popularity=popularity), table(own, scores))
    top = np.array([[0, 1], [4, 3]])
    assert found.top is not None and np.array_equal(found.top[:, :2], top)
    for name in ("novelty", "coverage", "tail_share"):
        expected = load("recft.metrics", name).lists(Lists(top, popularity, ["item"] * 5), 2)
        if isinstance(expected, np.ndarray):
            assert found.per_record[f"{name}@2"] == pytest.approx(expected)
            expected = np.nanmean(expected)
        assert found.values[f"{name}@2"] == pytest.approx(float(expected)), name
    assert "coverage@2" not in found.per_record


def test_a_deep_metric_of_lists_keeps_enough_places() -> None:
    own = records([[(0, 1.0)]])
    found = score(exam(own, 40, ["coverage@30"], popularity=np.ones(40, int), top=3), table(own, np.zeros((1, 40))))
    assert found.top is not None and found.top.shape == (1, 30) and found.values["coverage@30"] == 30 / 40


@given(st.integers(0, 10_000))
def test_top_places_are_the_best_items_by_number_where_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = records([[(0, 1.0)]] * 3)
    scores = rng.integers(0, 4, size=(3, 12)).astype(np.float32)
    scores[0, :5] = -np.inf
    found = score(exam(own, 12, ["ndcg@10"], top=9), table(own, scores))
    assert found.top is not None and found.top_scores is not None
    for row in range(3):
        order = sorted(range(12), key=lambda item: (-scores[row, item], item))
        expected = [item if np.isfinite(scores[row, item]) else -1 for item in order[:9]]
        assert found.top[row].tolist() == expected or sorted(
            scores[row, found.top[row][found.top[row] >= 0]]
        ) == sorted(scores[row, [item for item in expected if item >= 0]])
        assert (np.diff(found.top_scores[row][found.top[row] >= 0]) <= 0).all()


def test_a_score_that_is_no_number_is_refused() -> None:
    own = records([[(0, 1.0)]])
    with pytest.raises(ModelError, match="not a number"):
        score(exam(own, 2, ["ndcg@10"]), table(own, np.array([[np.nan, 1.0]])))


# -- systems ----------------------------------------------------------------------------------------------------------


class Numbers:
    """A model of towers that knows each text's vector."""

    def __init__(self, size: int = 4) -> None:
        self.size, self.calls = size, 0

    def __call__(self, texts: Sequence[Any]) -> np.ndarray:
        self.calls += 1
        seeds = [sum(map(ord, "|".join(text) if isinstance(text, tuple) else text)) for text in texts]
        return np.array([np.random.default_rng(seed).normal(size=self.size) for seed in seeds], np.float32)


def agree(system: System, own: Any) -> None:
    """Pairs are the blocks' own entries, for any rows in any order."""
    assert system.block is not None
    for rows in (np.arange(len(own)), np.array([2, 0, 1]), np.array([1]), np.zeros(0, int)):
        owners = np.repeat(np.arange(len(rows)), np.diff(own.offsets)[rows])
        pairs = system.pairs(rows)
        assert len(pairs) == len(owners)
        if len(rows):
            np.testing.assert_allclose(pairs, system.block(rows)[owners, own.items[places(own, rows)]], rtol=1e-5)


@pytest.mark.parametrize("how", ["towers", "pairs"])
def test_pairs_and_blocks_of_a_model_agree(how: str) -> None:
    own, _, _ = shop()
    asked = exam(own, 30, ["ndcg@10"], how=how)
    encoder = Numbers()
    system = model_system(asked, encoder)
    before = encoder.calls
    agree(system, own)
    assert encoder.calls == before, "all outputs are there before the model changes"
    judged = model_system(dataclasses.replace(asked, candidates="judged"), encoder)
    assert judged.block is None
    for rows in (np.arange(len(own)), np.array([3, 1])):
        np.testing.assert_allclose(judged.pairs(rows), system.pairs(rows), rtol=1e-5)


def test_pairs_and_blocks_of_a_classic_row_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    own, scores, _ = shop()
    system = classic_system(exam(own, 30, ["ndcg@10"]), lambda _, rows: scores[rows])
    agree(system, own)
    monkeypatch.setattr(exam_module, "BLOCK_SCORES", 60)
    monkeypatch.setattr(exam_module, "LEAST_ROWS", 1)
    agree(system, own)
    assert system.probabilities is False


def test_towers_are_products() -> None:
    own, _, _ = shop()
    asked, encoder = exam(own, 30, ["ndcg@10"]), Numbers()
    contexts = encoder([f"context {key}" for key in own.keys])
    found = model_system(asked, encoder)
    assert found.block is not None
    np.testing.assert_allclose(found.block(np.arange(6)), contexts @ encoder(asked.items).T, rtol=1e-5)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_places_are_those_of_the_rows(sizes: list[int], data: st.DataObject) -> None:
    own = records([[(item, 1.0) for item in range(size)] for size in sizes])
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=6))
    expected = [place for row in rows for place in range(own.offsets[row], own.offsets[row + 1])]
    assert places(own, np.array(rows, int)).tolist() == expected


def test_few_records_are_spread_over_the_split() -> None:
    own, _, _ = shop(n_records=50)
    small = few_records(exam(own, 30, ["ndcg@10"]), 7)
    assert len(small.records) == len(set(small.records.keys)) == 7
    assert small.records.keys[0] == "k0" and small.records.keys[-1] == "k49"
    assert few_records(small, 7) is small


# -- scored pairs -----------------------------------------------------------------------------------------------------


def test_yes_and_no_are_scored_by_pair_and_clustered_by_key() -> None:
    own = records([[(0, 1.0), (1, 0.0)], [(2, 0.0)], [(1, 3.0)]], keys=["用户", "b", "用户"])
    scores = np.array([[0.9, 0.2, 0.5], [0.5, 0.5, 0.4], [0.5, 0.7, 0.5]])
    asked = exam(own, 3, ["auc", "log_loss"], "labels", how="pairs")
    found = score(asked, table(own, scores))
    assert found.labels is not None and found.labels.labels.tolist() == [1, 0, 0, 1]
    assert found.labels.scores.tolist() == [0.9, 0.2, 0.4, 0.7]
    assert found.labels.groups[0] == found.labels.groups[1] == found.labels.groups[3] != found.labels.groups[2]
    assert found.values["auc"] == 1.0 and found.n == 4 and found.pairs is not None
    assert found.values["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.6, 0.7]).mean())
    order = score(asked, table(own, scores, probabilities=False))
    assert np.isnan(order.values["log_loss"]) and order.values["auc"] == 1.0


def test_numbers_are_scored_against_numbers() -> None:
    own = records([[(0, 4.0)], [(1, 0.5)]])
    found = score(exam(own, 2, ["rmse", "mae"], "values", how="pairs"), table(own, np.array([[3.0, 0], [0, 1.5]])))
    assert found.values == pytest.approx({"rmse": 1.0, "mae": 1.0})


def test_classes_are_scored_against_the_right_one_and_texts_without_one_left_out() -> None:
    own = records([[(2, 1.0)], [(1, 0.0)], [(0, 0.0), (1, 1.0)]])
    chances = np.array([[0.2, 0.3, 0.5], [1.0, 0, 0], [0.6, 0.3, 0.1]])
    asked = exam(own, 3, ["accuracy", "macro_f1"], "classes", how="contexts")
    found = score(asked, table(own, chances))
    assert found.labels is not None and found.labels.labels.tolist() == [2, 1]
    assert found.labels.scores.tolist() == [chances[0].tolist(), chances[2].tolist()]
    assert found.values["accuracy"] == 0.5 and found.n == 2
    assert found.pairs is not None and found.pairs.tolist() == [0, 3]


def test_a_likelihood_is_of_right_replies_alone() -> None:
    own = records([[(0, 1.0), (1, 0.0)], [(1, 1.0)]])
    outputs = np.array([[-4.0, 2], [-9, 3], [-6, 3]])
    system = System(None, lambda rows: outputs)
    found = score(exam(own, 2, ["nll", "perplexity"], "likelihood", how="pairs"), system)
    assert found.n == 2 and found.values["nll"] == pytest.approx(10 / 5)
    assert found.values["perplexity"] == pytest.approx(np.exp(2))


def test_a_correction_reaches_blocks_and_pairs() -> None:
    own, scores, _ = shop()
    system = corrected(table(own, scores), lambda found: found * 2)
    assert system.block is not None
    np.testing.assert_array_equal(system.block(np.array([1])), scores[[1]] * 2)
    np.testing.assert_array_equal(system.pairs(np.array([1])), table(own, scores).pairs(np.array([1])) * 2)
    assert corrected(System(None, table(own, scores).pairs), np.negative).block is None


# -- likelihoods of a catalogue ---------------------------------------------------------------------------------------


class Writer(Numbers):
    """A model that says or writes items."""

    def __init__(self, every: np.ndarray, items: np.ndarray | None = None, values: np.ndarray | None = None) -> None:
        super().__init__()
        self.every, self.items, self.values = every, items, values
        self.asked: list[tuple[int, bool]] = []

    def catalogue(self, bodies: Sequence[str], tails: Sequence[str]) -> np.ndarray:
        assert len(bodies) == len(self.every) and tails[0] == "item 0"
        return self.every

    def generated(self, bodies: Any, tails: Any, beams: int, free: bool) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((beams, free))
        assert self.items is not None and self.values is not None
        return self.items, self.values


OWN = records([[(4, 1.0)], [(1, 1.0)], [(2, 1.0)]])
EVERY = np.log(np.array([[0.1, 0.1, 0.1, 0.2, 0.5], [0.6, 0.1, 0.1, 0.1, 0.1], [0.3, 0.1, 0.2, 0.2, 0.2]], np.float32))


def test_exact_decoding_is_the_whole_catalogue() -> None:
    writer = Writer(EVERY)
    asked = exam(OWN, 5, ["mrr@10"], how="pairs")
    system = model_system(asked, writer)
    agree(system, OWN)
    assert system.block is not None and np.array_equal(system.block(np.arange(3)), EVERY)
    assert system.invalid is None and writer.asked == [] and writer.calls == 0


def test_a_beam_s_items_stand_first_and_what_it_did_not_write_last() -> None:
    items = np.array([[4, 3], [0, 2], [0, -1]])
    values = np.array([[-0.7, -1.6], [-0.5, -2.3], [-1.2, -np.inf]], np.float32)
    writer = Writer(EVERY, items, values)
    asked = exam(OWN, 5, ["mrr@10", "ndcg@2"], how="pairs", settings={"decoding": "beam 2"})
    system = model_system(asked, writer)
    agree_finite = system.block(np.arange(3)) if system.block else np.zeros(0)
    assert np.isneginf(agree_finite).sum() == 15 - 5
    found = score(asked, system)
    assert writer.asked == [(2, False)] and system.invalid is None
    assert found.top is not None and found.top.tolist() == [[4, 3, -1, -1, -1], [0, 2, -1, -1, -1], [0, -1, -1, -1, -1]]
    assert found.per_record["mrr@10"][0] == 1.0
    assert found.per_record["ndcg@2"][1] == 0.0, "not written, and both places are taken"
    assert found.per_record["ndcg@2"][2] > 0, "one of four left takes the second place by chance"


def test_an_invalid_output_takes_a_place() -> None:
    items = np.array([[-2, 4, 3], [1, -2, -2], [-2, -2, -2]])
    values = np.array([[-0.1, -0.7, -1.6], [-0.5, -0.9, -2.3], [-1.0, -1.2, -1.3]], np.float32)
    writer = Writer(EVERY, items, values)
    names = ["mrr@10", "ndcg@3", "invalid@3", "hr@3"]
    asked = exam(OWN, 5, names, how="pairs", settings={"decoding": "free 3"})
    found = score(asked, model_system(asked, writer))
    assert writer.asked == [(3, True)]
    assert found.per_record["mrr@10"][:2].tolist() == [0.5, 1.0], "what was no item stood first"
    assert found.per_record["invalid@3"].tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert found.per_record["hr@3"].tolist() == [1.0, 1.0, 0.0]
    assert found.top is not None
    assert found.top[:, :3].tolist() == [[-2, 4, 3], [1, -2, -2], [-2, -2, -2]]
    plain = exam(OWN, 5, names[:2], how="pairs", settings={"decoding": "free 3", "mask_history": True})
    assert score(plain, model_system(plain, writer)).values["mrr@10"] == pytest.approx(found.values["mrr@10"])
