"""Every target, in the engine that serves it, gives the tuned model's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import registry
from recft.exports._base import Engine, Opening

Cell = tuple[str, str, str, dict[str, Any]]
CASES = ["bert-mean", "bert-head", "llama-last", "llama-mean", "llama-answers"]
ENDINGS = {".safetensors", ".json", ".txt", ".onnx", ".jinja"}
MERGED: list[Cell] = [("merged", case, "lora", {}) for case in CASES]
ADAPTER: list[Cell] = [
    *(("adapter", case, "lora", {}) for case in CASES),
    ("adapter", "bert-mean", "lora", {"quantization": "nf4"}),
    ("adapter", "llama-last", "lora", {"quantization": "fp4"}),
    ("adapter", "llama-answers", "lora", {"quantization": "int8"}),
    ("adapter", "bert-mean", "lora", {"dora": True}),
    ("adapter", "bert-mean", "adalora", {}),
    ("adapter", "bert-mean", "prefix", {"virtual_tokens": 4}),
    ("adapter", "llama-last", "prefix", {"virtual_tokens": 4}),
    ("adapter", "llama-answers", "prefix", {"virtual_tokens": 4, "quantization": "nf4"}),
]
ONNX: list[Any] = [
    ("onnx", "bert-head", "lora", {"quantization": "nf4"}),
    ("onnx", "llama-answers", "lora", {}),
    pytest.param("onnx", "bert-mean", "prefix", {"virtual_tokens": 4}, marks=pytest.mark.slow),
    ("onnx", "llama-last", "prefix", {"virtual_tokens": 4}),
    ("onnx", "bert-mean", "bottleneck", {}),
    pytest.param("onnx", "llama-answers", "bottleneck", {}, marks=pytest.mark.slow),
]
SENTENCE: list[Cell] = [
    ("sentence-transformers", case, "lora", {}) for case in CASES if case.endswith(("mean", "last"))
]


def served(case: Any, target: str, folder: Path) -> Engine:
    folder.mkdir()
    member = registry.load("recft.exports", target)
    member.write(case.source, folder)
    engine: Engine = member.open(folder, Opening(case.serving))
    return engine


@pytest.mark.parametrize(("target", "case", "method", "options"), [*MERGED, *ADAPTER, *ONNX, *SENTENCE])
def test_engine_gives_the_tuned_models_numbers(
    target: str, case: str, method: str, options: dict[str, Any], make_case: Callable[..., Any], tmp_path: Path
) -> None:
    if method not in registry.names("recft.methods"):
        pytest.skip(f"there is no {method}")
    made = make_case(case, method, **options)
    tolerance = 1e-5 if made.serving.head == "embedding" else 1e-4
    assert np.abs(made.expected - made.untuned).max() > 1e-2  # or the comparison would show nothing
    engine = served(made, target, tmp_path / "out")
    found = engine.encode(made.rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, made.expected, atol=tolerance)
    alone = np.concatenate([engine.encode([row]) for row in reversed(made.rows)])[::-1]
    np.testing.assert_allclose(alone, found, atol=tolerance)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= ENDINGS
    assert engine.name
    assert engine.version
    assert engine.dtype == "float32"
    assert engine.tokenizer.model_max_length == made.serving.max_tokens
