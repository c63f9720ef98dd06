"""What the measurements of models read: Online Retail, and a base of 135M parameters with random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recft.data.store import Records

if TYPE_CHECKING:
    from recft.recipe import Recipe
    from recft.training.assemble import Tuned

__all__ = ["SHAPE", "Shop", "adapter_folder", "make_base", "recipe_of", "sized", "tuned_of"]

SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
MERGES = 3000
PROMPTS = (
    "A customer's items, newest first: ",
    "A customer's items, oldest first:\n",
    "\nWill this customer take the following item?\n",
    "\nAnswer (yes or no):",
    *(" yes", " no") * 8,
)


def sized(layers: int) -> dict[str, Any]:
    """The shape with so many layers: fewer for a quick look."""
    return {**SHAPE, "num_hidden_layers": layers}


def data_folder(name: str) -> Path:
    """A folder of real data: in RECFT_DATA, or in `shared/data` beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("RECFT_DATA", beside)) / name


@dataclass(frozen=True)
class Shop:
    """A shop's log.

    Attributes:
        ids: of items.
        titles: of items.
        histories: each customer's items as bought, oldest first, each once.
    """

    ids: list[str]
    titles: list[str]
    histories: list[np.ndarray]

    @classmethod
    @cache
    def open(cls) -> Shop:
        """Online Retail."""
        folder = data_folder("online-retail")
        items = pl.read_csv(folder / "items.csv", schema_overrides={"StockCode": pl.String})
        items = items.filter(pl.col("title").is_not_null()).with_row_index("item")
        log = pl.read_csv(folder / "interactions.csv.gz", schema_overrides={"StockCode": pl.String})
        log = log.join(items.select("StockCode", "item"), on="StockCode").sort("CustomerID", "ts", maintain_order=True)
        log = log.unique(["CustomerID", "item"], keep="first", maintain_order=True)
        bought = log.group_by("CustomerID", maintain_order=True).agg("item")["item"]
        return cls(items["StockCode"].to_list(), items["title"].to_list(), [one.to_numpy() for one in bought])

    def records(
        self, lengths: Sequence[int], candidates: int = 1, most_first: int = 0, positives: int = 1, seed: int = 0
    ) -> Records:
        """One record a length: a customer's first so many items, `positives` that come next and drawn negatives.

        Args:
            lengths: of the histories; no customer appears twice.
            candidates: of each record, positives and negatives together.
            most_first: takes customers who bought this many more than their history, and the same ones for any
                length up to it; 0: as many as are needed.
            positives: of each record.
            seed: of the draw.
        """
        rng = np.random.default_rng([seed, 7])
        order = rng.permutation(len(self.histories))
        chosen, unused = [], iter(order.tolist())
        for length in lengths:
            needed = max(length + positives, most_first)
            chosen.append(next(user for user in unused if len(self.histories[user]) >= needed))
        pairs = []
        for user, length in zip(chosen, lengths, strict=True):
            own = self.histories[user]
            others = np.setdiff1d(np.arange(len(self.titles)), own)
            pairs.append(
                [*own[length : length + positives], *rng.choice(others, candidates - positives, replace=False)]
            )
        bounds = np.cumsum([0, *lengths]).astype(np.int64)
        grades = np.zeros((len(lengths), candidates), np.float32)
        grades[:, :positives] = 1
        return Records(
            keys=[f"u{user}" for user in chosen],
            queries=None,
            users=np.arange(len(lengths), dtype=np.int32),
            starts=bounds[:-1],
            cuts=bounds[1:],
            times=np.zeros(len(lengths), np.int64),
            offsets=np.arange(len(lengths) + 1, dtype=np.int64) * candidates,
            items=np.concatenate(pairs).astype(np.int32),
            grades=grades.ravel(),
            log_items=np.concatenate(
                [self.histories[user][:length] for user, length in zip(chosen, lengths, strict=True)]
            ).astype(np.int32),
        )

    def positions(self, count: int) -> Records:
        """The first `count` positions of one customer, a record each: an item, and all that were bought before it."""
        own = next(history for history in self.histories if len(history) > count)[: count + 1]
        return Records(
            keys=["u0"] * count,
            queries=None,
            users=np.zeros(count, np.int32),
            starts=np.zeros(count, np.int64),
            cuts=np.arange(1, count + 1, dtype=np.int64),
            times=np.zeros(count, np.int64),
            offsets=np.arange(count + 1, dtype=np.int64),
            items=own[1:].astype(np.int32),
            grades=np.ones(count, np.float32),
            log_items=own.astype(np.int32),
        )


def make_base(folder: Path, layers: int = 30) -> Path:
    """The folder of a Llama of the shape with random bfloat16 weights, made where it is missing.

    Its tokenizer is a byte-level BPE of a few thousand merges over the shop's titles: a title has 5 tokens, as MiniLM's
    vocabulary of 30,000 gives it (5.5). The rows of the head beyond them are computed like any other.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MERGES + 258,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    titles = Shop.open().titles
    tokenizer.train_from_iterator([*titles, *(f" {title}" for title in titles), *PROMPTS * 8], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(**sized(layers), bos_token_id=0, eos_token_id=1, pad_token_id=1)
    LlamaForCausalLM(config).bfloat16().save_pretrained(str(folder))
    return folder


def recipe_of(base: str, task: Mapping[str, Any], rank: int, max_tokens: int, **more: Mapping[str, Any]) -> Recipe:
    """The recipe of a LoRA on all linear layers over the shop; `more` is laid over its sections."""
    from recft.recipe import Recipe

    folder = data_folder("online-retail")
    raw: dict[str, Any] = {
        "name": "benchmark",
        "task": dict(task),
        "data": {
            "items": {"path": str(folder / "items.csv"), "id": "StockCode", "text": ["title"]},
            "interactions": {
                "path": str(folder / "interactions.csv.gz"),
                "user": "CustomerID",
                "item": "StockCode",
                "time": "ts",
            },
        },
        "model": {"base": base, "compute_dtype": "bfloat16"},
        "method": {"name": "lora", "rank": rank},
        "tune": {"max_tokens": max_tokens, "schedule": "constant", "warmup_share": 0.0, "learning_rate": 1e-4},
    }
    for section, values in more.items():
        raw[section] = {**raw[section], **values}
    return Recipe.from_mapping(raw)


def tuned_of(recipe: Recipe, seed: int | None = None) -> Tuned:
    """The recipe's base with a new adapter; with `seed`, one that changes what the base says."""
    import torch

    from recft.models.base import device_of, tokenizer_of
    from recft.training import assemble
    from recft.training.servings import servings_of

    servings = servings_of([(recipe, Shop.open().ids)], tokenizer_of(recipe.model))
    tuned = assemble.new(recipe, servings, 1000, ["a lamp", "a desk"], device_of())
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(tuned.attached.parameters().items()):
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return tuned


def adapter_folder(tuned: Tuned, folder: Path) -> Path:
    """Writes the adapter as PEFT reads it, and says where."""
    from recft.training.assemble import save_adapter

    save_adapter(tuned, folder)
    return folder
