"""Weighted sums: against a slow optimiser, and what they do with noise, silence and few records."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exam_toys import exam, records, table
from hypothesis import given
from hypothesis import strategies as st

from recft.errors import ModelError
from recft.metrics._ranks import ranks_of_pairs
from recft.metrics.ndcg import MEMBER as NDCG
from recft.training import fusion
from recft.training.ascent import ascend
from recft.training.exam import Exam, System
from recft.training.fusion import Fusion, fit_fusion
from recft.training.scoring import score
from recft.training.sum_weights import PRIOR_RECORDS, conditional, logistic, moments

Systems = dict[str, System]


def ranking(n_records: int, n_items: int, strengths: list[float], seed: int = 0, **more: Any) -> tuple[Exam, Systems]:
    """Records of one target each, and systems that know of it more or less."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(n_items, size=n_records)
    histories = [[int(target + 1) % n_items] for target in targets]
    own = records([[(int(target), 1.0)] for target in targets], histories=histories)
    systems = {}
    for number, strength in enumerate(strengths):
        scores = rng.normal(size=(n_records, n_items)) * rng.choice([0.1, 1.0, 10.0])
        scores[np.arange(n_records), targets] += strength * scores.std()
        systems[f"s{number}"] = table(own, scores + 100 * number)
    return exam(own, n_items, ["mrr@10"], **more), systems


