"""Effects checked by hand on scores that are sums of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft import registry
from recft.data.spans import spans
from recft.data.store import Records
from recft.data.text import words
from recft.tasks._base import Text
from recft.training.explanation import (
    Part,
    explain,
    items_left_out,
    leave_one_out,
    words_left_out,
)

VOCABULARY = ("red", "oak", "chair", "desk", "lamp", "cheap", "红色", "椅子", "☕")


def bag(texts: Sequence[Text]) -> np.ndarray:
    """A model that counts the words it knows: (N, V)."""
    found = np.zeros((len(texts), len(VOCABULARY)), np.float32)
    for row, text in enumerate(texts):
        said = words(text if isinstance(text, str) else " ".join(text))
        found[row] = [said.count(word) for word in VOCABULARY]
    return found


def effects(parts: Sequence[Part], kind: str = "word") -> dict[str, float]:
    return {part.text: part.effect for part in parts if part.kind == kind}


def task(name: str, **settings: Any) -> tuple[Any, Any]:
    member = registry.load("recft.tasks", name)
    return member, member.Config(name=name, **settings)


@pytest.mark.parametrize(
    ("text", "rests"),
    [
        ("red oak chair", ["oak chair", "red chair", "red oak"]),
        ("red, oak; chair", ["oak; chair", "red; chair", "red, oak"]),
        ("红色椅子", ["椅子", "红色"]),
        ("红色，椅子", ["椅子", "红色"]),
        ("red ☕ 0.75L", ["☕ 0.75L", "red 0.75L", "red ☕"]),
        ("chair!", ["!"]),
        ("red", [""]),
        ("", []),
    ],
)
def test_a_text_without_a_word_reads_as_if_it_had_never_stood_there(text: str, rests: list[str]) -> None:
    assert [rest for _, rest in words_left_out(text)] == rests


@given(st.text("ab 红色,;☕", max_size=20))
def test_exactly_one_word_is_gone(text: str) -> None:
    inside = "".join(text[start:end] for start, end in spans(text))
    for part, rest in words_left_out(text):
        assert text[part.start : part.end] == part.text
        left = "".join(rest[start:end] for start, end in spans(rest))
        assert len(left) == len(inside) - len(part.text)


def test_items_are_left_out_and_then_their_words() -> None:
    left = items_left_out(("red oak", "desk"))
    assert [(part.kind, part.text, part.item, rest) for part, rest in left] == [
        ("item", "red oak", 0, ("desk",)),
        ("item", "desk", 1, ("red oak",)),
        ("word", "red", 0, ("oak", "desk")),
        ("word", "oak", 0, ("red", "desk")),
    ]


def test_the_effect_is_the_whole_less_the_rest_in_one_call() -> None:
    asked = []

    def score(texts: Sequence[str]) -> np.ndarray:
        asked.append(list(texts))
        return np.array([[len(text), -text.count("a")] for text in texts])

    first, second = leave_one_out(score, "oak red", words_left_out("oak red"))
    assert asked == [["oak red", "red", "oak"]]
    assert effects(first) == {"oak": 4.0, "red": 4.0}
    assert effects(second) == {"oak": -1.0, "red": 0.0}
    assert leave_one_out(score, "", []) == [[], []]


def test_of_two_towers_every_item_has_its_own_words() -> None:
    member, config = task("retrieval", query_prompt="red find: ", item_prompt="an item: ")
    calls = []

    def encode(texts: Sequence[Text]) -> np.ndarray:
        calls.append(len(texts))
        return bag(texts)

    items = ["red chair", "desk", "oak lamp", "红色椅子"]
    found = explain(member, config, encode, items, [0, 2], "oak oak chair")
    # The prompt's word is no part; the catalogue's other items are not read.
    assert [(part.text, part.effect) for part in found[0]] == [("oak", 0.0), ("oak", 0.0), ("chair", 1.0)]
    assert [part.effect for part in found[1]] == [1.0, 1.0, 0.0]
    assert calls == [4 + 2]
    (chinese,) = explain(member, config, encode, items, [3], "红色椅子☕")
    assert effects(chinese) == {"红色": 1.0, "椅子": 1.0, "☕": 0.0}


def test_the_only_word_of_a_query_leaves_a_text_that_can_be_read() -> None:
    member, config = task("retrieval")
    read: list[Text] = []

    def encode(texts: Sequence[Text]) -> np.ndarray:
        read.extend(texts)
        return bag(texts)

    (parts,) = explain(member, config, encode, ["red"], [0], "red")
    assert effects(parts) == {"red": 1.0}
    assert all(read)


def test_of_a_history_items_and_words_have_effects_and_places() -> None:
    member, config = task("next-item", history_items=2)
    history = ["red chair", "oak desk", "lamp", "oak desk"]
    (parts,) = explain(member, config, bag, ["red oak desk", "lamp"], [0], history)
    # The two newest different ones are read: the last `oak desk`, and the lamp.
    assert [(part.text, part.effect, part.item) for part in parts if part.kind == "item"] == [
        ("lamp", 0.0, 2),
        ("oak desk", 2.0, 3),
    ]
    assert [(part.text, part.effect, part.item) for part in parts if part.kind == "word"] == [
        ("oak", 1.0, 3),
        ("desk", 1.0, 3),
    ]


def test_leaving_an_item_out_lets_no_older_one_in() -> None:
    member, config = task("next-item", history_items=1)
    (parts,) = explain(member, config, bag, ["red oak"], [0], ["red", "oak"])
    assert effects(parts, "item") == {"oak": 1.0}


def test_of_texts_read_together_the_candidate_is_no_part() -> None:
    member, config = task("purchase", before="red: ", between=" | ", after=" ?")

    def encode(texts: Sequence[Text]) -> np.ndarray:
        # A logit for every word of the history that the candidate has too.
        shared = [len(set(words(text[0])) & set(words(text[1]))) for text in texts]
        return np.array(shared, np.float32)[:, None]

    first, second = explain(member, config, encode, ["oak desk", "lamp"], [0, 1], ["red chair", "oak desk"])
    yes = 1 / (1 + np.exp(-np.arange(3.0)))
    assert effects(first, "item") == {"red chair": 0.0, "oak desk": pytest.approx(yes[2] - yes[0])}
    assert effects(first) == {
        "red": 0.0,
        "chair": 0.0,
        "oak": pytest.approx(yes[2] - yes[1]),
        "desk": pytest.approx(yes[2] - yes[1]),
    }
    assert set(effects(second).values()) == {0.0}


def test_an_empty_history_has_no_parts() -> None:
    member, config = task("next-item")
    assert explain(member, config, bag, ["red"], [0], []) == [[]]


def rated(history: Sequence[int], stars: Sequence[float], profile: str = "") -> Records:
    """One record of a user with stars, the second of the data, among another's events."""
    return Records(
        keys=["u"],
        queries=None,
        users=np.array([1], np.int32),
        starts=np.array([2]),
        cuts=np.array([2 + len(history)]),
        times=None,
        offsets=np.array([0, 0]),
        items=np.zeros(0, np.int32),
        grades=np.zeros(0, np.float32),
        log_items=np.array([9, 9, *history], np.int32),
        log_ratings=np.array([1, 1, *stars], np.float32),
        profiles=["another's", profile] if profile else None,
    )


