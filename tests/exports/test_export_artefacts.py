"""What an exported folder holds, that stock libraries load it without recft, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recft import registry
from recft.errors import ExportError
from recft.exports._base import Opening
from recft.models.encoder import encode

STOCK = """
import json, sys, warnings
import numpy as np
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

root, rows = sys.argv[1], json.load(open(sys.argv[1] + "/rows.json"))
base = AutoModel.from_pretrained(json.load(open(root + "/adapter/adapter_config.json"))["base_model_name_or_path"])
models = {"merged": AutoModel.from_pretrained(root + "/merged")}
models["adapter"] = PeftModel.from_pretrained(base, root + "/adapter")
for name, model in models.items():
    batch = AutoTokenizer.from_pretrained(f"{root}/{name}")(rows, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model.eval()(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    np.save(f"{root}/{name}.npy", (mean / mean.norm(dim=1, keepdim=True)).numpy())
sentences = SentenceTransformer(root + "/sentence-transformers", device="cpu")
np.save(root + "/sentence-transformers.npy", sentences.encode(rows))
assert "recft" not in sys.modules
"""


def written(case: Any, target: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    registry.load("recft.exports", target).write(case.source, folder)
    return folder


def test_stock_libraries_load_the_folders_without_recft(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    targets = ["merged", "adapter", "sentence-transformers"]
    for target in targets:
        written(made, target, tmp_path / target)
    (tmp_path / "rows.json").write_text(json.dumps(made.rows))
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for target in targets:
        np.testing.assert_allclose(np.load(tmp_path / f"{target}.npy"), made.expected, atol=1e-5)


def test_tied_embeddings_are_written_once_and_stay_tied(make_case: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = written(make_case("llama-answers"), "merged", tmp_path / "out")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_added_tokens_survive(make_case: Callable[..., Any], tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["新品"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[-1] = 1.0
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    made = make_case("llama-answers", base=tmp_path / "base")
    folder = written(made, "merged", tmp_path / "out")
    engine = registry.load("recft.exports", "merged").open(folder, Opening(made.serving))
    assert engine.tokenizer("新品", add_special_tokens=False)["input_ids"] == [len(tokenizer) - 1]
    expected = encode(made.source.tuned(), made.source.tokenizer, ["新品 lamp answer:"])
    np.testing.assert_allclose(engine.encode(["新品 lamp answer:"]), expected, atol=1e-4)


def test_dtype_decides_the_weights_and_is_told(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean", dtype="bfloat16")
    for target in ("merged", "sentence-transformers"):
        folder = written(made, target, tmp_path / target)
        tensors = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        engine = registry.load("recft.exports", target).open(folder, Opening(made.serving))
        assert engine.dtype == "bfloat16"
        np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=0.05)


def test_adapter_is_served_over_the_base_as_trained(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean", quantization="nf4", compute_dtype="bfloat16")
    folder = written(made, "adapter", tmp_path / "out")
    engine = registry.load("recft.exports", "adapter").open(folder, Opening(made.serving))
    assert engine.dtype == "bfloat16"
    assert np.abs(engine.encode(made.rows) - made.expected).mean() < 0.02  # bf16 over random weights is rough
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == made.source.model.base
    assert config["inference_mode"] is True


def test_adapter_keeps_a_pooler_that_the_base_lacks(
    make_case: Callable[..., Any], tiny_bert: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, BertForMaskedLM, BertModel

    bare = BertForMaskedLM(BertModel.from_pretrained(tiny_bert).config)
    bare.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "base")
    made = make_case("bert-head", base=tmp_path / "base")
    folder = written(made, "adapter", tmp_path / "out")
    assert "bert.pooler.dense" in json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]
    base = json.loads((folder / "base.json").read_text())
    engine = registry.load("recft.exports", "adapter").open(folder, Opening(made.serving))
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-4)
    assert base["compute_dtype"] == "float32"


def test_adapter_with_a_tensor_that_peft_passes_over_is_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    folder = written(made, "adapter", tmp_path / "out")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.encoder.layer.9.lora_A.weight": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"differ in 1 tensors.*layer.9"):
        registry.load("recft.exports", "adapter").open(folder, Opening(made.serving))


def test_segments_beside_a_prefix_are_refused_by_the_adapter_engine(
    make_case: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_case("bert-mean", "prefix", virtual_tokens=2)
    folder = written(made, "adapter", tmp_path / "out")
    engine = registry.load("recft.exports", "adapter").open(folder, Opening(made.serving))
    with pytest.raises(ExportError, match=r"token types.*fix: export to onnx"):
        engine.encode([("red", "chair")])


def test_big_graph_keeps_its_weights_in_a_second_file(
    make_case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    import recft.exports.onnx as target

    monkeypatch.setattr(target, "LARGEST_FILE_BYTES", 0)
    made = make_case("bert-mean")
    folder = written(made, "onnx", tmp_path / "out")
    assert (folder / "model.onnx.data").stat().st_size > (folder / "model.onnx").stat().st_size
    np.testing.assert_allclose(
        target.MEMBER.open(folder, Opening(made.serving)).encode(made.rows), made.expected, atol=1e-5
    )
    told = json.loads((folder / "graph.json").read_text())
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()
    assert told["opset"] == {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}
    assert list(told["inputs"]) == [entry.name for entry in graph.graph.input]
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="cannot load it"):
        target.MEMBER.open(folder, Opening(made.serving))


@pytest.mark.parametrize("target", ["merged", "adapter", "onnx", "sentence-transformers"])
def test_empty_folder_is_an_export_error(target: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    from recft.errors import RecftError

    with pytest.raises(RecftError, match=r"rule: .*fix: "):
        registry.load("recft.exports", target).open(tmp_path, Opening(make_case("bert-mean").serving))


def test_missing_merge_names_the_targets_that_can_carry_it(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean", "bottleneck")
    assert made.source.merge is None
    with pytest.raises(ExportError, match="fix: export to onnx"):
        registry.load("recft.exports", "merged").write(made.source, tmp_path)


@pytest.mark.parametrize("target", ["onnx", "sentence-transformers"])
def test_missing_library_names_the_extra(
    target: str, make_case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_case("bert-mean")
    member = registry.load("recft.exports", target)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    for act, arguments in ((member.write, (made.source, tmp_path)), (member.open, (tmp_path, made.serving))):
        with pytest.raises(ExportError, match=rf"not installed.*pip install 'recft\[{member.extra}\]'"):
            act(*arguments)


@pytest.mark.parametrize(
    ("target", "facts", "refused"),
    [
        ("adapter", {"method.name": "bottleneck", "method.layers": "all"}, True),
        ("adapter", {"method.name": "prefix", "method.layers": "all"}, False),
        ("adapter", {"method.name": "prefix", "method.layers": "last 2"}, True),
        ("adapter", {"method.name": "prefix", "method.layers": (0, 1)}, True),
        ("adapter", {"method.name": "lora", "method.layers": "last 2"}, False),
        ("adapter", {"method.name": "prefix", "method.layers": "all", "kind": "encoder", "head": "classifier"}, True),
        ("adapter", {"method.name": "prefix", "method.layers": "all", "kind": "causal", "head": "answers"}, False),
        ("sentence-transformers", {"head": "embedding"}, False),
        ("sentence-transformers", {"head": "answers"}, False),
        ("sentence-transformers", {"head": "classifier"}, False),
        ("sentence-transformers", {"head": "likelihood"}, True),
        ("onnx", {"method.name": "bottleneck", "head": "answers"}, False),
    ],
)
def test_refusals(target: str, facts: dict[str, object], refused: bool) -> None:
    found = registry.refused(registry.load("recft.exports", target).refusals, facts)
    assert (found is not None) is refused
    assert found is None or (found.reason and found.fix)
