"""One GGUF file for llama.cpp and Ollama: the adapter merged, tokenizer and chat template inside.

Weights are float16, float32, bfloat16 or 8-bit (`q8_0`: 32 values share a scale); norms and biases stay float32. A
`Modelfile` beside it carries the chat format to Ollama. It is certified in llama.cpp through its Python binding; where
that is not installed, by transformers reading the file back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import open_tokenizer, require, save_tokenizer
from recft.exports._gguf_engine import CAUSAL_ONLY, EXTRA, MODELFILE, NO_CLASSIFIER, open_file, servers, vocabulary_for
from recft.registry import Refusal
from recft.run import write_text

__all__ = ["MEMBER"]

MODEL = "model.gguf"


@dataclass(frozen=True)
class Gguf:
    """The target."""

    Config = NoSettings
    summary = "one file for llama.cpp and Ollama, with a Modelfile"
    needs: tuple[str, ...] = ("merge",)
    extra: str | None = EXTRA
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float16", "float32", "bfloat16", "int8")
    refusals: tuple[Refusal, ...] = (CAUSAL_ONLY, NO_CLASSIFIER)

    def write(self, source: Source, folder: Path) -> None:
        """Writes `model.gguf`, `Modelfile` and the tokenizer's files."""
        import torch

        require((EXTRA,), EXTRA)
        from recft.exports._gguf import layout_of, write_model
        from recft.exports._modelfile import modelfile
        from recft.models.base import config_of
        from recft.models.stock import stock_of

        merge, serving = source.need_merge(), source.serving
        config = config_of(source.model)
        layout = layout_of(config, serving.max_tokens)
        vocabulary = vocabulary_for(source.tokenizer, config.vocab_size, serving)
        dtype = getattr(torch, merge.model.compute_dtype)
        stock = stock_of(merge.model, merge.head, merge.n_outputs, dtype, merge.heads)
        shapes = {weight.name: weight.shape for weight in stock.weights}
        name = source.name
        write_model(
            folder / MODEL, layout, merge.tensors(), shapes, source.dtype, vocabulary, name, pooling=serving.pooling
        )
        save_tokenizer(source.tokenizer, serving, folder)
        context = config.max_position_embeddings
        text = modelfile(name, open_tokenizer(folder), serving, vocabulary.begins, f"FROM ./{MODEL}", context)
        write_text(folder / MODELFILE, text)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The file in llama.cpp; read back by transformers where llama.cpp is not installed."""
        return open_file(folder, folder / MODEL, how.serving)

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In llama.cpp's server and in Ollama."""
        return servers(description, f"-m FOLDER/{MODEL}")


MEMBER = Gguf()