def pairs(n: int, strengths: list[float], output: str, seed: int = 0) -> tuple[Exam, Systems]:
    """One pair a record, yes or no or a number."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n) * 2
    grades = (truth > 0).astype(float) if output == "labels" else 3 + truth
    own = records([[(0, float(grade))] for grade in grades])
    systems = {}
    for number, strength in enumerate(strengths):
        noisy = strength * truth + rng.normal(size=n)
        scores = 1 / (1 + np.exp(-noisy)) if output == "labels" else 3 + noisy
        systems[f"s{number}"] = table(own, scores[:, None])
    names = ["log_loss"] if output == "labels" else ["rmse"]
    return exam(own, 1, names, output, how="pairs"), systems


def classes(n: int, strengths: list[float], seed: int = 0) -> tuple[Exam, Systems]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(3, size=n)
    own = records([[(int(right), 1.0)] for right in truth])
    systems = {}
    for number, strength in enumerate(strengths):
        logits = rng.normal(size=(n, 3))
        logits[np.arange(n), truth] += strength
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        systems[f"s{number}"] = table(own, chances)
    return exam(own, 3, ["accuracy"], "classes", how="contexts"), systems


# -- against a slow reference -----------------------------------------------------------------------------------------


def least(loss: Callable[[torch.Tensor], torch.Tensor], start: np.ndarray) -> np.ndarray:
    """Where a loss is least, by LBFGS on torch's gradients."""
    weights = torch.tensor(start, requires_grad=True, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-11, tolerance_change=1e-14
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return np.asarray(weights.detach().numpy())


def z(scores: np.ndarray) -> np.ndarray:
    return np.asarray((scores - scores.mean()) / scores.std())


def log_rank(scores: np.ndarray) -> np.ndarray:
    """Minus the log of 10 + how many are above, half of the equal ones among them."""
    above = [sum(other > one for other in scores) + (sum(other == one for other in scores) - 1) / 2 for one in scores]
    return np.asarray(-np.log(np.array(above) + 10))


def softmax_weights(groups: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """The weights of a softmax over candidates: one for all first, then each drawn to it."""
    size = groups[0][0].shape[1]
    tensors = [(torch.tensor(features), target) for features, target in groups]

    def unlikely(weights: torch.Tensor) -> torch.Tensor:
        each: torch.Tensor = torch.stack([torch.log_softmax(f @ weights, dim=0)[t] for f, t in tensors])
        return -each.sum()

    def common(weight: torch.Tensor) -> torch.Tensor:
        pull: torch.Tensor = PRIOR_RECORDS * size / 2 * ((weight - 1 / size) ** 2).sum()
        return unlikely(weight.expand(size)) + pull

    middle = torch.tensor(least(common, np.ones(1) / size))
    return least(lambda w: unlikely(w) + PRIOR_RECORDS / 2 * ((w - middle) ** 2).sum(), np.full(size, middle.item()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mask", [False, True])
def test_a_ranking_s_weights_are_the_slow_optimiser_s(seed: int, mask: bool) -> None:
    asked, systems = ranking(30, 12, [1.5, 0.5, -0.5], seed, settings={"mask_history": mask})
    own, groups = asked.records, []
    for row in range(30):
        blocks = [system.block(np.array([row]))[0] for system in systems.values() if system.block]
        features = np.stack([*map(z, blocks), *map(log_rank, blocks)], axis=1)
        kept = [item for item in range(12) if not (mask and item in own.history(row))]
        groups.append((features[kept], kept.index(int(own.items[row]))))
    found = fit_fusion(asked, systems)
    assert list(found.weights) == ["s0", "s1", "s2", "s0:rank", "s1:rank", "s2:rank"]
    assert found.n == 30 and found.intercept == 0
    assert list(found.weights.values()) == pytest.approx(softmax_weights(groups), abs=1e-4)


def test_judged_candidates_are_standardised_among_themselves() -> None:
    rng = np.random.default_rng(3)
    grades = [[(0, 3.0), (4, 0.0), (2, 1.0), (7, 0.0)], [(1, 2.0), (3, 0.0)], [(5, 0.0), (6, 1.0), (2, 0.0)]] * 6
    own = records(grades)
    scores = [rng.normal(size=(18, 8)) for _ in range(2)]
    for row, one in enumerate(grades):
        for item, grade in one:
            scores[0][row, item] += grade
    systems = {f"s{number}": table(own, block) for number, block in enumerate(scores)}
    asked = exam(own, 8, ["ndcg@10"], candidates="judged", how="pairs")
    found = fit_fusion(asked, systems)
    features = [
        np.stack([z(block[row, [item for item, _ in one]]) for block in scores], axis=1)
        for row, one in enumerate(grades)
    ]
    flat, worth = np.concatenate(features), np.array([grade for one in grades for _, grade in one])

    def values(weights: np.ndarray) -> np.ndarray:
        assert NDCG.ranking is not None
        return NDCG.ranking(ranks_of_pairs(flat @ weights, worth, own.offsets), 10)

    weights = np.array(list(found.weights.values()))
    np.testing.assert_allclose(weights, ascend(values, 2))
    assert weights[0] > 0.8, "the system that knows the grades has most of the weight"
    fused = found.system(asked, systems)
    assert fused.block is None
    np.testing.assert_allclose(fused.pairs(np.array([1])), features[1] @ weights)


@pytest.mark.parametrize("seed", range(4))
def test_labels_weights_are_the_slow_optimiser_s(seed: int) -> None:
    asked, systems = pairs(60, [1.0, 0.3], "labels", seed)
    chances = np.stack([system.pairs(np.arange(60)) for system in systems.values()], axis=1)
    features, truth = torch.tensor(np.log(chances / (1 - chances))), torch.tensor(asked.records.grades).double()

    def loss(weights: torch.Tensor) -> torch.Tensor:
        summed = features @ weights[:2] + weights[2]
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(summed, truth, reduction="sum")
        return entropy + PRIOR_RECORDS / 2 * ((weights[:2] - 0.5) ** 2).sum()

    expected = least(loss, np.array([0.5, 0.5, 0]))
    found = fit_fusion(asked, systems)
    assert [*found.weights.values(), found.intercept] == pytest.approx(expected, abs=1e-4)
    fused = found.system(asked, systems)
    summed = features.numpy() @ expected[:2] + expected[2]
    np.testing.assert_allclose(fused.pairs(np.arange(60)), 1 / (1 + np.exp(-summed)), atol=1e-4)
    assert fused.probabilities and fused.block is None


@pytest.mark.parametrize("seed", range(3))
def test_values_weights_are_the_slow_optimiser_s(seed: int) -> None:
    asked, systems = pairs(50, [0.8, 0.2], "values", seed)
    features = torch.tensor(np.stack([system.pairs(np.arange(50)) for system in systems.values()], axis=1))
    truth = torch.tensor(asked.records.grades).double()

    def loss(weights: torch.Tensor) -> torch.Tensor:
        off = features @ weights[:2] + weights[2] - truth
        return (off**2).sum() / 2 + PRIOR_RECORDS / 2 * ((weights[:2] - 0.5) ** 2).sum()

    expected = least(loss, np.array([0.5, 0.5, 0]))
    found = fit_fusion(asked, systems)
    assert [*found.weights.values(), found.intercept] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(
        found.system(asked, systems).pairs(np.arange(50)), features.numpy() @ expected[:2] + expected[2], atol=1e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_classes_weights_are_the_slow_optimiser_s(seed: int) -> None:
    asked, systems = classes(40, [2.0, 0.3], seed)
    groups = []
    for row in range(40):
        blocks = [np.log(system.block(np.array([row]))[0]) for system in systems.values() if system.block]
        groups.append((np.stack(blocks, axis=1), int(asked.records.items[row])))
    expected = softmax_weights(groups)
    found = fit_fusion(asked, systems)
    assert list(found.weights.values()) == pytest.approx(expected, abs=1e-4)
    fused = found.system(asked, systems)
    assert fused.block is not None and fused.probabilities
    chances = fused.block(np.arange(40))
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    raw = np.exp(groups[7][0] @ expected)
    np.testing.assert_allclose(chances[7], raw / raw.sum(), atol=1e-4)


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 5.0, 30.0]), st.sampled_from([-20.0, -5.0, 0.0, 5.0]))
def test_a_sure_and_wrong_system_does_not_lead_the_fit_astray(seed: int, width: float, shift: float) -> None:
    """Newton's own steps go to and fro here: at the end the gradient must be nothing."""
    rng = np.random.default_rng(seed)
    n, size = int(rng.integers(3, 120)), int(rng.integers(1, 4))
    truth = (rng.random(n) < rng.random()).astype(float)
    features = np.clip(rng.normal(size=(n, size)) * width + (truth[:, None] - 0.5) * shift, -13.8, 13.8)
    found = logistic(features, truth)
    wide = np.c_[features, np.ones(n)]
    pull = np.r_[PRIOR_RECORDS * (found[:-1] - 1 / size), 1e-6 * found[-1]]
    gradient = wide.T @ (1 / (1 + np.exp(-np.clip(wide @ found, -60, 60))) - truth) + pull
    assert np.abs(gradient).max() < 1e-3 * max(1.0, np.abs(features).max())


@given(st.integers(0, 10_000), st.sampled_from([-8.0, -3.0, 0.0, 2.0, 8.0]))
def test_a_ranking_s_fit_ends_where_nothing_pulls(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    size, n_items = int(rng.integers(1, 5)), int(rng.integers(2, 25))
    groups = []
    for _ in range(int(rng.integers(1, 40))):
        features, target = rng.normal(size=(n_items, size)), int(rng.integers(n_items))
        features[target] += shift
        z_scores = (features - features.mean(0)) / features.std(0)
        groups.append((z_scores, np.eye(n_items)[target], rng.random(n_items)))
    found = conditional(groups, size)
    # The prior's middle is one number, so that only what is common to all weights can be left of the pull.
    pull = moments(groups, found)[1] + PRIOR_RECORDS * found
    assert np.ptp(pull) < 1e-4 * max(1.0, np.abs(pull).max())
    assert np.isfinite(found).all()


# -- what it does -----------------------------------------------------------------------------------------------------


def test_noise_gets_next_to_nothing() -> None:
    for make, strengths, metric in (
        (ranking, [2.5, 0.0], "mrr@10"),
        (lambda n, *rest: pairs(2 * n, rest[-1], "labels"), [3.0, 0.0], "log_loss"),
        (lambda n, *rest: pairs(2 * n, rest[-1], "values"), [1.0, 0.0], "rmse"),
        (lambda n, *rest: classes(n, rest[-1]), [3.0, 0.0], "accuracy"),
    ):
        asked, systems = make(300, 30, strengths)
        found = fit_fusion(asked, systems)
        assert abs(found.weights["s1"]) < 0.12 * found.weights["s0"], asked.task.output
        alone = fit_fusion(asked, {"s0": systems["s0"]}).system(asked, systems)
        both, one = (score(asked, system).values[metric] for system in (found.system(asked, systems), alone))
        assert both == pytest.approx(one, abs=0.02), asked.task.output


def test_two_good_systems_beat_either() -> None:
    asked, systems = ranking(400, 40, [1.5, 1.5])
    found = fit_fusion(asked, systems)
    later, others = ranking(400, 40, [1.5, 1.5], seed=9)
    values = {name: score(later, system).values["mrr@10"] for name, system in others.items()}
    fused = score(later, found.system(later, others)).values["mrr@10"]
    assert fused > max(values.values()) + 0.05
    assert found.weights["s0"] == pytest.approx(found.weights["s1"], rel=0.3)


def test_one_system_alone_keeps_its_order() -> None:
    asked, systems = ranking(25, 15, [1.0])
    found = fit_fusion(asked, systems)
    alone, fused = score(asked, systems["s0"]), score(asked, found.system(asked, systems))
    assert fused.values == alone.values and alone.top is not None
    assert fused.top is not None and np.array_equal(fused.top, alone.top)


def test_blocks_and_pairs_of_a_sum_agree() -> None:
    for asked, systems in (ranking(9, 7, [1.0, 0.5]), classes(9, [1.0, 0.5])):
        fused = fit_fusion(asked, systems).system(asked, systems)
        rows = np.array([4, 1, 8])
        assert fused.block is not None
        np.testing.assert_allclose(fused.pairs(rows), fused.block(rows)[np.arange(3), asked.records.items[rows]])
        assert fused.block(rows[:0]).shape[0] == 0 == len(fused.pairs(rows[:0]))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_records_throw_nobody_out(n: int) -> None:
    for seed in range(20):
        asked, systems = ranking(n, 20, [1.5, 1.5], seed)
        weights = fit_fusion(asked, systems).weights
        one, two = weights["s0"], weights["s1"]
        assert one > 0 and two > 0, seed
        assert abs(one - two) < 0.3 * np.sqrt(n) + 0.1, (seed, one, two)


def test_one_record_that_all_get_wrong_does_not_turn_orders_round() -> None:
    # The target stands last for both: the likeliest common weight is endlessly far below nothing.
    own = records([[(0, 1.0)]])
    scores = np.arange(20.0)[None]
    systems = {"a": table(own, scores), "b": table(own, scores**2)}
    asked = exam(own, 20, ["mrr@10"])
    assert all(abs(weight) < 0.5 for weight in fit_fusion(asked, systems).weights.values())
    assert fit_fusion(asked, {"a": systems["a"]}).weights["a"] > -0.5


def test_a_few_classes_that_are_all_right_do_not_become_certain() -> None:
    own = records([[(0, 1.0)]] * 10)
    chances = np.tile([0.7, 0.2, 0.1], (10, 1))
    systems = {"a": table(own, chances), "b": table(own, chances)}
    asked = exam(own, 3, ["accuracy"], "classes", how="contexts")
    fused = fit_fusion(asked, systems).system(asked, systems)
    assert fused.block is not None
    assert 0.7 < fused.block(np.array([0]))[0, 0] < 0.97


def test_what_was_never_scored_stands_as_low_as_the_lowest() -> None:
    asked, systems = ranking(40, 10, [2.0, 1.0])
    whole = systems["s1"]
    assert whole.block is not None
    cut = whole.block(np.arange(40)).copy()
    lowest = np.sort(cut, axis=1)[:, 4:5]
    floored = np.maximum(cut, lowest)
    cut[cut < lowest] = -np.inf
    np.testing.assert_allclose(fusion._standard(cut, axis=1), fusion._standard(floored, axis=1))
    with_it = systems | {"s1": table(asked.records, cut)}
    found = fit_fusion(asked, with_it)
    assert np.isfinite(list(found.weights.values())).all()
    fused = found.system(asked, with_it)
    assert fused.block is not None and np.isfinite(fused.block(np.arange(40))).all()


@pytest.mark.parametrize("value", [-np.inf, 0.0, 0.1, 7.3e5])
def test_a_system_that_says_nothing_changes_no_order(value: float) -> None:
    asked, systems = ranking(30, 11, [1.5])
    with_it = systems | {"silent": table(asked.records, np.full((30, 11), value))}
    fused = fit_fusion(asked, with_it).system(asked, with_it)
    alone = fit_fusion(asked, systems).system(asked, systems)
    assert score(asked, fused).values == score(asked, alone).values == score(asked, systems["s0"]).values
    assert fused.block is not None and np.isfinite(fused.block(np.arange(30))).all()


def test_masked_items_are_no_candidates_of_the_fit() -> None:
    # A system that points at what was just bought: worthless where that cannot be recommended, harmless to the other.
    asked, systems = ranking(120, 15, [1.0], settings={"mask_history": True})
    bought = np.zeros((120, 15))
    bought[np.arange(120), [asked.records.history(row)[0] for row in range(120)]] = 1.0
    with_it = systems | {"again": table(asked.records, bought)}
    found = fit_fusion(asked, with_it)
    open_exam = exam(asked.records, 15, ["mrr@10"])
    assert fit_fusion(open_exam, with_it).weights["again"] < 0.2 * found.weights["s0"]
    alone = score(asked, systems["s0"]).values["mrr@10"]
    assert score(asked, found.system(asked, with_it)).values["mrr@10"] == pytest.approx(alone)


def test_records_without_a_target_are_left_out() -> None:
    own = records([[(0, 0.0)], [(1, 1.0), (2, 0.0)], [(2, 1.0)]], histories=[[0], [0], [2]])
    scores = np.random.default_rng(0).normal(size=(3, 5))
    systems = {"a": table(own, scores), "b": table(own, -scores)}
    assert fit_fusion(exam(own, 5, ["mrr@10"]), systems).n == 2
    assert fit_fusion(exam(own, 5, ["mrr@10"], settings={"mask_history": True}), systems).n == 1
    nothing = fit_fusion(exam(own.take(np.array([0])), 5, ["mrr@10"]), systems)
    assert nothing.n == 0 and set(nothing.weights.values()) == {1.0}


def test_a_large_split_is_fitted_on_fewer_records(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, systems = ranking(300, 10, [2.0, 0.0])
    monkeypatch.setattr(fusion, "MOST_RECORDS", 60)
    found = fit_fusion(asked, systems)
    assert found.n == 60 and abs(found.weights["s1"]) < 0.4 * found.weights["s0"]


def test_a_system_is_asked_for_its_own_pairs_where_records_bring_candidates() -> None:
    asked, systems = pairs(20, [1.0], "labels")
    no_blocks = {name: System(None, system.pairs) for name, system in systems.items()}
    found = fit_fusion(asked, no_blocks)
    assert len(found.system(asked, no_blocks).pairs(np.array([3, 5]))) == 2
    ranked, others = ranking(5, 4, [1.0])
    with pytest.raises(ModelError, match=r"score of every item.*fix: set eval.candidates: all"):
        fit_fusion(ranked, {name: System(None, system.pairs) for name, system in others.items()})


def test_an_order_beside_probabilities_is_made_comparable() -> None:
    own = records([[(0, 1.0), (1, 0.0), (2, 0.0)]] * 80)
    rng = np.random.default_rng(0)
    counts = rng.normal(size=(80, 3)) * 1000 + np.array([1500.0, 0, 0])
    chance = np.full((80, 3), 0.4)
    asked = exam(own, 3, ["log_loss"], "labels", how="pairs")
    systems = {"model": table(own, chance), "popularity": table(own, counts, probabilities=False)}
    found = fit_fusion(asked, systems)
    fused = found.system(asked, systems)
    assert found.weights["popularity"] > 0.5
    values = score(asked, fused).values["log_loss"]
    assert values < score(asked, systems["model"]).values["log_loss"] - 0.1


def test_the_sum_without_the_model_never_asks_it() -> None:
    asked, systems = ranking(30, 10, [1.0, 1.0])

    def never(rows: np.ndarray) -> np.ndarray:
        raise AssertionError("the model was read")

    without = fit_fusion(asked, {"s1": systems["s1"]})
    fused = without.system(asked, {"tuned": System(never, never), "s1": systems["s1"]})
    assert score(asked, fused).values == score(asked, systems["s1"]).values


def test_weights_are_told_by_name_not_by_place() -> None:
    asked, systems = ranking(30, 10, [2.0, 0.0])
    found = fit_fusion(asked, systems)
    turned = dict(reversed(systems.items()))
    one, other = found.system(asked, systems), found.system(asked, turned)
    assert one.block is not None and other.block is not None
    np.testing.assert_array_equal(one.block(np.arange(30)), other.block(np.arange(30)))
    assert isinstance(found, Fusion)


def test_a_sample_of_a_catalogue_gives_nearly_the_weights_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, systems = ranking(150, 900, [2.5, 1.5])
    few = fit_fusion(asked, systems).weights
    monkeypatch.setattr(fusion, "BEST_OF_EACH", 900)
    whole = fit_fusion(asked, systems).weights
    for name, weight in whole.items():
        assert few[name] == pytest.approx(weight, abs=0.25 * max(map(abs, whole.values()))), (few, whole)


# -- as it is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: ranking(12, 9, [1.5, 0.5, -0.5]), lambda: classes(12, [1.0, 0.5, 0.0])])
def test_a_block_is_the_stacked_terms_times_their_weights(make: Callable[[], tuple[Exam, Systems]]) -> None:
    asked, systems = make()
    found = fit_fusion(asked, systems)
    rows = np.array([7, 0, 3, 3])
    stacked = []
    for name in found.weights:
        block = systems[name.removesuffix(":rank")].block
        assert block is not None
        scores = block(rows)
        compute = np.log if asked.task.output == "classes" else log_rank if name.endswith(":rank") else z
        stacked.append(np.stack([compute(row) for row in scores]))
    summed = np.stack(stacked, axis=-1) @ np.array(list(found.weights.values()))
    if asked.task.output == "classes":
        summed = np.exp(summed) / np.exp(summed).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fusion._stack(asked, systems, rows), np.stack(stacked, axis=-1), rtol=1e-9)
    fused = found.system(asked, systems)
    assert fused.block is not None
    np.testing.assert_allclose(fused.block(rows), summed, rtol=1e-9)


def test_a_block_holds_the_terms_of_one_system_at_a_time() -> None:
    n_systems, n_records, n_items = 12, 40, 2000
    asked, systems = ranking(n_records, n_items, [1.0] * n_systems)
    found = Fusion({name: 1.0 for one in systems for name in (one, f"{one}:rank")}, 0.0, 1)
    fused = found.system(asked, systems)
    assert fused.block is not None
    tracemalloc.start()
    try:
        fused.block(np.arange(n_records))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * n_records * n_items * 8, "stacked they are 24 terms of 8 bytes, and as many again"


def test_an_order_of_one_candidate_a_record_tells_something() -> None:
    """Within a record of one candidate every count is the mean."""
    rng = np.random.default_rng(1)
    truth = rng.random(200) < 0.5
    own = records([[(0, float(grade))] for grade in truth])
    counts = (rng.normal(size=200) + 2 * truth)[:, None] * 50 + 1000
    systems = {"popularity": table(own, counts, probabilities=False), "model": table(own, np.full((200, 1), 0.5))}
    asked = exam(own, 1, ["auc", "log_loss"], "labels", how="pairs")
    found = fit_fusion(asked, systems)
    scored = score(asked, found.system(asked, systems)).values
    assert scored["auc"] == pytest.approx(score(asked, systems["popularity"]).values["auc"]) and scored["auc"] > 0.85
    assert scored["log_loss"] < 0.6
    assert found.scales == {"popularity": pytest.approx((counts.mean(), counts.std(), counts.min()))}


def test_a_scale_is_validation_s_whatever_is_scored() -> None:
    counts = np.array([[10.0], [20.0], [-np.inf], [30.0], [12.0], [28.0]])
    own = records([[(0, float(row % 2))] for row in range(6)])
    asked = exam(own, 1, ["auc"], "labels", how="pairs")
    systems = {"count": table(own, counts, probabilities=False)}
    found = fit_fusion(asked, systems)
    filled = np.where(np.isfinite(counts), counts, 10.0)[:, 0]
    later = records([[(0, 1.0)], [(0, 0.0)], [(0, 0.0)]])
    test = exam(later, 1, ["auc"], "labels", how="pairs")
    others = {"count": table(later, np.array([[100.0], [np.nan], [20.0]]), probabilities=False)}
    fused = found.system(test, others)
    expected = (np.array([100.0, 10.0, 20.0]) - filled.mean()) / filled.std() * found.weights["count"] + found.intercept
    chances = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(fused.pairs(np.arange(3)), chances)
    # A record by itself as among others.
    np.testing.assert_allclose(np.concatenate([fused.pairs(np.array([row])) for row in range(3)]), chances)


@pytest.mark.parametrize("value", [0.1, -np.inf, 0.0])
def test_an_order_that_says_nothing_has_no_part_in_yes_and_no(value: float) -> None:
    asked, systems = pairs(40, [1.0], "labels")
    with_it = systems | {"silent": table(asked.records, np.full((40, 1), value), probabilities=False)}
    one, other = fit_fusion(asked, systems), fit_fusion(asked, with_it)
    assert np.isfinite(list(other.weights.values())).all()
    changed = table(asked.records, np.full((40, 1), 3.0), probabilities=False)
    found = [
        one.system(asked, systems).pairs(np.arange(40)),
        other.system(asked, with_it).pairs(np.arange(40)),
        other.system(asked, with_it | {"silent": changed}).pairs(np.arange(40)),
    ]
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(np.argsort(found[0]), np.argsort(found[1]))
