"""Texts, batches and records are spoilt reproducibly, and only where they may be."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft import registry
from recft.data.store import Records
from recft.errors import RecipeError
from recft.perturbations._base import Sides, Text, augmented, chosen, spoil
from recft.perturbations._spoilt import augmented_task, spoilt_records, spoilt_task

QUERIES = ["red leather office chair", "红色真皮办公椅", "", "👍🏽", "wireless keyboard for the kitchen"]


def records(queries: list[str] | None) -> Records:
    """Three queries, or three histories over four items."""
    return Records(
        keys=["a", "b", "c"],
        queries=queries,
        users=None,
        starts=None if queries else np.array([0, 0, 2], np.int64),
        cuts=None if queries else np.array([0, 2, 4], np.int64),
        times=None,
        offsets=np.array([0, 1, 2, 3], np.int64),
        items=np.array([0, 1, 2], np.int32),
        grades=np.ones(3, np.float32),
        log_items=None if queries else np.array([3, 1, 0, 2], np.int32),
        log_ratings=None if queries else np.array([5, 5, 1, 5], np.float32),
    )


ITEMS = ["leather sofa", "wooden table", "desk lamp", "办公椅 真皮"]


def test_equal_texts_are_spoilt_equally_in_any_company_and_order() -> None:
    alone = [spoil([text], {"typos": 0.5}, 7)[0] for text in QUERIES]
    assert spoil(QUERIES, {"typos": 0.5}, 7) == alone
    assert spoil(QUERIES[::-1], {"typos": 0.5}, 7) == alone[::-1]
    assert spoil(QUERIES, {"typos": 0.5}, 8) != alone
    assert spoil(QUERIES, {"typos": 0.0}, 7) == QUERIES


def test_another_process_spoils_the_same_way() -> None:
    # Python's hash of a text would not.
    code = "from recft.perturbations._base import spoil; print(spoil(['red leather office chair'], {'typos': 1.0}, 7))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(spoil(["red leather office chair"], {"typos": 1.0}, 7))


def test_names_with_hyphens_and_underscores_are_one() -> None:
    assert spoil(QUERIES, {"word-order": 1.0}, 7) == spoil(QUERIES, {"word_order": 1.0}, 7)


def test_of_a_pair_the_body_alone_is_spoilt() -> None:
    (found,) = spoil([("red leather sofa", "red leather sofa")], {"typos": 1.0}, 0)
    assert found[0] != "red leather sofa"
    assert found[1] == "red leather sofa"


def test_the_recipe_s_own_words_are_kept() -> None:
    prompts = ("", "query: ", "query: find ")
    found = spoil(["query: find red sofa", ("query: red sofa", "x"), "red sofa"], {"word-order": 1.0}, 0, None, prompts)
    assert found == ["query: find sofa red", ("query: sofa red", "x"), "sofa red"]


def test_several_perturbations_come_one_after_the_other() -> None:
    both = spoil(["red sofa, new"], {"dropped-attributes": 1.0, "word-order": 1.0}, 0)
    assert both == ["sofa red"]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(RecipeError, match=r"eval.robustness.typos: .*rule: a number from 0 to 1.*fix"):
        spoil(QUERIES, {"typos": share}, 0)


def test_a_wrong_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'typos'"):
        spoil(QUERIES, {"typo": 0.1}, 0)


@given(st.integers(0, 50), st.floats(0, 1), st.integers(0, 1000))
def test_the_count_of_the_touched_is_the_share_rounded_up_or_down(n: int, share: float, seed: int) -> None:
    found = chosen(n, share, np.random.default_rng(seed))
    assert found == sorted(set(found))
    assert set(found) <= set(range(n))
    assert abs(len(found) - share * n) < 1


def test_a_batch_is_spoilt_by_probability_and_by_its_own_draws() -> None:
    texts = ["red leather sofa"] * 2000
    found = augmented(texts, {"typos": 0.2, "word-order": 0.1}, np.random.default_rng(0), share=1.0)
    again = augmented(texts, {"typos": 0.2, "word-order": 0.1}, np.random.default_rng(0), share=1.0)
    assert found == again
    swapped = sum(text in ("leather red sofa", "red sofa leather") for text in found)
    spoilt = sum(text != "red leather sofa" for text in found)
    assert swapped == pytest.approx(200, abs=45)
    assert spoilt == pytest.approx(600, abs=70)


def test_only_the_texts_named_are_spoilt_and_prompts_are_kept() -> None:
    texts: list[Text] = ["q: red sofa", "red sofa", ("red sofa", "red sofa")]
    found = augmented(
        texts, {"word-order": 1.0}, np.random.default_rng(0), 1.0, prompts=["q: "], which=np.array([0, 2, 2])
    )
    assert found == ["q: sofa red", "red sofa", ("sofa red", "red sofa")]
    assert texts[0] == "q: red sofa"


@pytest.mark.parametrize("probabilities", [{"typos": 1.1}, {"typos": 0.6, "word-order": 0.6}, {"typos": -0.5}])
def test_probabilities_that_are_none_are_refused(probabilities: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"tune.augment\.(typos|together): .*from 0 to 1"):
        augmented(["a"], probabilities, np.random.default_rng(0))


def test_of_a_conversation_what_the_user_says_is_spoilt() -> None:
    said = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "where order"}]
    text = json.dumps(said)
    for found in (spoil([text], {"word-order": 1.0}, 0)[0], *augmented([text], {"word-order": 1.0}, rng(), 1.0)):
        assert isinstance(found, str)
        assert json.loads(found) == [said[0], {"role": "user", "content": "order where"}]
    assert spoil(['[{"a', '[{"role": "user"}]'], {"dropped-attributes": 1.0}, 0) == ['[{"a', '[{"role": "user"}]']


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("sides", ["contexts", "items", "both"])
def test_queries_and_items_are_spoilt_where_asked_for(sides: Sides) -> None:
    clean = records(["red chair", "oak table", "red chair"])
    task = registry.load("recft.tasks", "retrieval")
    config = task.Config(name="retrieval", query_prompt="find the: ", item_prompt="an item: ")
    spoilt = spoilt_task(task, {"word-order": 1.0}, 0, sides)
    assert spoilt.output == task.output
    queries = ["red chair", "oak table"] if sides == "items" else ["chair red", "table oak"]
    rows = np.array([1, 0])
    assert spoilt.contexts(config, clean, rows, ITEMS) == [f"find the: {query}" for query in queries[::-1]]
    items = ITEMS if sides == "contexts" else ["sofa leather", "table wooden", "lamp desk"]
    assert spoilt.candidates(config, ITEMS)[:3] == [f"an item: {text}" for text in items[:3]]
    assert clean.queries == ["red chair", "oak table", "red chair"]


@pytest.mark.parametrize("sides", ["contexts", "items", "both"])
def test_histories_are_spoilt_apart_from_candidates(sides: Sides) -> None:
    clean = records(None)
    task = registry.load("recft.tasks", "purchase")
    config = task.Config(name="purchase", before="newest first: ", between="|", after="|yes or no", liked_from=3)
    spoilt = spoilt_task(task, {"word-order": 1.0}, 0, sides)
    found = spoilt.pairs(config, clean, np.array([2, 0]), ITEMS)
    history = ["desk lamp (liked)", "leather sofa (disliked)"]
    if sides != "items":
        history = ["lamp desk (liked)", "sofa leather (disliked)"]
    candidates = ["desk lamp", "leather sofa"] if sides == "contexts" else ["lamp desk", "sofa leather"]
    assert found[0] == ("newest first: " + "; ".join(history), f"|{candidates[0]}|yes or no")
    assert found[1] == ("newest first: ", f"|{candidates[1]}|yes or no")
    if sides == "items":
        assert task.pairs(config, clean, np.array([2]), ["", "", *ITEMS[2:]])[0][0].startswith("newest first: desk")
    assert clean.log_items is not None and clean.log_items.max() == 3


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=4), st.data())
def test_without_a_change_the_records_read_the_same(histories: list[list[int]], data: st.DataObject) -> None:
    bounds = np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64)
    n = len(histories)
    clean = replace(
        records(None),
        keys=[str(row) for row in range(n)],
        starts=bounds[:-1],
        cuts=bounds[1:],
        offsets=np.arange(n + 1, dtype=np.int64),
        items=np.zeros(n, np.int32),
        grades=np.ones(n, np.float32),
        log_items=np.array([item for history in histories for item in history], np.int32),
        log_ratings=None,
    )
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=4)), int)
    part, items = spoilt_records(clean, rows, ITEMS, lambda text: text, "contexts")
    read = [[items[item] for item in part.history(place)] for place in range(len(rows))]
    assert read == [[ITEMS[item] for item in histories[row]] for row in rows]
    assert list(items[:4]) == ITEMS
    assert list(items) == ITEMS * 2
    with pytest.raises(IndexError):
        items[8]


@pytest.mark.parametrize("sides", ["contexts", "items", "both"])
def test_a_training_batch_is_spoilt_where_asked_for(sides: Sides) -> None:
    clean = records(["red chair", "oak table", "red chair"])
    task = registry.load("recft.tasks", "retrieval")
    config = task.Config(name="retrieval", query_prompt="find the: ", item_prompt="an item: ")
    wrapped = augmented_task(task, {"word-order": 1.0}, 1.0, sides)
    batch = wrapped.batch(config, clean, np.array([0, 1]), ITEMS, rng())
    queries = ["red chair", "oak table"] if sides == "items" else ["chair red", "table oak"]
    items = ["leather sofa", "wooden table"] if sides == "contexts" else ["sofa leather", "table wooden"]
    assert list(batch.texts) == [*(f"find the: {text}" for text in queries), *(f"an item: {text}" for text in items)]
    plain = task.batch(config, clean, np.array([0, 1]), ITEMS, rng())
    for name, values in plain.arrays.items():
        np.testing.assert_array_equal(batch.arrays[name], values)


def test_of_a_batch_of_histories_the_contexts_are_spoilt_and_prompts_kept() -> None:
    clean = replace(records(None), log_ratings=None)
    towers = registry.load("recft.tasks", "next-item")
    config = towers.Config(name="next-item", query_prompt="what next: ")
    batch = augmented_task(towers, {"dropped-attributes": 1.0}, 1.0).batch(config, clean, np.array([2]), ITEMS, rng())
    assert list(batch.texts) == ["what next: desk lamp", "desk lamp"]
    pairs = registry.load("recft.tasks", "purchase")
    told = pairs.Config(name="purchase", before="newest first: ", between="|", after="|")
    batch = augmented_task(pairs, {"dropped-attributes": 1.0}, 1.0).batch(told, clean, np.array([2]), ITEMS, rng())
    assert list(batch.texts) == [("newest first: desk lamp", "|desk lamp|")]


def test_wrong_settings_are_refused_before_any_batch() -> None:
    task = registry.load("recft.tasks", "retrieval")
    with pytest.raises(RecipeError, match=r"tune\.augment\.typos"):
        augmented_task(task, {"typos": 2.0})
    with pytest.raises(RecipeError, match="Did you mean 'synonyms'"):
        spoilt_task(task, {"synonym": 0.1}, 0)


def test_where_the_product_stands_first_the_query_is_still_what_is_spoilt() -> None:
    clean = replace(records(["red chair", "oak table", "red chair"]), grades=np.array([2, 0, 1], np.float32))
    task = registry.load("recft.tasks", "relevance")
    for first in (False, True):
        config = task.Config(name="relevance", before="an item: ", between="for a: ", after="", query_first=first)
        expected = [("for a: chair red", "an item: leather sofa"), ("for a: table oak", "an item: wooden table")]
        rows = np.array([0, 1])
        for found in (
            spoilt_task(task, {"word-order": 1.0}, 0).pairs(config, clean, rows, ITEMS),
            augmented_task(task, {"word-order": 1.0}, 1.0).batch(config, clean, rows, ITEMS, rng()).texts,
        ):
            assert list(found) == [text if first else text[::-1] for text in expected]
