"""A LoRA fitted to another adapter's outputs: near them, repeatable, with the trained head carried over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recft import registry
from recft.errors import ExportError
from recft.exports._base import FittedLora, Source
from recft.methods._base import SAVED_PREFIX, Plan
from recft.models.base import kind_of, tokenizer_of
from recft.models.encoder import encode
from recft.models.text_model import Serving, TextModel, label_tokens
from recft.models.tokens import Text
from recft.models.weights import float32_base
from recft.schema import ModelSettings
from recft.training.distilling import _batches, _with_parts, distilled

WORDS = (
    "red",
    "leather",
    "office",
    "chair",
    "oak",
    "desk",
    "lamp",
    "usb",
    "cable",
    "黑色 打印机",
    "🎒",
    "paper",
    "墨盒",
)
FIT: dict[str, Any] = {"rank": 8, "steps": 100, "learning_rate": 3e-3, "batch_size": 16}

Make = Callable[..., tuple[Source, TextModel]]


def texts_of(n: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 6))) for _ in range(n)]


@pytest.fixture
def make(tiny_bert: Path, tiny_llama: Path) -> Make:
    """(source, untuned model) of a method over a tiny base, with an adapter that changes the outputs."""

    def source_of(
        head: str = "embedding", kind: str = "encoder", method: str = "bottleneck", quantization: str = "none"
    ) -> tuple[Source, TextModel]:
        base = str(tiny_bert if kind == "encoder" else tiny_llama)
        model = ModelSettings(base=base, quantization=quantization, compute_dtype="float32")
        tokenizer = tokenizer_of(model)
        serving = Serving(
            task="retrieval",
            kind=kind,
            head=head,
            pooling=("mean" if kind == "encoder" else "last") if head == "embedding" else "none",
            normalize=head == "embedding",
            max_tokens=24,
            temperature=0.05 if head == "embedding" else 1.0,
            n_outputs=3 if head == "classifier" else 1,
            label_ids=label_tokens(tokenizer, ["yes", "no"]) if head == "answers" else (),
        )
        member = registry.load("recft.methods", method)

        def fresh(seed: int = 3) -> Any:
            return float32_base(model, head, torch.float32, "dequantized", seed, serving.n_outputs)

        found = fresh()
        sample = {"input_ids": torch.arange(40).reshape(2, 20) + 5, "attention_mask": torch.ones(2, 20).long()}
        plan = Plan(kind=kind_of(found.model.config), base=base, total_steps=1, samples=(sample,))
        attached = member.attach(found.model, member.Config(name=method), plan)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in attached.parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        heads = {f"{SAVED_PREFIX}{name}": found.model.get_parameter(name).detach() for name in found.new_parameters}
        reference = TextModel(found.model, serving).eval()
        source = Source(
            name="toy",
            serving=serving,
            tokenizer=tokenizer,
            tuned=lambda: reference,
            merge=None,
            adapter_config=attached.config(),
            adapter_tensors=attached.tensors() | heads,
            plain_lora=None,
            model=model,
        )
        untuned = fresh()
        for name in untuned.new_parameters:
            untuned.model.get_parameter(name).data = heads[f"{SAVED_PREFIX}{name}"].clone()
        return source, TextModel(untuned.model, serving).eval()

    return source_of


def off(source: Source, model: nn.Module, texts: Sequence[Text]) -> float:
    """How far a model's outputs are from the reference's."""
    found = encode(TextModel(model, source.serving).eval(), source.tokenizer, texts)  # type: ignore[arg-type]
    return float(np.square(found - encode(source.tuned(), source.tokenizer, texts)).mean())


@pytest.mark.parametrize(
    ("head", "kind", "method"),
    [
        ("embedding", "encoder", "prefix"),
        ("embedding", "causal", "bottleneck"),
        ("classifier", "encoder", "bottleneck"),
        ("classifier", "causal", "prefix"),
        ("answers", "causal", "bottleneck"),
    ],
)
def test_new_texts_come_near_the_reference(make: Make, head: str, kind: str, method: str) -> None:
    source, untuned = make(head, kind, method)
    fitted = distilled(source, "dequantized", texts_of(200), **FIT)
    new = texts_of(40, seed=9)
    before, after = off(source, untuned.base, new), off(source, fitted.merge.load(), new)
    assert after < 0.4 * before
    assert 0 < fitted.figures["missing_share"] < 0.6
    assert fitted.figures["best_step"] > 0
    assert fitted.figures["rank"] == 8


def test_the_merged_weights_are_the_fitted_lora(make: Make) -> None:
    source, _ = make()
    fitted = distilled(source, "dequantized", texts_of(60), rank=4, steps=5, learning_rate=1e-2, batch_size=8)
    base = float32_base(source.model, "embedding", torch.float32, "dequantized")
    lora = registry.load("recft.methods", "lora")
    attached = lora.restore(base.model, fitted.config, Plan(kind="encoder", base=source.model.base))
    attached.load(fitted.tensors)
    new = texts_of(10, seed=9)
    ours = encode(TextModel(base.model, source.serving).eval(), source.tokenizer, new)
    merged = encode(TextModel(fitted.merge.load(), source.serving).eval(), source.tokenizer, new)
    np.testing.assert_allclose(merged, ours, atol=1e-6)


def test_a_trained_head_is_the_runs_own(make: Make) -> None:
    source, _ = make("classifier")
    fitted = distilled(source, "dequantized", texts_of(60), rank=4, steps=3, learning_rate=1e-2, batch_size=8)
    merged = fitted.merge.load()
    wanted = source.adapter_tensors[f"{SAVED_PREFIX}classifier.weight"]
    assert torch.equal(merged.get_parameter("classifier.weight"), wanted)
    assert not any("classifier" in name for name in fitted.tensors)


def test_pairs_keep_their_tails(make: Make) -> None:
    source, untuned = make("classifier")
    pairs = list(zip(texts_of(150), texts_of(150, seed=5), strict=True))
    fitted = distilled(source, "dequantized", pairs, **FIT)
    new = list(zip(texts_of(30, seed=7), texts_of(30, seed=8), strict=True))
    assert off(source, fitted.merge.load(), new) < 0.4 * off(source, untuned.base, new)
    assert {part[1] for part in _with_parts(pairs, 0)} == {tail for _, tail in pairs}


def test_equal_seeds_give_equal_bytes_and_leave_the_generator_alone(make: Make) -> None:
    source, _ = make()
    few: dict[str, Any] = {"rank": 4, "steps": 6, "learning_rate": 1e-2, "batch_size": 8}

    def fit(seed: int) -> FittedLora:
        return distilled(source, "dequantized", texts_of(40), seed=seed, **few)

    first, second, other = fit(0), fit(0), fit(1)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert not all(torch.equal(first.tensors[name], other.tensors[name]) for name in first.tensors)
    assert first.figures == second.figures


def test_it_is_fitted_over_the_weights_that_the_reference_lies_on(make: Make) -> None:
    source, untuned = make(quantization="nf4")
    fitted = distilled(source, "dequantized", texts_of(60), rank=4, steps=3, learning_rate=1e-2, batch_size=8)
    assert fitted.merge.onto == "dequantized"
    assert fitted.merge.model.quantization == "nf4"
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(fitted.merge.load().get_parameter(name), untuned.base.get_parameter(name))


def test_the_best_step_is_kept_not_the_last(make: Make) -> None:
    source, untuned = make()
    # So high a rate leads away from the reference: the start, which changes nothing, is the best of them.
    fitted = distilled(source, "dequantized", texts_of(40), rank=4, steps=10, learning_rate=30.0, batch_size=8)
    assert fitted.figures["best_step"] < 10
    new = texts_of(10, seed=9)
    if fitted.figures["best_step"] == 0:
        assert all(not tensor.any() for name, tensor in fitted.tensors.items() if "lora_B" in name)
    else:
        assert off(source, fitted.merge.load(), new) < off(source, untuned.base, new)


def test_too_few_texts_are_refused(make: Make) -> None:
    source, _ = make()
    with pytest.raises(ExportError, match=r"1 different training texts.*fix: export to onnx"):
        distilled(source, "dequantized", ["黑色"] * 50, **FIT)


def test_steps_are_told(make: Make) -> None:
    source, _ = make()
    heard: list[tuple[str, int, int]] = []
    source = replace(source, listen=lambda event, values: heard.append((event, values["step"], values["total_steps"])))
    fit = partial(distilled, source, "dequantized", rank=2, learning_rate=1e-3, batch_size=8)
    fit(texts=texts_of(40), steps=3)
    assert heard == [("step", 1, 3), ("step", 2, 3), ("step", 3, 3)]


def test_batches_take_every_text_once_before_any_again_and_pad_little() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 60, 640).tolist()
    found = _batches(lengths, steps=50, size=16, seed=0)
    assert len(found) == 50
    assert all(len(batch) == 16 for batch in found)
    assert sorted(np.concatenate(found[:40]).tolist()) == list(range(640))
    spread = np.mean([np.ptp([lengths[row] for row in batch]) for batch in found])
    assert spread < 10  # in random batches it is above 50
    assert [len(batch) for batch in _batches([3, 4, 5], steps=2, size=16, seed=0)] == [3, 3]


def test_parts_of_texts_join_few_and_leave_many_alone() -> None:
    few = ["red oak desk lamp", "黑色打印机墨盒", "🎒"]
    found = _with_parts(few, 0)
    assert found[:3] == few
    assert len(found) > 6
    assert all(any(str(part) in text for text in few) for part in found)
    many = [f"text {number}" for number in range(5000)]
    assert _with_parts(many, 0) == many
