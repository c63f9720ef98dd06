"""The folder with its model code: stock transformers computes the tuned model from it, where it is trusted."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recft import registry
from recft.errors import ExportError
from recft.exports import code
from recft.exports._base import Opening
from recft.models.encoder import encode
from recft.models.text_model import TextModel
from recft.models.tokens import cut

Make = Callable[..., Any]
TRUSTED = {"trust_remote_code": True}
PREFIX: dict[str, Any] = {"method": "prefix", "virtual_tokens": 3}
BOTTLENECK: dict[str, Any] = {"method": "bottleneck", "reduction_factor": 4}
METHODS: list[dict[str, Any]] = [
    PREFIX,
    PREFIX | {"layers": "last 1"},
    BOTTLENECK | {"placement": "houlsby"},
    BOTTLENECK | {"placement": "pfeiffer", "activation": "silu", "layers": "last 1"},
    BOTTLENECK | {"placement": "parallel", "scale": "learned"},
]
STOCK = """
import json, sys
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

folder, rows = sys.argv[1], json.load(open(sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
batch = tokenizer(rows, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
mean = (hidden * mask).sum(1) / mask.sum(1)
np.save(sys.argv[3], (mean / mean.norm(dim=1, keepdim=True)).numpy())
try:
    AutoModel.from_pretrained(folder)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("it loaded without trust")
assert not any(name.startswith(("recft", "peft")) for name in sys.modules)
"""


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a folder's code to a place of this test's own."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def ident(value: Any) -> str:
    return "-".join(str(part) for part in value.values()) if isinstance(value, dict) else str(value)


def written(made: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    code.MEMBER.write(made.source, folder)
    return folder


def opened(made: Any, folder: Path) -> Any:
    return code.MEMBER.open(folder, Opening(made.serving, trust=True))


def as_likelihood(made: Any) -> Any:
    """The same model, asked how likely its tails are."""
    serving = dataclasses.replace(made.serving, head="likelihood", labels=(), label_ids=())
    reference = TextModel(made.source.tuned().base, serving)
    rows = cut(made.source.tokenizer, [("red chair", " yes"), ("黑色 墨盒 🎒", " 数据线 no")], 24, True)
    expected = encode(reference, made.source.tokenizer, rows)
    source = dataclasses.replace(made.source, serving=serving)
    return dataclasses.replace(made, source=source, serving=serving, rows=rows, expected=expected)


def bases(name: str, folder: Path, like: Path) -> Path:
    """A tiny base of another architecture, with the tokenizer of `like`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(like)
    config_class, body = {
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
        "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }[name]
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 8,  # by the model's type transformers may take a tokenizer that adds some
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if "roberta" not in name:
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if name == "mistral":
        sizes |= {"sliding_window": 6}
    torch.manual_seed(0)
    body(config_class(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ["bert-mean", "bert-head", "llama-last", "llama-answers"])
@pytest.mark.parametrize("settings", METHODS, ids=ident)
def test_folder_computes_the_tuned_model(case: str, settings: dict[str, Any], make_case: Make, tmp_path: Path) -> None:
    made = make_case(case, **settings)
    engine = opened(made, written(made, tmp_path / "out"))
    found = engine.encode(made.rows)
    assert np.abs(made.expected - made.untuned).max() > 1e-2  # the adapter is seen at all
    np.testing.assert_allclose(found, made.expected, atol=1e-5)
    assert (engine.name, engine.dtype) == ("transformers, model code in the folder", "float32")
    assert (engine.other_side is None) == case.startswith("bert")
    if engine.other_side is not None:
        np.testing.assert_allclose(engine.other_side(made.rows), made.expected, atol=1e-5)
    texts = [row if isinstance(row, str) else "".join(row) for row in made.rows]
    assert engine.tokenizer(texts)["input_ids"] == made.source.tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("settings", [PREFIX, METHODS[-1]], ids=ident)
@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "qwen2", "qwen3", "mistral"])
def test_other_architectures(
    name: str, settings: dict[str, Any], make_case: Make, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    kind = "bert" if "roberta" in name else "llama"
    base = bases(name, tmp_path / "base", tiny_bert if kind == "bert" else tiny_llama)
    made = make_case("bert-mean" if kind == "bert" else "llama-answers", base=base, **settings)
    engine = opened(made, written(made, tmp_path / "out"))
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-5)
    if engine.other_side is not None:
        np.testing.assert_allclose(engine.other_side(made.rows), made.expected, atol=1e-5)
    texts = ["red chair 12", " 黑色 🎒", ""]
    assert engine.tokenizer(texts)["input_ids"] == made.source.tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("settings", [PREFIX, METHODS[-1]], ids=ident)
def test_likelihood(settings: dict[str, Any], make_case: Make, tmp_path: Path) -> None:
    made = as_likelihood(make_case("llama-answers", **settings))
    engine = opened(made, written(made, tmp_path / "out"))
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=2e-5)
    assert engine.other_side is not None
    np.testing.assert_allclose(engine.other_side(made.rows), made.expected, atol=2e-5)


@pytest.mark.parametrize("settings", [PREFIX, METHODS[-1]], ids=ident)
def test_stock_transformers_loads_it_without_recft(settings: dict[str, Any], make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", **settings)
    folder = written(made, tmp_path / "out")
    (tmp_path / "rows.json").write_text(json.dumps(made.rows))
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK, str(folder), str(tmp_path / "rows.json"), str(tmp_path / "found.npy")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "others")},
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), made.expected, atol=1e-5)


