"""Texts in, numbers out: pooling, heads, padding, batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from recft.models.base import load_base, tokenizer_of
from recft.models.encoder import encode
from recft.models.text_model import Serving, TextModel, label_tokens
from recft.schema import ModelSettings

CPU = torch.device("cpu")
TEXTS = ["red leather chair", "lamp", "黑色 墨盒 🎒", "usb cable " * 9, "lamp", ""]


def model_of(
    folder: Path, head: str, pooling: str = "none", normalize: bool = False
) -> tuple[TextModel, PreTrainedTokenizerBase]:
    settings = ModelSettings(base=str(folder))
    tokenizer = tokenizer_of(settings)
    kind = "encoder" if "bert" in folder.name else "causal"
    ids = label_tokens(tokenizer, ["no", "yes"]) if head == "answers" else ()
    serving = Serving("t", kind, head, pooling, normalize, 24, label_ids=ids)
    return TextModel(load_base(settings, head, CPU, torch.float32).model, serving).eval(), tokenizer


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_reads_real_tokens_on_either_side_of_padding(
    name: str, pooling: str, request: pytest.FixtureRequest
) -> None:
    model, _ = model_of(request.getfixturevalue(name), "embedding", pooling)

    class Echo(torch.nn.Module):
        """A base whose hidden states are the ids themselves."""

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            hidden = input_ids[:, :, None].float()
            return type("Output", (), {"last_hidden_state": hidden})

    # The pooled states are the body's own, whatever class holds it.
    model.base = type("Holder", (torch.nn.Module,), {"base_model": Echo()})()
    ids = torch.tensor([[4, 6, 11, 90], [90, 4, 6, 11]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert model(ids, mask)[:, 0].tolist() == ([7.0, 7.0] if pooling == "mean" else [11.0, 11.0])


@pytest.mark.parametrize(
    ("name", "head", "pooling"),
    [
        ("tiny_bert", "embedding", "mean"),
        ("tiny_bert", "classifier", "none"),
        ("tiny_llama", "embedding", "last"),
        ("tiny_llama", "answers", "none"),
    ],
)
def test_numbers_do_not_depend_on_the_batch(name: str, head: str, pooling: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = model_of(request.getfixturevalue(name), head, pooling, normalize=head == "embedding")
    together = encode(model, tokenizer, TEXTS)
    alone = np.concatenate([encode(model, tokenizer, [text]) for text in TEXTS])
    assert together.dtype == np.float32
    assert together.shape == (6, {"embedding": 32, "classifier": 1, "answers": 2}[head])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together[1], together[4])
    np.testing.assert_allclose(encode(model, tokenizer, TEXTS, chunk_tokens=8), alone, atol=1e-5)
    if head == "embedding":
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_answers_are_rows_of_the_full_logits(tiny_llama: Path) -> None:
    model, tokenizer = model_of(tiny_llama, "answers")
    for text in TEXTS[:4]:
        ids = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            full = model.base(**dict(ids)).logits[0, -1, list(model.serving.label_ids)]
        np.testing.assert_allclose(encode(model, tokenizer, [text])[0], full.numpy(), atol=1e-5)


def test_serving_goes_to_json_and_back() -> None:
    serving = Serving("purchase", "causal", "answers", "none", False, 64, ("no", "yes"), (5, 7), 0.05)
    assert Serving.from_json(serving.to_json()) == serving
    shared = dataclasses.replace(
        serving, head="embedding", n_outputs=3, columns=(1, 2), calibration={"kind": "isotonic", "from": [0.1, 0.5]}
    )
    assert Serving.from_json(json.loads(json.dumps(shared.to_json()))) == shared


def test_weights_are_carried_by_the_tasks_own_head_where_no_other_is_named() -> None:
    alone = Serving("purchase", "encoder", "classifier", "none", False, 64)
    assert alone.carrier == "classifier"
    assert dataclasses.replace(alone, head="embedding").carrier == "classifier"
    old = {name: value for name, value in alone.to_json().items() if name != "carrier"}  # a folder of recft's first
    assert Serving.from_json(old) == alone
