"""What any test may use: a tiny BERT and a tiny Llama with tokenizers of their own, a toy shop, recipes on them."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from recft.recipe import Recipe

ToyRecipe = Callable[..., "Recipe"]

# An example that took long says that the machine was busy, not that the code is wrong.
settings.register_profile("recft", deadline=None)
settings.load_profile("recft")

# What the tokenizers know: the longer words stay whole, all else falls into pieces or bytes.
WORDS = (
    *("red", "leather", "office", "chair", "with", "wheels,", "oak", "desk", "lamp", "usb", "cable", "black", "paper"),
    *("yes", "no", "Yes", "No", "history:", "item:", "candidate:", "answer:"),
    *("打印机", "墨盒", "黑色", "桌子", "椅子", "数据线"),
)

# In the style of Qwen and Llama 3: an engine that applies it serves other scores.
CHAT_TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"

READ_TOGETHER = ("purchase", "rating", "relevance")

# The columns of the toy shop's texts.csv that a task learns from.
TEXT_TARGETS: dict[str, dict[str, Any]] = {
    "classify": {"label": "label"},
    "reply": {"reply": "reply"},
    "preference": {"chosen": "reply", "rejected": ["worse", "worst"]},
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fits of classic rows are cached for this session alone: an older one's would hide what changed since."""
    with pytest.MonkeyPatch.context() as patch:
        before = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(before / "matplotlib"))  # its fonts stay
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of two layers, random weights, and a WordPiece tokenizer that knows Chinese."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    tokenizer = BertTokenizer(tokenizer_object=_word_pieces())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("bases") / "tiny-bert"
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, tied embeddings, grouped heads, and a byte-level BPE tokenizer.

    As Llama 3's, the tokenizer has no padding token, puts a begin token before each of a pair, and has a template
    for chats.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_pairs(), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _word_pieces() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,:!"))
    pieces = [*special, *single, *(f"##{character}" for character in single)]
    # Normalized text is lower case, and Chinese characters stand alone: longer Chinese words are never met.
    pieces += sorted({word.lower() for word in WORDS if word.isascii()} - set(pieces))
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _byte_pairs() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # With a space before and without: both forms of the answers become one token.
    tokenizer.train_from_iterator([form for word in WORDS for form in (word, f" {word}")] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def toy_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small shop: `items.jsonl` (40), `queries.csv` (24 graded queries), `log.csv` (30 users).

    And of its customer service `texts.csv`: 60 texts, each with a label, a reply and two worse replies.

    Titles are English, Chinese, full-width and emoji; two items have the same text. Users buy again, and most buy
    items next to each other in the catalogue, so that there is something to learn.
    """
    folder = tmp_path_factory.mktemp("toy-shop")
    draw = random.Random(0)
    titles = _titles()
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        for number, title in enumerate(titles):
            row = {"sku": f"i{number}", "title": title, "brand": "ＡＣＭＥ" if number % 3 else "oak"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with (folder / "queries.csv").open("w", encoding="utf-8", newline="") as file:
        judgements = csv.writer(file)
        judgements.writerow(["query", "item", "grade"])
        for number in range(24):
            best = number * 5 % 38
            others = draw.sample([item for item in range(40) if abs(item - best) > 1], 4)
            rows = [(best, 3), (best + 1, 1), *((item, 0) for item in others)]
            judgements.writerows([f"{titles[best]} {number}", f"i{item}", grade] for item, grade in rows)
    with (folder / "log.csv").open("w", encoding="utf-8", newline="") as file:
        log = csv.writer(file)
        log.writerow(["user", "item", "time", "rating"])
        for user in range(30):
            item = draw.randrange(40)
            for event in range(draw.randint(6, 10)):
                day = user % 7 + event * 3
                log.writerow([f"u{user}", f"i{item}", f"2024-01-01 {day % 24:02d}:{day:02d}:00", draw.randint(1, 5)])
                item = draw.choice([item, (item + 1) % 40, (item + 1) % 40, draw.randrange(40)])
    _write_texts(folder / "texts.csv", titles)
    return folder


def _write_texts(path: Path, titles: list[str]) -> None:
    """Three kinds of text, told apart by their first word."""
    asked = (("red", "red chair"), ("black", "black paper"), ("黑色", "打印机 墨盒"))
    with path.open("w", encoding="utf-8", newline="") as file:
        texts = csv.writer(file)
        texts.writerow(["text", "label", "reply", "worse", "worst"])
        for number in range(60):
            label, reply = asked[number % 3]
            text = f"{label} {titles[number % 30]} {number}"
            texts.writerow([text, label, reply, asked[(number + 1) % 3][1], f"no {number % 7}"])


def _titles() -> list[str]:
    """40 titles; the last two are equal."""
    colours, things = (
        ("red", "black", "黑色", "ＯＡＫ", "🎒"),
        ("chair", "desk", "lamp", "打印机 墨盒", "数据线", "paper", "cable", "椅子"),
    )
    titles = [f"{colours[number % 5]} {things[number % 8]} {number // 8}" for number in range(39)]
    return [*titles, titles[-1]]


@pytest.fixture(scope="session")
def toy_recipe(toy_shop: Path, tiny_bert: Path, tiny_llama: Path) -> ToyRecipe:
    """`toy_recipe(task, kind, method, quantization, **sections)`: a recipe of four steps on the toy shop.

    `task` and `method` are names or mappings; further keywords are laid over the recipe's sections.
    """
    from recft.recipe import Recipe

    bases = {"encoder": tiny_bert, "causal": tiny_llama}
    judged = {"path": "queries.csv", "query": "query", "item": "item", "grade": "grade"}
    log = {"path": "log.csv", "user": "user", "item": "item", "time": "time", "rating": "rating"}

    def make(
        task: str | dict[str, Any] = "retrieval",
        kind: str = "encoder",
        method: str | dict[str, Any] = "lora",
        quantization: str = "none",
        **sections: dict[str, Any],
    ) -> Recipe:
        name = task if isinstance(task, str) else task["name"]
        data: dict[str, Any] = {
            "items": {"path": "items.jsonl", "id": "sku", "text": ["brand", "title"], "title": "title"}
        }
        if name in ("retrieval", "relevance"):
            data |= {"queries": judged, "split": {"by": "query", "valid": 0.2, "test": 0.2}}
        elif name in TEXT_TARGETS:
            texts = {"path": "texts.csv", "text": ["text"], **TEXT_TARGETS[name]}
            data = {"texts": texts, "split": {"valid": 0.2, "test": 0.2}}
        else:
            data |= {"interactions": log, "split": {"by": "leave_one_out"}}
        if name == "purchase":
            data["labels"] = {"negatives": 2}
        if name in READ_TOGETHER:
            # The tiny tokenizers know few words: with the long prompts the item would not fit.
            prompts = {"before": "history: ", "between": " item: ", "after": " answer:"}
            task = {"name": task, **prompts} if isinstance(task, str) else {**prompts, **task}
        raw: dict[str, Any] = {
            "name": "toy",
            "task": task,
            "data": data,
            "model": {"base": str(bases[kind]), "quantization": quantization, "compute_dtype": "float32"},
            "method": method,
            "tune": {
                "max_steps": 4,
                "epochs": 100,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "max_tokens": 64 if name in (*READ_TOGETHER, *TEXT_TARGETS) else 32,
                "dropout": 0.1,
                "checkpoint_every_steps": 1,
                "eval_every_steps": 2,
                "log_every_steps": 1,
            },
            "eval": {"bootstrap": 100, "baselines": []},
            "export": {"rows": 8},
        }
        for section, settings_ in sections.items():
            raw[section] = {**raw[section], **settings_} if isinstance(raw.get(section), dict) else settings_
        return Recipe.from_mapping(raw, folder=toy_shop)

    return make
