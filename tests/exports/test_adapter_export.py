"""An adapter's folder is the plain LoRA that vLLM takes, wherever there is one, and scores as the tuned model does."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recft import registry
from recft.exports._base import Opening
from recft.exports._lora_servers import RANKS
from recft.methods._base import SAVED_PREFIX

MEMBER = registry.load("recft.exports", "adapter")
Make = Callable[..., Any]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 4}),
    "rslora": ("lora", {"rank": 6, "rslora": True}),  # alpha / sqrt(6) is no round number
    "adalora": ("adalora", {"rank": 4, "initial_rank": 6}),
    "dora": ("lora", {"rank": 4, "dora": True}),
}


def pruned(made: Any) -> Any:
    """The case's source with directions of its AdaLoRA taken away, of one layer all, as allocation leaves them."""
    config, tensors = dict(made.source.adapter_config), dict(made.source.adapter_tensors)
    names = sorted(key.removesuffix(".lora_E") for key in tensors if key.endswith(".lora_E"))
    pattern = {}
    for place, name in enumerate(names):
        on = torch.arange(6) % 6 < (0, 2, 5, 3)[place % 4]
        tensors[f"{name}.lora_A"] = tensors[f"{name}.lora_A"][on].contiguous()
        tensors[f"{name}.lora_B"] = tensors[f"{name}.lora_B"][:, on].contiguous()
        tensors[f"{name}.lora_E"] = tensors[f"{name}.lora_E"][on].contiguous()
        pattern[f"{name.removeprefix(SAVED_PREFIX)}.lora_E"] = on.tolist()
    config["rank_pattern"] = pattern
    member = registry.load("recft.methods", "adalora")
    return dataclasses.replace(
        made.source, adapter_config=config, adapter_tensors=tensors, plain_lora=member.plain_lora(config, tensors)
    )


def written(source: Any, folder: Path) -> Path:
    folder.mkdir()
    MEMBER.write(source, folder)
    return folder


