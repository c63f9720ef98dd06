"""GGUF files, in llama.cpp itself and read back by transformers, give the tuned model's numbers."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.errors import ExportError
from recft.exports import _gguf_engine, gguf_adapter
from recft.exports._base import Engine, Opening
from recft.exports._gguf_engine import has_llama_cpp
from recft.models.encoder import encode
from recft.models.text_model import TextModel

pytest.importorskip("gguf")

CASES = ["llama-last", "llama-mean", "llama-answers"]
LOOSE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.2, "int8": 0.3}
"""Of answers' logits of a model with random weights, which are around 3."""

needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed")
ENGINES = [pytest.param(True, marks=needs_llama_cpp, id="llama.cpp"), pytest.param(False, id="read-back")]

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-wide-heads": ("Qwen3", {"head_dim": 16}),
    "qwen3-biases": ("Qwen3", {"head_dim": 8, "attention_bias": False, "tie_word_embeddings": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
}


QUICK = ("qwen3-wide-heads", "llama-llama3")


def base_of(name: str, tiny_llama: Path, folder: Path) -> Path:
    """A base of another architecture, with more rows than tokens."""
    import transformers

    kind, settings = BASES[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{**SHAPE, "tie_word_embeddings": False, **special, **settings}, vocab_size=len(tokenizer) + 4
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".bias") or "norm" in parameter_name:
            parameter.data += torch.randn(parameter.shape) * 0.3  # as published ones: neither 0 nor 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def served(made: Any, folder: Path, target: str = "gguf") -> Engine:
    folder.mkdir()
    member = registry.load("recft.exports", target)
    member.write(made.source, folder)
    engine: Engine = member.open(folder, Opening(made.serving))
    return engine


def as_likelihood(made: Any, chat: bool = False) -> tuple[Any, list[Any]]:
    """The case as a likelihood's, and its texts before they are cut."""
    serving = replace(made.serving, head="likelihood", carrier="likelihood", labels=(), label_ids=(), chat=chat)
    tokenizer = made.source.tokenizer
    texts = [
        *(("red leather chair 红色 " * 9, tail) for tail in (" yes", " 打印机 🎒", " no, thanks")),
        ("", "lamp"),
        ("usb cable", " 数据线 and a lamp" * 4),
    ]
    rows = serving.cut(tokenizer, texts)
    reference = TextModel(made.source.tuned().base, serving).eval()
    source = replace(made.source, serving=serving, tuned=lambda: reference)
    return replace(made, source=source, serving=serving, rows=rows, expected=encode(reference, tokenizer, texts)), texts


def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gguf_engine, "has_llama_cpp", lambda: False)


def check_tokens(made: Any, engine: Engine, texts: list[Any] | None = None) -> None:
    if engine.tokens is not None:
        ours = made.serving.tokens(made.source.tokenizer, texts or made.rows)
        assert engine.tokens(made.rows) == [row["input_ids"] for row in ours]


