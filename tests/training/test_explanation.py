"""Effects checked by hand on scores that are sums of words, and by their own theorem on a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft import registry
from recft.data.spans import spans
from recft.data.text import words
from recft.tasks._base import Text
from recft.training.explanation import (
    Part,
    explain,
    integrated_gradients,
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


@pytest.fixture(params=["tiny_bert", "tiny_llama"])
def towers(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A tiny model of each kind with mean pooling or the last token, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    from recft.models.text_model import Serving, TextModel

    folder: Path = request.getfixturevalue(request.param)
    kind, pooling = ("encoder", "mean") if request.param == "tiny_bert" else ("causal", "last")
    serving = Serving("retrieval", kind, "embedding", pooling, True, 32)
    model = TextModel(AutoModel.from_pretrained(folder).eval(), serving)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["red leather chair", "红色 椅子, usb", "🎒 x", "desk " * 40])
def test_integrated_gradients_sum_to_the_whole_difference(towers: tuple[Any, Any], text: str) -> None:
    import torch

    model, tokenizer = towers
    other = np.random.default_rng(0).normal(size=32).astype(np.float32)
    parts, rest = integrated_gradients(model, tokenizer, text, other)
    ids = torch.tensor([model.serving.tokens(tokenizer, [text])[0]["input_ids"]])
    own = model.base.get_input_embeddings()(ids)
    # Padding, or the end token where there is none.
    pad = torch.full_like(
        ids, {"encoder": tokenizer.pad_token_id, "causal": tokenizer.eos_token_id}[model.serving.kind]
    )
    nothing = model.base.get_input_embeddings()(pad)
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))[:, :, None]
    scores = []
    for vectors in (own, torch.where(special, own, nothing)):
        with torch.no_grad():
            hidden = model.base(inputs_embeds=vectors).last_hidden_state[0]
        pooled = hidden.mean(dim=0) if model.serving.pooling == "mean" else hidden[-1]
        scores.append(float(torch.nn.functional.normalize(pooled, dim=0) @ torch.tensor(other)))
    assert sum(part.effect for part in parts) + rest == pytest.approx(scores[0] - scores[1], abs=2e-3)
    assert [part.text for part in parts] == [text[start:end] for start, end in spans(text)]
    # The model is as it was: nothing hangs on it, and no weight has a gradient.
    assert not model.base.get_input_embeddings()._forward_hooks
    assert all(weight.grad is None for weight in model.parameters())


def test_words_that_were_cut_off_have_no_effect(towers: tuple[Any, Any]) -> None:
    model, tokenizer = towers
    parts, _ = integrated_gradients(model, tokenizer, "desk " * 40, np.ones(32, np.float32), steps=4)
    assert parts[0].effect != 0.0
    assert parts[-1].effect == 0.0
