"""Lists with reasons, from run folders and exports, for towers and for texts read together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft.errors import DataError, RecipeError
from recft.export import export
from recft.recipe import Recipe
from recft.recommend import _open, recommend, recommend_file
from recft.run import silent
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]


def test_an_empty_query_is_refused(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--query: '  '.*fix: "):
        recommend(tmp_path / "run", query="  ")


def parts(place: dict[str, Any], kind: str) -> dict[str, float]:
    return {part["text"]: part["effect"] for part in place["explanation"]["parts"] if part["kind"] == kind}


def test_a_query_s_words_are_explained_alike_by_a_run_and_its_export(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe(task={"name": "retrieval", "query_prompt": "find: "})
    tune(recipe, tmp_path / "run")
    export(tmp_path / "run", "merged", tmp_path / "export")
    query = "black desk 打印机 🎒"
    ours, served = (recommend(tmp_path / name, query=query, top=4, explain=2) for name in ("run", "export"))
    plain = recommend(tmp_path / "run", query=query, top=4)
    assert [place | {"explanation": None} for place in ours[:2]] == [
        place | {"explanation": None} for place in plain[:2]
    ]
    assert ours[2:] == plain[2:]
    for one, other in zip(ours[:2], served[:2], strict=True):
        assert one["explanation"]["method"] == "leave-one-out"
        words = parts(one, "word")
        assert list(words) == ["black", "desk", "打印", "机", "🎒"]
        assert any(words.values())
        assert parts(other, "word") == pytest.approx(words, abs=1e-3)
        # Each effect is what asking without the word shows.
        without = recommend(tmp_path / "run", query="black 打印机 🎒", top=40)
        score = next(place["score"] for place in without if place["item"] == one["item"])
        assert words["desk"] == pytest.approx(one["score"] - score, abs=1e-4)
    json.dumps(ours, allow_nan=False)


@pytest.mark.parametrize(("task", "kind"), [("next-item", "encoder"), ("purchase", "causal")])
def test_a_history_s_items_and_words_are_explained(task: str, kind: str, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe(task=task, kind=kind), tmp_path / "run")
    history = ["i3", "i0", "i3"]
    places = recommend(tmp_path / "run", history=history, top=2, explain=3)
    assert len(places) == 2
    for place in places:
        items = [part for part in place["explanation"]["parts"] if part["kind"] == "item"]
        assert [part["item"] for part in items] == ["i0", "i3"]
        assert [part["title"] for part in items] == ["red chair 0", "ＯＡＫ 打印机 墨盒 0"]
        assert {part["item"] for part in place["explanation"]["parts"] if part["kind"] == "word"} == {"i0", "i3"}
        for part in items:
            rest = [item for item in history if item != part["item"]]
            without = recommend(tmp_path / "run", history=rest, top=40)
            score = next(other["score"] for other in without if other["item"] == place["item"])
            assert part["effect"] == pytest.approx(place["score"] - score, abs=1e-4)
    (place,) = recommend(tmp_path / "run", user="u0", top=1, explain=1)
    assert parts(place, "item")


def test_a_user_is_ranked_for_as_tuning_has_read_users(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    """Stars and profile belong to what a model reads: without them every user would be a stranger."""
    recipe = toy_recipe(task={"name": "rating", "history_items": 3})
    tune(recipe, tmp_path / "run")
    ranker = _open(tmp_path / "run")
    assert ranker.store is not None and ranker.store.log is not None
    log = ranker.store.log
    user = ranker.store.user_ids[int(log.users[0])]
    records = ranker.records([("user", user)])
    assert log.ratings is not None and records.log_ratings is not None
    assert records.log_ratings.tolist() == log.ratings[log.users == log.users[0]].tolist()
    text = ranker.task.pairs(ranker.config, records.with_every(1), np.arange(1), ranker.texts)[0]
    assert "no ratings yet" not in text[0]
    assert recommend(tmp_path / "run", user=user, top=2)
    with pytest.raises(RecipeError, match=r"--history.*rating.*--user"):
        recommend(tmp_path / "run", history=["i0"])
    with pytest.raises(RecipeError, match="--explain"):
        recommend(tmp_path / "run", user=user, explain=1)


def test_marks_of_liked_items_are_read_with_users_and_refused_with_ids(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    """Ids come without stars: a model of marked histories has never read such a text."""
    tune(toy_recipe(task={"name": "purchase", "liked_from": 4}, tune={"max_steps": 2}), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"--history.*no stars.*purchase.*--user"):
        recommend(tmp_path / "run", history=["i0"])
    table = tmp_path / "wanted.csv"
    table.write_text('history\n"i0,i3"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"--history.*no stars"):
        recommend_file(tmp_path / "run", table, tmp_path / "lists.parquet")
    ranker, read = _open(tmp_path / "run"), list[Any]()
    assert ranker.store is not None
    user = ranker.store.user_ids[0]

    def encode(texts: Any) -> np.ndarray:
        read.extend(texts)
        return ranker.encode(texts)

    why = replace(ranker, encode=encode).explain("user", user, [5])
    # What is explained is the text that was ranked, marks and all; with an item its own mark goes.
    records = ranker.records([("user", user)]).with_every(len(ranker.ids))
    whole = ranker.task.pairs(ranker.config, records, np.arange(1), ranker.texts)[5]
    assert read[0] == whole and "liked)" in whole[0]
    items = [part for part in why[0]["parts"] if part["kind"] == "item"]
    assert items and all(text[0].count("liked)") == whole[0].count("liked)") - 1 for text in read[1 : 1 + len(items)])


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("next-item", "encoder"),
        ("purchase", "encoder"),
        ({"name": "next-item", "score_by": "likelihood", "before": "history: ", "after": " item: "}, "causal"),
    ],
)
def test_many_users_are_ranked_for_as_each_alone(
    task: Any, kind: str, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(toy_recipe(task=task, kind=kind, tune={"max_steps": 2}), tmp_path / "run")
    ranker = _open(tmp_path / "run")
    assert ranker.store is not None and ranker.store.log is not None
    users = ranker.store.user_ids[:7]
    log = ranker.store.log
    for user in users:
        mine = log.items[log.users == ranker.store.user_ids.index(user)]
        assert ranker._bought(user) == mine.tolist(), "a user's events are found without reading the whole log"
    module = sys.modules["recft.recommend"]  # the package gives the function of that name
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 80)
    together = ranker.rank([("user", user) for user in users], 5, silent)
    for user, (items, scores) in zip(users, together, strict=True):
        ((alone, own),) = ranker.rank([("user", user)], 40, silent)
        np.testing.assert_allclose(scores, own[:5], atol=1e-5)
        assert (np.diff(own) <= 0).all() and len(set(alone.tolist())) == 40
        assert items.tolist() == alone[:5].tolist() or np.abs(np.diff(own[:6])).min() < 1e-5
