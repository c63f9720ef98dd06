"""What a verb would hand an export target, over tiny bases, with an adapter that changes the scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.exports._base import Source
from recft.methods._base import SAVED_PREFIX, Plan
from recft.models.base import kind_of, tokenizer_of
from recft.models.encoder import encode
from recft.models.merging import Merge
from recft.models.text_model import Serving, TextModel, label_tokens
from recft.models.tokens import Text, cut
from recft.models.weights import float32_base
from recft.schema import ModelSettings

BODIES = [
    "red leather office chair",
    "usb cable",
    "黑色 打印机 墨盒 ＵＳＢ 数据线",
    "🎒 oak desk",
    "a",
    "lamp, " * 40,
    "",
]
TAIL = " answer:"
MAX_TOKENS = 24
HEADS = {
    "bert-mean": "embedding",
    "bert-head": "classifier",
    "llama-last": "embedding",
    "llama-mean": "embedding",
    "llama-answers": "answers",
}
SAMPLE = {"input_ids": torch.arange(40).reshape(2, 20) + 5, "attention_mask": torch.ones(2, 20, dtype=torch.long)}


@dataclass(frozen=True)
class Case:
    """A source, rows as a certificate keeps them (pairs already cut), and the tuned model's own numbers for them."""

    source: Source
    serving: Serving
    rows: list[Text]
    expected: np.ndarray
    untuned: np.ndarray


Make = Callable[..., Case]


@pytest.fixture
def make_case(tiny_bert: Path, tiny_llama: Path, tmp_path: Path) -> Make:
    """`make_case(case, method, ...)`: `case` is a key of HEADS; more settings are the method's."""

    def make(
        case: str,
        method: str = "lora",
        quantization: str = "none",
        dtype: str = "float32",
        compute_dtype: str = "float32",
        base: Path | None = None,
        **settings: Any,
    ) -> Case:
        folder = base or (tiny_bert if case.startswith("bert") else tiny_llama)
        model = ModelSettings.model_validate(
            {"base": str(folder), "quantization": quantization, "compute_dtype": compute_dtype}
        )
        member = registry.load("recft.methods", method)
        compute = getattr(torch, compute_dtype)
        tokenizer = tokenizer_of(model)
        found = float32_base(model, HEADS[case], compute, "dequantized", seed=3)
        loaded = found.model
        plan = Plan(kind=kind_of(loaded.config), base=model.base, total_steps=10, samples=(SAMPLE,))
        attached = member.attach(loaded, member.Config(name=method, **settings), plan)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in attached.parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        head = {f"{SAVED_PREFIX}{name}": loaded.get_parameter(name).detach() for name in found.new_parameters}
        config, tensors = attached.config(), attached.tensors() | head

        merge = Merge(
            model=model,
            head=HEADS[case],
            n_outputs=1,
            onto="dequantized",
            change=partial(member.merge, config, tensors),
            heads={name: loaded.get_parameter(name).detach() for name in found.new_parameters},
            seed=3,
        )
        lora = member.plain_lora(config, tensors) if hasattr(member, "plain_lora") else None
        serving = serving_of(case, tokenizer, plan.kind)
        reference = TextModel(loaded, serving).eval()
        source = Source(
            name="toy",
            serving=serving,
            tokenizer=tokenizer,
            tuned=lambda: reference,
            merge=merge if member.mergeable else None,
            adapter_config=config,
            adapter_tensors=tensors,
            plain_lora=lora,
            model=model,
            dtype=dtype,
        )
        texts: list[Text] = list(BODIES) if serving.head == "embedding" else [(body, TAIL) for body in BODIES]
        rows = cut(tokenizer, texts, MAX_TOKENS)
        expected = encode(reference, tokenizer, rows)
        with attached.disabled():
            untuned = encode(reference, tokenizer, rows)
        return Case(source, serving, rows, expected, untuned)

    return make


def serving_of(case: str, tokenizer: Any, kind: str) -> Serving:
    head = HEADS[case]
    answers = head == "answers"
    return Serving(
        task="retrieval" if head == "embedding" else "purchase",
        kind=kind,
        head=head,
        pooling=case.split("-")[1] if head == "embedding" else "none",
        normalize=head == "embedding",
        max_tokens=MAX_TOKENS,
        labels=("no", "yes") if answers else (),
        label_ids=label_tokens(tokenizer, ["no", "yes"]) if answers else (),
    )