@needs_llama_cpp
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, "float32") for case in CASES),
        *(("llama-answers", dtype) for dtype in LOOSE if dtype != "float32"),
        *(pytest.param("llama-last", dtype, marks=pytest.mark.slow) for dtype in LOOSE if dtype != "float32"),
    ],
)
def test_llama_cpp_gives_the_tuned_models_numbers(
    case: str, dtype: str, make_case: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make_case(case, dtype=dtype)
    assert np.abs(made.expected - made.untuned).max() > 1e-2
    engine = served(made, tmp_path / "out")
    found = engine.encode(made.rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, made.expected, atol=LOOSE[dtype])
    alone = np.concatenate([engine.encode([row]) for row in reversed(made.rows)])[::-1]
    np.testing.assert_allclose(alone, found, atol=1e-4)
    assert engine.tokens is not None
    check_tokens(made, engine)
    assert (engine.name, engine.dtype) == ("llama.cpp", dtype)
    assert engine.tokenizer.model_max_length == made.serving.max_tokens
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("with_llama_cpp", ENGINES)
@pytest.mark.parametrize("chat", [False, True])
def test_likelihood_of_the_tails(
    with_llama_cpp: bool,
    chat: bool,
    make_case: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_llama_cpp:
        without_llama_cpp(monkeypatch)
    made, texts = as_likelihood(make_case("llama-answers", dtype="float32"), chat)
    engine = served(made, tmp_path / "out")
    found = engine.encode(made.rows)
    np.testing.assert_allclose(found, made.expected, atol=5e-4)  # sums over up to 18 tokens
    np.testing.assert_allclose(found[:, 0] / found[:, 1], made.expected[:, 0] / made.expected[:, 1], atol=1e-4)
    again = np.concatenate([engine.encode([row]) for row in made.rows])
    np.testing.assert_allclose(again, found, atol=1e-4)
    check_tokens(made, engine, texts)


@pytest.mark.parametrize(
    ("with_llama_cpp", "name"),
    [
        *(pytest.param(True, name, marks=needs_llama_cpp) for name in BASES),
        *(pytest.param(False, name, marks=[] if name in QUICK else pytest.mark.slow) for name in BASES),
    ],
)
def test_architectures(
    with_llama_cpp: bool,
    name: str,
    make_case: Callable[..., Any],
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_llama_cpp:
        without_llama_cpp(monkeypatch)
    base = base_of(name, tiny_llama, tmp_path / "base")
    made = make_case("llama-answers", base=base, dtype="float32")
    engine = served(made, tmp_path / "out")
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-4)
    check_tokens(made, engine)
    figures, wrong = engine.own(None)  # type: ignore[misc, arg-type]
    assert wrong == []
    assert figures["context_tokens"] == 128
    assert engine.dtype == "float32"
    assert ("not installed" in engine.name) is not with_llama_cpp


ADAPTERS = [
    ("llama-answers", "lora", {}),
    ("llama-last", "lora", {"rslora": True}),
    ("llama-mean", "adalora", {}),
    ("llama-answers", "lora", {"quantization": "nf4"}),
]


@pytest.mark.parametrize("with_llama_cpp", ENGINES)
@pytest.mark.parametrize(("case", "method", "options"), ADAPTERS)
def test_adapter_over_the_bases_own_file(
    case: str,
    method: str,
    options: dict[str, Any],
    with_llama_cpp: bool,
    make_case: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_llama_cpp:
        without_llama_cpp(monkeypatch)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    made = make_case(case, method, dtype="float32", **options)
    assert np.abs(made.expected - made.untuned).max() > 1e-2
    engine = served(made, tmp_path / "out", "gguf-adapter")
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-4)
    check_tokens(made, engine)
    assert engine.dtype == "float32"
    assert engine.own(None)[1] == []  # type: ignore[misc, arg-type]
    del engine
    gc.collect()
    assert list(scratch.iterdir()) == []


@needs_llama_cpp
def test_adapter_over_qwen3_in_16_bits(make_case: Callable[..., Any], tiny_llama: Path, tmp_path: Path) -> None:
    base = base_of("qwen3-wide-heads", tiny_llama, tmp_path / "base")
    made, _ = as_likelihood(make_case("llama-answers", base=base, dtype="float16"))
    engine = served(made, tmp_path / "out", "gguf-adapter")
    found = engine.encode(made.rows)
    np.testing.assert_allclose(found[:, 0] / found[:, 1], made.expected[:, 0] / made.expected[:, 1], atol=2e-2)
    assert engine.dtype == "float16"


def test_no_scratch_folder_is_left_after_an_error(
    make_case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_case("llama-answers", dtype="float32")
    served(made, tmp_path / "out", "gguf-adapter")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (tmp_path / "out" / gguf_adapter.ADAPTER).write_bytes(b"GGUF no adapter")
    with pytest.raises((ExportError, ValueError)):
        gguf_adapter.MEMBER.open(tmp_path / "out", Opening(made.serving))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("with_llama_cpp", ENGINES)
@pytest.mark.parametrize("target", ["gguf", "gguf-adapter"])
def test_what_is_no_gguf_is_an_export_error(
    target: str,
    with_llama_cpp: bool,
    make_case: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not with_llama_cpp:
        without_llama_cpp(monkeypatch)
    made = make_case("llama-answers", dtype="float32")
    folder, member = tmp_path / "out", registry.load("recft.exports", target)
    served(made, folder, target)
    file = next(folder.glob("*.gguf"))
    whole = file.read_bytes()
    for broken in (b"no such thing", whole[: len(whole) // 2]):
        file.write_bytes(broken)
        with pytest.raises(ExportError, match=r"cannot load it .*fix: export it again"):
            member.open(folder, Opening(made.serving))
    file.unlink()
    with pytest.raises(ExportError, match=r"cannot load it .*fix: export it again"):
        member.open(folder, Opening(made.serving))
    assert capfd.readouterr() == ("", "")
