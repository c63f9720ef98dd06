"""A GGUF file read back by stock transformers: the engine where llama.cpp is not installed.

transformers reads tensors and most keys by code of its own; what it passes over (the size of heads, how rotary
positions are scaled) is taken from the file's keys here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.exports._engine import ROWS, ROWS_OF_LOGITS, batched, numbers, tokens, unreadable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["ReadBack"]


class ReadBack:
    """A GGUF file as a transformers model in float32."""

    def __init__(
        self, path: Path, serving: Serving, tokenizer: PreTrainedTokenizerBase, adapter: Path | None = None
    ) -> None:
        """Loads the file.

        Raises:
            ExportError: it cannot be read.
        """
        from gguf import GGUFReader

        try:
            self._reader = GGUFReader(path)
            self._model = _load(path, self._reader)
            if adapter is not None:
                _add_lora(self._model, GGUFReader(adapter))
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            raise unreadable(path.parent, error) from error
        self._serving, self._tokenizer = serving, tokenizer

    def said(self, key: str) -> str:
        """The file's value of a key as text; empty where it has none."""
        field = self._reader.get_field(key)
        return "" if field is None else str(field.contents())

    def encode(self, texts: Sequence[Text]) -> np.ndarray:
        """(N, K) float32, as `models.text_model.encode` gives for the tuned model."""

        def compute(part: list[Text]) -> np.ndarray:
            return numbers(self._model, tokens(self._tokenizer, part, self._serving, "pt"), self._serving)

        rows = ROWS_OF_LOGITS if self._serving.head in ("answers", "likelihood") else ROWS
        return batched(compute, rows)(texts)


def _load(path: Path, reader: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from recft.models.base import quiet

    # It draws a bar of its own while it reads.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        kind = _value(reader, "general.architecture")
        names = {tensor.name: tensor for tensor in reader.tensors}
        config.head_dim = _value(reader, f"{kind}.attention.key_length")
        config.attention_bias = "blk.0.attn_output.bias" in names or (kind == "qwen3" and "blk.0.attn_q.bias" in names)
        config.mlp_bias = "blk.0.ffn_up.bias" in names
        config.rope_parameters = _rope(reader, kind)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32
        )
    if (factors := names.get("rope_freqs.weight")) is not None:
        rotary = model.model.rotary_emb
        rotary.inv_freq = rotary.inv_freq / _tensor(factors)
    return model.eval()


def _value(reader: Any, key: str, otherwise: Any = None) -> Any:
    field = reader.get_field(key)
    return otherwise if field is None else field.contents()


def _rope(reader: Any, kind: str) -> dict[str, Any]:
    """What transformers calls `rope_parameters`, of the file's keys."""
    import math

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _value(reader, f"{kind}.rope.freq_base")}
    if scaling := _value(reader, f"{kind}.rope.scaling.type"):
        rope |= {"rope_type": scaling, "factor": _value(reader, f"{kind}.rope.scaling.factor")}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = _value(reader, f"{kind}.rope.scaling.original_context_length")
        share = _value(reader, f"{kind}.rope.scaling.attn_factor", 1.0)
        rope["attention_factor"] = share * (0.1 * math.log(rope["factor"]) + 1.0)
    return rope


def _add_lora(model: Any, adapter: Any) -> None:
    """Adds what an adapter's file says to the weights, by llama.cpp's rule: alpha / rank of B·A."""
    from recft.exports._gguf import layout_of

    layout = layout_of(model.config, max_tokens=0)
    places = {new: old for old, new in layout.names.items()}
    parts: dict[str, Tensor] = {tensor.name: _tensor(tensor) for tensor in adapter.tensors}
    alpha = _value(adapter, "adapter.lora.alpha")
    for name in [key.removesuffix(".weight.lora_a") for key in parts if key.endswith(".lora_a")]:
        right, left = parts[f"{name}.weight.lora_a"], parts[f"{name}.weight.lora_b"]
        module = places[name]
        weight = model.get_parameter(f"{module}.weight")
        weight.data += layout.rows_back(f"{module}.weight", left) @ right * (alpha / len(right))


def _tensor(stored: Any) -> Tensor:
    import gguf
    import torch

    return torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