def test_the_texts_are_those_whose_score_is_shown() -> None:
    """A record's stars and its user's profile are in the whole, and with each item its own stars go."""
    member, config = task("purchase", before="", between=" | ", after="", liked_from=3, history_items=3)
    items = ["red chair", "oak desk", "lamp", "mug 🎒"]
    record = rated([0, 1, 0, 2], [5, 1, 2, 4], "红色 fan")
    read: list[Text] = []

    def encode(texts: Sequence[Text]) -> np.ndarray:
        read.extend(texts)
        return np.array([[len(text[0])] for text in texts], np.float32)

    explain(member, config, encode, items, [3], [items[item] for item in [0, 1, 0, 2]], record=record)
    whole = member.pairs(config, record.with_every(4), np.arange(1), items)[3]
    assert read[0] == whole == ("红色 fan. lamp (liked); red chair (disliked); oak desk (disliked)", " | mug 🎒")
    assert [text[0] for text in read[1:4]] == [
        "红色 fan. lamp (liked); red chair (disliked)",
        "红色 fan. lamp (liked); oak desk (disliked)",
        "红色 fan. red chair (disliked); oak desk (disliked)",
    ]
    assert read[4][0] == "红色 fan. lamp (liked); red chair (disliked); desk (disliked)"


def test_without_a_record_nothing_is_liked_or_disliked() -> None:
    member, config = task("purchase", liked_from=3)
    read: list[Text] = []

    def encode(texts: Sequence[Text]) -> np.ndarray:
        read.extend(texts)
        return np.zeros((len(texts), 1), np.float32)

    explain(member, config, encode, ["red"], [0], ["oak"])
    assert read and not any("liked" in text[0] for text in read)


def test_a_query_s_record_changes_nothing() -> None:
    member, config = task("retrieval")
    record = Records(["k"], ["red oak"], None, None, None, None, np.zeros(2, np.int64), *[np.zeros(0)] * 2)  # type: ignore[arg-type]
    with_it = explain(member, config, bag, ["red"], [0], "red oak", record=record)
    assert with_it == explain(member, config, bag, ["red"], [0], "red oak")


def test_what_is_read_is_told_by_place_not_by_words() -> None:
    """The prompt says `oak`, which is an item's text too: the item itself is too old to be read."""
    member, config = task("next-item", history_items=1, score_by="likelihood", before="lamp and oak: ")
    (parts,) = explain(member, config, bag, ["oak"], [0], ["oak", "lamp"])
    assert [(part.text, part.item) for part in parts if part.kind == "item"] == [("lamp", 1)]
