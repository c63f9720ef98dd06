"""GGUF exports of whole runs, through the verbs: tuned, exported, certified in llama.cpp, verified again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recft.errors import ExportError
from recft.export import export
from recft.exports._gguf_engine import has_llama_cpp
from recft.recipe import Recipe
from recft.tune import tune
from recft.verify import verify

gguf = pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed")

RUNS: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("gguf", "retrieval", {}, ["export.dtype=float32"]),
    ("gguf", "purchase", {}, []),
    ("gguf", "purchase", {"quantization": "nf4"}, ["export.dtype=float32"]),
    ("gguf", "reply", {}, ["export.dtype=int8", "export.tolerances.quantized_metric=0.5"]),
    ("gguf-adapter", "purchase", {"method": "adalora"}, []),
    ("gguf-adapter", "reply", {}, []),
]


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize(("target", "task", "options", "overrides"), RUNS)
def test_run_is_exported_and_verified(
    target: str,
    task: str,
    options: dict[str, Any],
    overrides: list[str],
    toy_recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    tune(toy_recipe(task, "causal", **options), tmp_path / "run")
    found = export(tmp_path / "run", target, tmp_path / "out", overrides=overrides)
    certificate = found["certificate"]
    assert (certificate["engine"], certificate["verdict"]) == ("llama.cpp", "passed")
    assert certificate["tokenization_differs"] == 0
    shutil.rmtree(tmp_path / "run")  # an export stands by itself
    verify(tmp_path / "out")


@needs_llama_cpp
@pytest.mark.slow
def test_a_spoilt_file_does_not_verify(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    tune(toy_recipe("retrieval", "causal"), tmp_path / "run")
    export(tmp_path / "run", "gguf", tmp_path / "out", overrides=["export.dtype=float32"])
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf", "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.attn_v.weight")
    tensor.data[:] = -tensor.data
    reader.data.flush()
    with pytest.raises(ExportError):
        verify(tmp_path / "out")