def refused_by_vllm(folder: Path) -> list[str]:
    """vLLM's rules, as plain checks on the folder: what it would refuse, or read wrongly."""
    config = json.loads((folder / "adapter_config.json").read_text())
    wrong = [
        key for key in ("modules_to_save", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config[key]
    ]
    wrong += ["peft_type"] if config["peft_type"] != "LORA" else []
    wrong += ["bias"] if config["bias"] != "none" else []
    wrong += ["r"] if not (isinstance(config["r"], int) and 0 < config["r"] <= RANKS[-1]) else []
    wrong += ["lora_alpha"] if not isinstance(config["lora_alpha"], int | float) else []
    wrong += ["target_modules"] if not isinstance(config["target_modules"], list) else []
    modules: dict[str, set[str]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        named = re.fullmatch(rf"{re.escape(SAVED_PREFIX)}(.+)\.(lora_[AB])\.weight", name)
        if named is None:
            wrong.append(name)
            continue
        module, kind = named.groups()
        if "embed" in module.rpartition(".")[2] or tensor.shape[kind == "lora_B"] != config["r"]:
            wrong.append(name)
        if not any(module == target or module.endswith(f".{target}") for target in config["target_modules"]):
            wrong.append(module)
        modules.setdefault(module, set()).add(kind)
    return wrong + [module for module, kinds in modules.items() if len(kinds) < 2] + ([] if modules else ["no layers"])


@pytest.mark.parametrize("method", ["lora", "rslora", "adalora"])
@pytest.mark.parametrize("case", ["bert-mean", "llama-last", "llama-answers"])
def test_folder_is_the_plain_lora_that_vllm_takes(case: str, method: str, make_case: Make, tmp_path: Path) -> None:
    name, settings = METHODS[method]
    made = make_case(case, name, **settings)
    folder = written(made.source, tmp_path / "out")
    assert refused_by_vllm(folder) == []
    assert not [path for path in folder.iterdir() if path.is_dir()]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == made.source.model.base
    scale = {"lora": 2.0, "rslora": 8 / 6**0.5, "adalora": 1.0}[method]
    assert config["lora_alpha"] / config["r"] == pytest.approx(scale, abs=1e-9)
    found = MEMBER.open(folder, Opening(made.serving)).encode(made.rows)
    assert np.abs(made.expected - made.untuned).max() > 1e-2
    np.testing.assert_allclose(found, made.expected, atol=1e-5 if made.serving.head == "embedding" else 1e-4)


@pytest.mark.parametrize("case", ["bert-mean", "llama-answers"])
def test_plain_lora_scores_as_the_runs_own_adapter_in_peft(case: str, make_case: Make, tmp_path: Path) -> None:
    """Pruned AdaLoRA: PEFT on the run's own files against PEFT on the export, ranks filled up with zeros."""
    name, settings = METHODS["adalora"]
    made = make_case(case, name, **settings)
    source = pruned(made)
    exported = written(source, tmp_path / "out")
    assert refused_by_vllm(exported) == []
    config = json.loads((exported / "adapter_config.json").read_text())
    assert config["r"] == 5  # the most that a layer has kept
    own = written(dataclasses.replace(source, plain_lora=None), tmp_path / "own")
    assert "peft_type" in refused_by_vllm(own)
    expected, found = (logits(source, folder) for folder in (own, exported))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    whole = logits(source, written(made.source, tmp_path / "whole"))
    assert (whole - expected).abs().max() > 1e-2  # or pruning would have changed nothing
    # Exact, not only near: what is added to each weight is the same product.
    member = registry.load("recft.methods", "adalora")
    plain = load_file(exported / "adapter_model.safetensors")
    for key in (key for key in plain if key.endswith("lora_A.weight")):
        module = key.removeprefix(SAVED_PREFIX).removesuffix(".lora_A.weight")
        left = plain[key.replace("lora_A", "lora_B")]
        zeros = torch.zeros(left.shape[0], plain[key].shape[1])
        merged = member.merge(source.adapter_config, source.adapter_tensors, module, zeros)
        torch.testing.assert_close(config["lora_alpha"] / config["r"] * left @ plain[key], merged, atol=1e-6, rtol=1e-5)


def logits(source: Any, folder: Path) -> torch.Tensor:
    import transformers
    from peft import PeftModel

    from recft.models.base import AUTO_CLASS

    base = getattr(transformers, AUTO_CLASS[source.serving.carrier]).from_pretrained(source.model.base)
    with warnings.catch_warnings():
        # PEFT's own AdaLoRA, of a layer that kept nothing; and a name of transformers that is about to go.
        warnings.filterwarnings("ignore", message=r"The following rank_pattern keys|.*LoRA tensor\(s\) have invalid")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(60).reshape(3, 20) + 3)[0]
    return found


def test_what_is_no_plain_lora_stays_what_it_is(make_case: Make, tmp_path: Path) -> None:
    made = make_case("llama-last", "lora", rank=4, dora=True)
    folder = written(made.source, tmp_path / "dora")
    assert "use_dora" in refused_by_vllm(folder)
    np.testing.assert_allclose(MEMBER.open(folder, Opening(made.serving)).encode(made.rows), made.expected, atol=1e-5)
    headed = make_case("bert-head", "adalora")
    folder = written(headed.source, tmp_path / "head")
    assert "modules_to_save" in refused_by_vllm(folder)
    np.testing.assert_allclose(
        MEMBER.open(folder, Opening(headed.serving)).encode(headed.rows), headed.expected, atol=1e-4
    )


def described(case: str = "llama-last", quantization: str = "none", task: Any = None, **method: Any) -> dict[str, Any]:
    """As much of recft-export.json as is known before anything is written."""
    kind = "encoder" if case.startswith("bert") else "causal"
    head = {"head": "classifier", "answers": "answers", "chat": "likelihood"}.get(case.split("-")[1], "embedding")
    return {
        "name": "shop",
        "task": task or {"query_prompt": "query: "},
        "base": {"model": {"base": "/bases/some one", "quantization": quantization, "revision": None}, "hash": "0"},
        "method": {"name": "lora", "rank": 16, **method},
        "onto": {"weights": "dequantized"},
        "dtype": "float32",
        "serving": {
            "kind": kind,
            "head": head,
            "carrier": head,
            "pooling": case.split("-")[1],
            "n_outputs": 3,
            "label_ids": [7, 9],
            "chat": True,
        },
    }


def entries(description: dict[str, Any]) -> dict[str, Any]:
    return {entry.engine: entry for entry in MEMBER.serve(description)}


@pytest.mark.parametrize(
    ("description", "why"),
    [
        (described(dora=True), "no DoRA: take merged"),
        (described("bert-mean"), "not on encoders: take merged"),
        (described("llama-head"), "modules_to_save.* take merged"),
        (described(quantization="int8"), "nf4 only.* int8: take merged"),
        (described(rank=600), "ranks up to 512.* 600: take merged"),
    ],
)
def test_vllms_refusals_are_said_with_the_alternative(description: dict[str, Any], why: str) -> None:
    entry = entries(description)["vLLM"]
    assert re.search(why, entry.refused)
    assert not entry.lines
    assert not entry.tried
    assert not entries(description)["PEFT"].refused


def test_prefix_is_refused_by_vllm() -> None:
    description = described()
    description["method"] = {"name": "prefix", "virtual_tokens": 8}
    assert "prefix is none: take onnx" in entries(description)["vLLM"].refused


@pytest.mark.parametrize(
    ("method", "room"),
    [
        ({"rank": 1}, 1),
        ({"rank": 4}, 8),
        ({"rank": 16}, 16),
        ({"rank": 17}, 32),
        ({"rank": 300}, 320),
        ({"rank": 16, "initial_rank": None}, 32),
        ({"rank": 4, "initial_rank": 8}, 8),
    ],
)
def test_command_gives_the_smallest_room_for_the_rank(method: dict[str, Any], room: int) -> None:
    line = entries(described(**method))["vLLM"].lines.splitlines()[0]
    words = shlex.split(line)
    assert words[:3] == ["vllm", "serve", "/bases/some one"]
    assert words[words.index("--max-lora-rank") + 1] == str(room)
    assert words[words.index("--lora-modules") + 1] == "shop=FOLDER"
    assert json.loads(words[words.index("--pooler-config") + 1]) == {"pooling_type": "LAST"}
    assert "--quantization" not in words


def test_requests_read_what_the_task_reads() -> None:
    task = {"before": "P: ", "between": " Q: ", "after": "?"}
    lines = entries(described("llama-answers", "nf4", task))["vLLM"].lines
    assert lines.startswith("# vLLM quantizes the base anew")
    assert "--quantization bitsandbytes" in lines
    assert "--logprobs-mode processed_logits" in lines
    assert '"prompt": "P: TEXT Q: ITEM?"' in lines
    assert '"allowed_token_ids": [7, 9], "logprobs": 2' in lines
    assert "/v1/chat/completions" in entries(described("llama-chat", task={"name": "reply"}))["vLLM"].lines
    assert '"input": ["query: red chair"]' in entries(described())["vLLM"].lines
    peft = entries(described("bert-head", "fp4"))["PEFT"].lines
    assert "AutoModelForSequenceClassification.from_pretrained('/bases/some one', num_labels=3" in peft
    assert 'bnb_4bit_quant_type="fp4"' in peft
