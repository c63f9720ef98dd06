"""The next item by how likely its text is: tuned, scored, written, exported, certified, and recommended alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft.errors import ExportError, RecipeError
from recft.evaluate import evaluate
from recft.export import export
from recft.models.encoder import Encoder
from recft.recipe import Recipe
from recft.recommend import recommend
from recft.run import read_json
from recft.training import assemble
from recft.training.exam import Exam
from recft.training.opened import exam_of, open_run
from recft.training.scoring import Scored, score_model
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]

TASK = {"name": "next-item", "score_by": "likelihood", "before": "history: ", "after": " item: ", "history_items": 4}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 4},
    "prefix": {"name": "prefix", "virtual_tokens": 4},
}


@pytest.fixture(scope="session", params=list(METHODS))
def written_run(
    request: pytest.FixtureRequest, toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A tuned run, and its method."""
    run = tmp_path_factory.mktemp("likelihood") / request.param
    settings = {"max_steps": 6, "eval_every_steps": 6, "max_tokens": 64}
    chosen = {"baselines": ["popularity", "skip-markov"], "metrics": ["ndcg@10", "mrr@10", "invalid@5"]}
    tune(toy_recipe(TASK, "causal", METHODS[request.param], tune=settings, eval=chosen), run)
    return request.param, run


@pytest.fixture(scope="session")
def written_report(written_run: tuple[str, Path]) -> dict[str, Any]:
    return evaluate(written_run[1])


def asked(run: Path, **settings: Any) -> tuple[Exam, Encoder]:
    opened = open_run(run)
    recipe, store = opened.part(None)
    exam = exam_of(recipe, store, "test")
    tuned = assemble.open_adapter(opened.recipe, opened.folder.adapter)
    return dataclasses.replace(exam, settings=exam.settings.model_copy(update=settings)), Encoder(
        tuned.model, tuned.tokenizer
    )


def test_the_report_is_over_the_whole_catalogue(written_report: dict[str, Any]) -> None:
    assert written_report["protocol"]["n_candidates"] == 40
    assert written_report["tuned"]["invalid@5"] == 0, "every item is scored: none is invalid"
    assert {"fused", "fused_without_model"} <= set(written_report)
    assert {"tuned", "popularity", "skip-markov"} <= set(written_report["fusion"]["weights"])
    assert "tuned" not in written_report["fusion"]["weights_without_model"]
    assert written_report["tuned"] != written_report["base"]


def test_scores_are_those_of_each_item_alone(written_run: tuple[str, Path]) -> None:
    exam, encoder = asked(written_run[1])
    bodies = ["history: red chair item: ", "history: 墨盒 item: "]
    every = encoder.catalogue(bodies, exam.items)
    alone = encoder([(body, item) for body in bodies for item in exam.items])[:, 0].reshape(2, 40)
    np.testing.assert_allclose(every, alone, atol=2e-4)


def test_a_wide_beam_finds_what_exact_scoring_ranks_first(written_run: tuple[str, Path]) -> None:
    exact, wide, narrow = (score_model(*asked(written_run[1], decoding=way)) for way in ("exact", "beam 40", "beam 2"))
    assert wide.values == pytest.approx(exact.values, abs=1e-6)
    assert wide.top_scores is not None and exact.top_scores is not None
    np.testing.assert_allclose(wide.top_scores, exact.top_scores, atol=1e-3)
    assert narrow.top is not None and ((narrow.top >= 0).sum(axis=1) <= 2).all()
    assert narrow.values["invalid@5"] == 0, "held to the catalogue"


def test_free_writing_counts_what_is_no_item_as_wrong(written_run: tuple[str, Path]) -> None:
    free: Scored = score_model(*asked(written_run[1], decoding="free 3"))
    assert free.top is not None and (free.top == -2).any(), "a random base writes nonsense"
    assert 0 < free.values["invalid@5"] <= 1
    exact = score_model(*asked(written_run[1]))
    assert free.values["mrr@10"] <= exact.values["mrr@10"] + 0.2


@pytest.mark.parametrize("target", ["merged", "adapter"])
def test_an_export_recommends_what_the_run_does(target: str, written_run: tuple[str, Path], tmp_path: Path) -> None:
    method, run = written_run
    if (method, target) == ("prefix", "merged"):
        with pytest.raises(ExportError, match=r"cannot carry this run \(prefix\)"):
            export(run, target, tmp_path / "out")
        return
    made = export(run, target, tmp_path / "out")
    assert made["serving"]["head"] == "likelihood" and made["certificate"]["verdict"] == "passed"
    assert verify(tmp_path / "out")["certificate"]["verdict"] == "passed"
    for history in (["i3"], ["i0", "i39", "i2", "i2", "i7", "i11"]):
        ours, served = (recommend(place, history=history, top=40) for place in (run, tmp_path / "out"))
        assert {place["item"] for place in ours} == {f"i{number}" for number in range(40)}
        scores = [{place["item"]: place["score"] for place in places} for places in (ours, served)]
        assert scores[1] == pytest.approx(scores[0], abs=1e-3)
        assert [place["score"] for place in served] == pytest.approx([place["score"] for place in ours], abs=1e-3)


def test_the_weights_of_the_sum_travel_with_the_export(
    written_run: tuple[str, Path], written_report: dict[str, Any], tmp_path: Path
) -> None:
    made = export(written_run[1], "adapter", tmp_path / "out")
    assert made["fusion"] == written_report["fusion"]
    assert read_json(tmp_path / "out" / "recft-export.json")["fusion"]["weights"]["tuned"] != 0


def test_a_recommendation_is_what_evaluation_ranked(written_run: tuple[str, Path]) -> None:
    exam, encoder = asked(written_run[1])
    found = score_model(exam, encoder)
    _, store = open_run(written_run[1]).part(None)
    for row in (0, 11):
        history = [store.item_ids[item] for item in exam.records.history(row)]
        places = recommend(written_run[1], history=history, top=5)
        assert found.top_scores is not None
        assert [place["score"] for place in places] == pytest.approx(found.top_scores[row][:5].tolist(), abs=1e-3)


def test_an_encoder_has_no_likelihood(toy_recipe: ToyRecipe) -> None:
    with pytest.raises(RecipeError, match=r"no head for encoder bases.*fix: choose another base or task"):
        assemble.check(toy_recipe(TASK, "encoder"))


@pytest.mark.parametrize("decoding", ["beam", "beam 0", "greedy", "free -1", "exact 3"])
def test_a_wrong_decoding_is_refused(decoding: str, toy_recipe: ToyRecipe) -> None:
    with pytest.raises(RecipeError, match=r"eval\.decoding: "):
        toy_recipe(TASK, "causal", eval={"decoding": decoding})


def test_with_every_position_an_epoch_sees_each_customer_once(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    task = {**TASK, "before": "history:\n", "after": "\n", "positions": "every", "window": "stepped"}
    settings = {"epochs": 1, "max_steps": None, "batch_size": 4, "eval_every_steps": 99, "max_tokens": 64}
    recipe = toy_recipe(task, "causal", METHODS["lora"], tune=settings)
    tune(recipe, tmp_path / "run")
    store = open_run(tmp_path / "run").part(None)[1]
    users = set(store.records("train").keys)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == -(-len(users) // 4)
    assert len(store.records("train")) > len(users), "a customer has one position: nothing is shown"
