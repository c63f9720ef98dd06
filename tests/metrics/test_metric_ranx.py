"""Without ties, ranking metrics equal ranx; slow, because ranx compiles itself on first use."""

from __future__ import annotations

import numpy as np
import pytest

from recft import registry
from recft.metrics._ranks import gains, ranks_of_pairs

R, C = 30, 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # numba and ir_datasets warn about their own dependencies
def test_equals_ranx() -> None:
    import ranx

    rng = np.random.default_rng(4)
    scores = rng.permuted(np.tile(np.arange(C) / C, (R, 1)), axis=1)
    grades = rng.choice([0, 0, 1, 2], size=(R, C))
    grades[:, 3] = 1
    qrels = ranx.Qrels({f"{r}": {f"{c}": int(g) for c, g in enumerate(row) if g} for r, row in enumerate(grades)})
    run = ranx.Run({f"{r}": {f"{c}": float(s) for c, s in enumerate(row)} for r, row in enumerate(scores)})
    measures = {"ndcg@10": "ndcg@10", "hr@2": "hit_rate@2", "recall@5": "recall@5", "precision@5": "precision@5"}
    measures |= {"mrr@2": "mrr@2", "map": "map"}
    expected = ranx.evaluate(qrels, run, [*measures.values(), "ndcg_burges@10"])
    ranks = ranks_of_pairs(scores.ravel(), grades.ravel(), np.arange(R + 1) * C)
    for ours, theirs in measures.items():
        name, _, cutoff = ours.partition("@")
        found = registry.load("recft.metrics", name).ranking(ranks, int(cutoff) if cutoff else None).mean()
        assert found == pytest.approx(expected[theirs], rel=1e-9), ours
    ranks = ranks_of_pairs(scores.ravel(), gains(grades.ravel(), "exponential"), np.arange(R + 1) * C)
    found = registry.load("recft.metrics", "ndcg").ranking(ranks, 10).mean()
    assert found == pytest.approx(expected["ndcg_burges@10"], rel=1e-9)