@pytest.mark.parametrize("settings", [PREFIX, METHODS[-1]], ids=ident)
def test_generation_is_step_by_step_argmax(settings: dict[str, Any], make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = make_case("llama-answers", **settings)
    folder = written(made, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, **TRUSTED).eval()
    reference = made.source.tuned().base
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **TRUSTED)
    batch = tokenizer(["red leather chair", "黑色 🎒"], padding=True, return_tensors="pt")
    found = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=1)
    for row, mask, answer in zip(batch["input_ids"], batch["attention_mask"], found, strict=True):
        ids = row[mask.bool()]
        for _ in range(6):
            with torch.no_grad():
                logits = reference(input_ids=ids[None], use_cache=False).logits[0, -1]
            logits[1] = -torch.inf  # min_new_tokens forbids the end
            ids = torch.cat([ids, logits.argmax()[None]])
        assert answer[len(row) :].tolist() == ids[-6:].tolist()


def test_positional_mask_and_no_mask_give_the_same(make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = make_case("llama-last", **PREFIX)
    model = AutoModel.from_pretrained(written(made, tmp_path / "out"), **TRUSTED).eval()
    ids = torch.arange(10)[None] + 5
    left, mask = torch.cat([torch.ones(1, 3, dtype=torch.long), ids], dim=1), torch.ones(1, 13, dtype=torch.long)
    mask[:, :3] = 0
    with torch.no_grad():
        expected = made.source.tuned().base(ids, use_cache=False).last_hidden_state
        plain = model(ids).last_hidden_state
        padded = model(left, mask).last_hidden_state[:, 3:]
        placed = model(input_ids=ids, position_ids=torch.arange(10)[None]).last_hidden_state
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).last_hidden_state
    for found in (plain, padded, placed, embedded):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [PREFIX, METHODS[-1]], ids=ident)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_of_the_base_and_the_adapter_stays_float32(
    dtype: str, settings: dict[str, Any], make_case: Make, tmp_path: Path
) -> None:
    made = make_case("bert-mean", dtype=dtype, **settings)
    folder = written(made, tmp_path / "out")
    adapter = ("prompt_embeddings", ".bottleneck.")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if any(part in name for part in adapter) else getattr(torch, dtype))
    engine = opened(made, folder)
    assert engine.dtype == dtype
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=0.05)


