"""Texts on one side: what is alike or of one group is not divided, and every label is learned."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data.audit import audit_texts
from recft.data.labels import text_records
from recft.data.store import SPLITS, Records, Split
from recft.data.text_splits import shared_texts, split_texts
from recft.data.texts import Texts
from recft.errors import DataError, RecipeError
from recft.schema import SplitSettings


def texts_of(
    rows: list[tuple[str, int]],
    files: list[str] | None = None,
    groups: list[str] | None = None,
    given: tuple[Split, ...] = (),
    target: str = "label",
) -> Texts:
    """Texts of (text, label number)."""
    keys = [text for text, _ in rows]
    frame = pl.DataFrame(
        {
            "file": pl.Series(files or ["train"] * len(rows), dtype=pl.String),
            "text": pl.Series(keys, dtype=pl.String),
            "text_key": pl.Series(keys, dtype=pl.String),
            "key": pl.Series(groups or keys, dtype=pl.String),
        }
    )
    labels = np.array([label for _, label in rows], np.int32)
    names = [f"label {number}" for number in range(int(labels.max(initial=0)) + 1)]
    offsets, grades = np.arange(len(rows) + 1), np.ones(len(rows), np.float32)
    key: Literal["group", "text"] = "group" if groups else "text"
    return Texts(frame, offsets, labels, grades, names, target, key, (), given)


rows = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 3)), min_size=1, max_size=60)
shares = st.sampled_from([0.0, 0.1, 0.3])


@given(rows, shares, shares, st.integers(0, 3), st.sampled_from([None, 2, 5]), st.booleans())
def test_nothing_is_divided_and_every_label_is_learned(
    rows: list[tuple[str, int]], valid: float, test: float, seed: int, folds: int | None, labelled: bool
) -> None:
    texts = texts_of(rows, target="label" if labelled else "reply")
    settings = SplitSettings(valid=valid, test=test, seed=seed, folds=folds, fold=(folds or 1) - 1)
    try:
        draft, _ = split_texts(texts, settings)
    except DataError as error:
        assert "no record in" in str(error)  # too little data is the one thing that may be said
        return
    assert sorted(np.concatenate(list(draft.values())).tolist()) == list(range(len(rows)))
    sides = [{rows[row][0] for row in draft[split].tolist()} for split in SPLITS]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    if labelled:
        assert {label for _, label in rows} == {rows[row][1] for row in draft["train"].tolist()}
    audit_texts({split: text_records(texts, draft[split]) for split in SPLITS}, (), grouped=False)
    assert not shared_texts(texts, draft)


def test_labels_are_drawn_evenly() -> None:
    rows = [(f"text {number}", int(number % 10 == 0)) for number in range(500)]
    draft, card = split_texts(texts_of(rows), SplitSettings(valid=0.2, test=0.2))
    for split, rare in (("train", 30), ("valid", 10), ("test", 10)):
        assert abs(sum(rows[row][1] for row in draft[split].tolist()) - rare) <= 1  # type: ignore[index]
    assert card == {"by": "query", "seed": 0}
    # Drawn, not taken in order; and another seed draws others.
    assert np.diff(draft["test"]).std() > 2
    other, _ = split_texts(texts_of(rows), SplitSettings(valid=0.2, test=0.2, seed=1))
    assert other["test"].tolist() != draft["test"].tolist()


def test_folds_cover_every_text_once() -> None:
    rows = [(f"text {number}", number % 3) for number in range(50)]
    tests = [split_texts(texts_of(rows), SplitSettings(folds=5, fold=fold))[0]["test"] for fold in range(5)]
    assert sorted(np.concatenate(tests).tolist()) == list(range(50))
    assert {len(test) for test in tests} == {10}


def test_folds_of_replies_are_those_of_queries() -> None:
    order = np.arange(23)
    np.random.default_rng(0).shuffle(order)
    texts = texts_of([(f"text {number}", number) for number in range(23)], target="reply")
    draft, _ = split_texts(texts, SplitSettings(folds=5, fold=2))
    assert sorted(draft["test"].tolist()) == sorted(order[2::5].tolist())


def test_a_label_of_one_text_stays_in_training_and_is_told() -> None:
    rows = [(f"text {number}", 0) for number in range(40)] + [("only", 1)]
    for seed in range(20):
        draft, card = split_texts(texts_of(rows), SplitSettings(valid=0.4, test=0.4, seed=seed))
        assert 40 in draft["train"]
        if card.get("kept_in_training"):
            return
    raise AssertionError("the only text of its label was never drawn")


def test_groups_stay_together() -> None:
    rows = [("hi" if number % 3 else f"text {number}", 0) for number in range(60)]
    groups = [f"talk {number // 4}" for number in range(60)]
    texts = texts_of(rows, groups=groups, target="reply")
    draft, _ = split_texts(texts, SplitSettings(valid=0.2, test=0.2))
    for one in draft.values():
        assert len(one) % 4 == 0
    # The same greeting in several conversations is no leak of ours, and is told.
    assert shared_texts(texts, draft)["train and test"] == {"texts": 1, "rows of test": 8}
    assert not shared_texts(texts, draft, "key")
    files = ["train"] * 58 + ["test"] * 2
    halved = texts_of(rows, files, groups, ("test",), "reply")
    draft_, _ = split_texts(halved, SplitSettings(valid=0))
    assert shared_texts(halved, draft_, "key") == {"train and test": {"groups": 1, "rows of test": 2}}
    records: dict[Split, Records] = {split: text_records(texts, draft[split]) for split in SPLITS}
    audit_texts(records, (), grouped=True)
    with pytest.raises(DataError, match=r"leakage audit.*'hi' in train and in valid.*one normalised text"):
        audit_texts(records, (), grouped=False)
    records["test"] = text_records(texts, np.r_[draft["test"], draft["train"][:1]])
    with pytest.raises(DataError, match=r"'talk \d+' in train and in test; 1 such.*one group is in one split"):
        audit_texts(records, (), grouped=True)
    given: tuple[Split, ...] = ("test",)
    audit_texts(records, given, grouped=True)


def test_given_files_are_the_splits_and_what_they_share_is_told() -> None:
    rows = [("a", 0), ("b", 1), ("c", 0), ("a", 0), ("a", 1), ("z", 1)]
    files = ["train", "train", "train", "valid", "test", "test"]
    texts = texts_of(rows, files, given=("valid", "test"))
    draft, card = split_texts(texts, SplitSettings(valid=0, test=0))
    assert [draft[split].tolist() for split in SPLITS] == [[0, 1, 2], [3], [4, 5]]
    assert card == {"by": "file", "seed": 0, "given": ["valid", "test"]}
    one = {"texts": 1, "rows of valid": 1}
    assert shared_texts(texts, draft) == {
        "train and valid": one,
        "train and test": {"texts": 1, "rows of test": 1},
        "valid and test": {"texts": 1, "rows of test": 1},
    }


def test_a_missing_validation_file_is_cut_from_training() -> None:
    rows = [(f"text {number % 25}", number % 2) for number in range(50)] + [("t", 0), ("text 1", 1)]
    texts = texts_of(rows, ["train"] * 50 + ["test"] * 2, given=("test",))
    draft, card = split_texts(texts, SplitSettings(valid=0.2, test=0.9))
    assert draft["test"].tolist() == [50, 51]
    assert len(draft["valid"]) == 10 and len(draft["train"]) == 40 and card["by"] == "file"
    assert not {rows[row] for row in draft["valid"].tolist()} & {rows[row] for row in draft["train"].tolist()}


@pytest.mark.parametrize("given", [("test",), ("valid", "test")])
def test_a_label_that_training_has_never_seen_is_named(given: Any) -> None:
    rows = [(f"text {number}", number % 2) for number in range(30)] + [("v", 0), ("t", 2), ("u", 2), ("w", 3)]
    files = ["train"] * 30 + (["valid"] if "valid" in given else ["test"]) + ["test"] * 3
    with pytest.raises(DataError) as error:
        split_texts(texts_of(rows, files, given=given), SplitSettings())
    assert "data.texts.label: test has 'label 2' (2), 'label 3' (1), training has not" in str(error.value)
    # Replies may well be new.
    split_texts(texts_of(rows, files, given=given, target="reply"), SplitSettings())


def test_what_leaves_nothing_is_refused() -> None:
    rows = [(f"text {number}", 0) for number in range(10)]
    with pytest.raises(RecipeError, match="their sum is below 1"):
        split_texts(texts_of(rows), SplitSettings(valid=0.5, test=0.5))
    with pytest.raises(DataError, match="no record in"):
        split_texts(texts_of(rows[:1], target="reply"), SplitSettings())
    with pytest.raises(DataError, match=r"no record in test \(train 10, valid 0, test 0\)"):
        split_texts(texts_of(rows, given=("test",), target="reply"), SplitSettings(valid=0, test=0))
