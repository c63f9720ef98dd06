"""Reply: the loss is on the reply's tokens alone, conversations go through the template or are written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import evaluate, registry, tune
from recft.data.store import Records
from recft.errors import DataError, ModelError, RecipeError
from recft.models.base import tokenizer_of
from recft.models.encoder import encode
from recft.models.text_model import TextModel
from recft.recipe import Recipe
from recft.schema import ModelSettings
from recft.training.assemble import check
from recft.training.servings import servings_of

TASK = registry.load("recft.tasks", "reply")
CONVERSATION = '[{"role":"system","content":"简短"},{"role":"user","content":"红色 椅子 在吗? 🎒"}]'
REPLIES = ["在的", "no", "red chair", "在的"]


def asked(*queries: str, items: tuple[int, ...] | None = None) -> Records:
    """Each text with one reply."""
    return Records(
        keys=list(queries),
        queries=list(queries),
        users=None,
        starts=None,
        cuts=None,
        times=None,
        offsets=np.arange(len(queries) + 1),
        items=np.array(items or range(len(queries)), np.int32),
        grades=np.ones(len(queries), np.float32),
    )


def test_the_loss_is_the_mean_over_the_replies_tokens() -> None:
    records = asked("a", "b", "a", "a", items=(0, 1, 3, 2))
    config = TASK.Config()
    batch = TASK.batch(config, records, np.arange(4), REPLIES, np.random.default_rng(0))
    assert batch.texts == [("a", "在的"), ("b", "no"), ("a", "red chair")]
    assert batch.arrays["text"].tolist() == [0, 1, 0, 2]
    outputs = torch.tensor([[-4.0, 3], [-1.5, 2], [-9, 5]], requires_grad=True)
    found = TASK.loss(config, outputs, batch)
    # The first stands twice: every example counts, and a long reply counts by its tokens.
    assert float(found.detach()) == pytest.approx((4 + 1.5 + 4 + 9) / (3 + 2 + 3 + 5))
    found.backward()
    assert outputs.grad is not None
    assert outputs.grad[:, 0].tolist() == pytest.approx([-2 / 13, -1 / 13, -1 / 13])


def test_the_loss_of_a_model_is_the_cross_entropy_of_its_replies_alone(tiny_llama: Path, toy_recipe: Any) -> None:
    from transformers import AutoModelForCausalLM

    recipe = toy_recipe("reply", "causal")
    tokenizer = tokenizer_of(recipe.model)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    model = TextModel(base, servings_of([(recipe, ["r0"])], tokenizer)["reply"])
    records = asked("red chair?", CONVERSATION, "")
    batch = TASK.batch(TASK.Config(), records, np.arange(3), REPLIES, np.random.default_rng(0))
    found = float(TASK.loss(TASK.Config(), torch.as_tensor(encode(model, tokenizer, batch.texts)), batch))
    total, count = 0.0, 0
    for query, reply in zip(records.queries or [], REPLIES, strict=False):
        messages = json.loads(query) if query.startswith("[") else [{"role": "user", "content": query}]
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        body = tokenizer(written, add_special_tokens=False)["input_ids"]
        tail = [*tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = base(torch.tensor([body + tail])).logits[0].log_softmax(dim=-1)
        total -= sum(float(logits[len(body) + place - 1, token]) for place, token in enumerate(tail))
        count += len(tail)
    assert found == pytest.approx(total / count, rel=1e-4)


def test_only_the_right_reply_is_learned_and_every_reply_is_scored() -> None:
    records = Records(
        keys=["a"],
        queries=["a"],
        users=None,
        starts=None,
        cuts=None,
        times=None,
        offsets=np.array([0, 3]),
        items=np.array([1, 0, 2], np.int32),
        grades=np.array([0, 1, 0], np.float32),
    )
    batch = TASK.batch(TASK.Config(), records, np.array([0]), REPLIES, np.random.default_rng(0))
    assert batch.texts == [("a", "在的")]
    assert TASK.pairs(TASK.Config(), records, np.array([0]), REPLIES) == [
        ("a", "no"),
        ("a", "在的"),
        ("a", "red chair"),
    ]


def test_what_stands_around_a_text() -> None:
    def body(query: str, **settings: Any) -> str:
        return str(TASK.pairs(TASK.Config(**settings), asked(query), np.array([0]), REPLIES)[0][0])

    assert body("在吗") == "在吗" and body("在吗", chat=False) == "在吗\n"
    assert body("在吗", before="问：") == "问：在吗" and body("在吗", chat=False, before="问：", after="") == "问：在吗"
    assert body(CONVERSATION) == CONVERSATION
    assert body(CONVERSATION, chat=False) == "system: 简短\nuser: 红色 椅子 在吗? 🎒\n"
    # What only looks like a conversation is a text.
    for text in ('[{"role":', '[{"role":"user"}]', '[{"role": 1}, 2]', "[]"):
        assert body(text, before="> ") == f"> {text}"


def test_words_around_a_conversation_are_refused() -> None:
    for settings in ({"before": "问："}, {"after": "答："}):
        ((name, value),) = settings.items()
        with pytest.raises(DataError, match=rf"task.{name}: '{value}' around a conversation .*rule: .*fix: remove it"):
            TASK.pairs(TASK.Config(**settings), asked(CONVERSATION), np.array([0]), REPLIES)


@pytest.mark.parametrize("chat", [True, False])
def test_a_reply_of_a_megabyte_leaves_the_question(chat: bool, toy_recipe: Any) -> None:
    recipe = toy_recipe({"name": "reply", "chat": chat}, "causal", tune={"max_tokens": 48})
    tokenizer = tokenizer_of(recipe.model)
    (text,) = TASK.pairs(recipe.task, asked("red lamp?"), np.array([0]), ["墨盒 " * 300_000])
    assert len(text[1]) <= 100_000
    (found,) = servings_of([(recipe, ["r0"])], tokenizer)["reply"].tokens(tokenizer, [text])
    assert len(found["input_ids"]) <= 48 and found["input_ids"][-1] == tokenizer.eos_token_id
    assert sum(found["tail_mask"]) < 48 and tokenizer.decode(found["input_ids"]).count("lamp?") == 1


@pytest.mark.parametrize("turns", ["last", "all"])
def test_conversations_are_tuned_and_scored(turns: str, toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def row(number: int) -> str:
        said = [f"red {number}?", "在的", f"黑色 {number}?", "no"]
        messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
        return json.dumps({"talk": messages}, ensure_ascii=False)

    (tmp_path / "talks.jsonl").write_text("\n".join(row(number) for number in range(20)), encoding="utf-8")
    source = str(tmp_path / "talks.jsonl")
    texts: dict[str, Any] = {"path": source, "text": [], "reply": None, "messages": "talk", "turns": turns}
    tune(toy_recipe("reply", "causal", data={"texts": texts}), tmp_path / "run")
    report = evaluate(tmp_path / "run")
    assert report["n"] == {"last": 4, "all": 8}[turns]
    assert report["tuned"]["nll"] < report["base"]["nll"]
    assert report["tuned"]["perplexity"] == pytest.approx(np.exp(report["tuned"]["nll"]))


def test_what_cannot_work_is_refused_before_anything_is_loaded(toy_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"task.name: reply.*cannot work.*no head for encoder bases; fix: "):
        check(toy_recipe("reply", "encoder"))
    texts = {"path": "texts.csv", "text": ["text"], "label": "label"}
    with pytest.raises(RecipeError, match=r"data.texts.reply: None.*cannot work.*labels, not replies; fix: "):
        check(toy_recipe("reply", "causal", data={"texts": texts}))
    with pytest.raises(RecipeError, match=r"task.chat: 'maybe' .*rule: .*fix: "):
        toy_recipe({"name": "reply", "chat": "maybe"}, "causal")


def test_a_base_without_a_template_is_refused_for_chats_alone(toy_recipe: Any, tiny_llama: Path) -> None:
    tokenizer = tokenizer_of(ModelSettings(base=str(tiny_llama)))
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"task.chat: .*has no chat template.*rule: .*fix: .*task.chat: false"):
        servings_of([(toy_recipe("reply", "causal"), ["r0"])], tokenizer)
    plain = toy_recipe({"name": "reply", "chat": False}, "causal")
    assert not servings_of([(plain, ["r0"])], tokenizer)["reply"].chat