def test_k_bit_base_is_written_as_the_adapter_saw_it(make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", quantization="nf4", **PREFIX)
    folder = written(made, tmp_path / "out")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    np.testing.assert_allclose(opened(made, folder).encode(made.rows), made.expected, atol=1e-5)


def test_shards_are_loaded_whole_and_saved_again(
    make_case: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(code, "SHARD_BYTES", 40_000)
    made = make_case("llama-answers", **PREFIX)
    folder = written(made, tmp_path / "out")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert "lm_head.weight" not in index
    assert "model.prefix.prompt_embeddings" in index
    model = AutoModelForCausalLM.from_pretrained(folder, **TRUSTED)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model.save_pretrained(tmp_path / "again")
    made.source.tokenizer.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(opened(made, tmp_path / "again").encode(made.rows), made.expected, atol=1e-5)


def test_both_auto_classes_carry_the_adapter(make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = make_case("llama-answers", **PREFIX)
    model = AutoModel.from_pretrained(written(made, tmp_path / "out"), **TRUSTED).eval()
    reference = made.source.tuned().base
    with torch.no_grad():
        ids = torch.arange(10)[None] + 5
        expected = reference.base_model(ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(model(ids).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_two_exports_do_not_share_code(make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", **METHODS[-1])
    first, second = (written(made, tmp_path / name / "out") for name in ("one", "two"))
    text = (second / "modeling_recft.py").read_text()
    changed = text.replace("self.scale * self.up(", "-self.scale * self.up(")
    assert changed != text
    (second / "modeling_recft.py").write_text(changed)
    engine = opened(made, first)
    assert np.abs(opened(made, second).encode(made.rows) - made.expected).max() > 1e-2
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-5)
    np.testing.assert_allclose(opened(made, first).encode(made.rows), made.expected, atol=1e-5)


@pytest.mark.parametrize(("settings", "part"), [(PREFIX, "prompt_embeddings"), (METHODS[-1], ".bottleneck.up.weight")])
def test_flipped_sign_in_the_adapter_is_seen(
    settings: dict[str, Any], part: str, make_case: Make, tmp_path: Path
) -> None:
    made = make_case("bert-mean", **settings)
    folder = written(made, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(part))
    save_file({**tensors, name: -tensors[name]}, folder / "model.safetensors", {"format": "pt"})
    assert np.abs(opened(made, folder).encode(made.rows) - made.expected).max() > 1e-2


@pytest.mark.parametrize(("settings", "part"), [(PREFIX, "prompt_embeddings"), (METHODS[-1], ".bottleneck.up.weight")])
def test_lost_adapter_is_refused(settings: dict[str, Any], part: str, make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = make_case("bert-mean", **settings)
    folder = written(made, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(part)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"lack \d of the adapter's tensors"):
        opened(made, folder)
    with pytest.raises(ValueError, match="lack"):
        AutoModel.from_pretrained(folder, **TRUSTED)
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match="1 tensors differ, the first 'extra'"):
        opened(made, folder)


def test_attention_that_would_leave_the_prefix_out_is_refused(make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = make_case("bert-mean", **PREFIX)
    folder = written(made, tmp_path / "out")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", **TRUSTED).eval()
    ids = torch.arange(10)[None] + 5
    with torch.no_grad():
        torch.testing.assert_close(model(ids).last_hidden_state, made.source.tuned().base(ids).last_hidden_state)
    with pytest.raises(ValueError, match="lies in its attention"):
        model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="too many tokens: beside 3 virtual ones this model has positions for 125"):
        model(torch.ones(1, 126, dtype=torch.long))
    model.config._attn_implementation = "eager"
    with pytest.raises(RuntimeError, match="another attention was set"):
        model(ids)
    other = make_case("bert-mean", **METHODS[-1])
    plain = AutoModel.from_pretrained(written(other, tmp_path / "other"), **TRUSTED)
    plain.set_attn_implementation("eager")
    assert plain.config._attn_implementation == "eager"


def test_without_trust_nothing_of_the_folder_runs(make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", **PREFIX)
    folder = written(made, tmp_path / "out")
    (folder / "modeling_recft.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ExportError, match=r"modeling_recft.py.*rule: code in a folder runs.*fix: .*trust-remote-code"):
        code.MEMBER.open(folder, Opening(made.serving))
    (folder / "modeling_recft.py").write_text("raise ZeroDivisionError('of its own')")
    with pytest.raises(ExportError, match="of its own"):
        opened(made, folder)


def test_folder_holds_no_pickle_and_no_path(make_case: Make, tmp_path: Path) -> None:
    made = make_case("llama-answers", **PREFIX)
    folder = written(made, tmp_path / "out")
    expected = {"config.json", "generation_config.json", "model.safetensors", "modeling_recft.py", "tokenizer.json"}
    assert expected <= {file.name for file in folder.iterdir()}
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".py", ".jinja"}
    text = (folder / "modeling_recft.py").read_text()
    assert "SPDX-License-Identifier: Apache-2.0" in text
    assert "import recft" not in text
    assert "from recft" not in text
    assert str(tmp_path) not in (folder / "config.json").read_text()


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        ({"method.name": "prefix", "export.trust_remote_code": True}, ""),
        ({"method.name": "bottleneck", "export.trust_remote_code": True}, ""),
        ({"method.name": "prefix", "export.trust_remote_code": False}, "only where you say so"),
        ({"method.name": "lora", "export.trust_remote_code": True}, "stock classes"),
        ({"method.name": "adalora", "export.trust_remote_code": False}, "stock classes"),
    ],
)
def test_refusals(facts: dict[str, object], refused: str) -> None:
    found = registry.refused(code.MEMBER.refusals, facts | {"target": "code"})
    assert (found is not None) is bool(refused)
    assert found is None or (refused in found.reason and found.fix)


def test_mergeable_adapter_is_refused(make_case: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fix: export to merged"):
        code.MEMBER.write(make_case("bert-mean", "lora").source, tmp_path)


def test_serve_names_the_class_and_who_refuses(make_case: Make) -> None:
    made = make_case("bert-head", **PREFIX)
    shown = {serve.engine: serve for serve in code.MEMBER.serve({"serving": made.serving.to_json()})}
    assert "AutoModelForSequenceClassification" in shown["transformers"].lines
    assert shown["transformers"].lines.count("trust_remote_code=True") == 2
    for engine in ("vLLM", "TEI"):
        assert not shown[engine].lines
        assert "distil" in shown[engine].refused


@pytest.mark.parametrize("settings", [PREFIX, METHODS[-1]], ids=ident)
def test_parts_in_each_others_place_are_seen(settings: dict[str, Any], make_case: Make, tmp_path: Path) -> None:
    made = make_case("llama-answers", **settings)
    folder = written(made, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    if "modules" in config["recft"]:
        config["recft"]["modules"].reverse()
    else:
        config["recft"] |= {"activation": "tanh"}
    (folder / "config.json").write_text(json.dumps(config))
    assert np.abs(opened(made, folder).encode(made.rows) - made.expected).max() > 1e-2


def test_causal_classifier(make_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(make_case.__globals__["HEADS"], "llama-head", "classifier")
    for settings in (PREFIX, METHODS[-1]):
        made = make_case("llama-head", **settings)
        engine = opened(made, written(made, tmp_path / settings["method"]))
        np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-5)
        np.testing.assert_allclose(engine.other_side(made.rows), made.expected, atol=1e-5)


def test_copied_model_has_an_adapter_of_its_own(make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = make_case("bert-mean", **PREFIX)
    model = AutoModel.from_pretrained(written(made, tmp_path / "out"), **TRUSTED).eval()
    copied = copy.deepcopy(model)
    ids = torch.arange(10)[None] + 5
    with torch.no_grad():
        before = copied(ids).last_hidden_state
        model.get_parameter("prefix.prompt_embeddings").zero_()
        torch.testing.assert_close(copied(ids).last_hidden_state, before)
        assert (model(ids).last_hidden_state - before).abs().max() > 1e-2


def test_parallel_adapters_serve_several_threads(make_case: Make, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from transformers import AutoModel

    made = make_case("bert-mean", **METHODS[-1])
    model = AutoModel.from_pretrained(written(made, tmp_path / "out"), **TRUSTED).eval()

    def run(first: int) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(model(torch.arange(20)[None] + first).last_hidden_state)

    firsts = [5, 15, 25, 35] * 5
    expected = [run(first) for first in firsts]
    with ThreadPoolExecutor(4) as threads:
        for found, wanted in zip(threads.map(run, firsts), expected, strict=True):
            torch.testing.assert_close(found, wanted)
