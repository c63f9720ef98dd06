"""One plain transformers model: the adapter merged into float32 weights, as safetensors shards.

W' is computed a tensor at a time from weights freshly read from disk, and written in the wanted dtype, with the head,
tied embeddings once, and the tokenizer. In int8, nf4 and fp4 the linear layers are quantized again, in bitsandbytes'
own form. A stock `from_pretrained` loads all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import (
    ROWS,
    ROWS_OF_LOGITS,
    batched,
    numbers,
    open_tokenizer,
    save_tokenizer,
    tokens,
    unreadable,
)
from recft.exports._left import left_padded
from recft.registry import Refusal
from recft.schema import K_BIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["MEMBER"]


@dataclass(frozen=True)
class Merged:
    """The target."""

    Config = NoSettings
    summary = "a plain transformers model in safetensors, loaded by from_pretrained"
    needs: tuple[str, ...] = ("merge",)
    extra: str | None = None
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", *K_BIT)
    refusals: tuple[Refusal, ...] = ()

    def write(self, source: Source, folder: Path) -> None:
        """Writes `config.json`, the weights in shards, and the tokenizer's files."""
        source.need_merge().write(folder, source.dtype, source.listen)
        save_tokenizer(source.tokenizer, source.serving, folder)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The model of the stock Auto class, in the dtype it was written in."""
        import transformers

        tokenizer = open_tokenizer(folder)
        model, dtype = _load(folder, how)
        left = left_padded(model, how.serving)
        return Engine(
            "transformers",
            transformers.__version__,
            _encoder(model, model, tokenizer, how.serving),
            tokenizer,
            dtype,
            other_side=None if left is None else _encoder(left, model, tokenizer, how.serving),
        )

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In transformers, vLLM, and TEI where that takes such a model."""
        serving = description["serving"]
        return [_transformers(serving), _vllm(serving, description["dtype"]), _tei(serving, description["dtype"])]


def _load(folder: Path, how: Opening) -> tuple[PreTrainedModel, str]:
    """The model, and what its weights were written in."""
    import torch
    import transformers

    from recft.models.base import AUTO_CLASS, config_of, device_of, quiet, steady_quantized_layers
    from recft.schema import ModelSettings

    device = device_of()
    try:
        stored = getattr(
            config_of(ModelSettings(base=str(folder), trust_remote_code=how.trust)), "quantization_config", None
        )
        with quiet():
            model: PreTrainedModel = getattr(transformers, AUTO_CLASS[how.serving.head]).from_pretrained(
                folder,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=how.trust,
                **({} if stored is None else {"device_map": {"": str(device)}}),
            )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(folder, error) from error
    model.eval()
    if stored is None:
        torch.nn.Module.to(model, device)
        return model, str(model.dtype).removeprefix("torch.")
    # The library's kernels for evaluation repack or round in place; what is certified is the weights.
    steady_quantized_layers(model, device)
    plain = stored if isinstance(stored, Mapping) else stored.to_dict()
    return model, "int8" if plain.get("load_in_8bit") else plain["bnb_4bit_quant_type"]


def _encoder(
    computing: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, serving: Serving
) -> Callable[[Sequence[Text]], np.ndarray]:
    def compute(texts: list[Text]) -> np.ndarray:
        batch = tokens(tokenizer, texts, serving, "pt")
        return numbers(computing, {name: tensor.to(model.device) for name, tensor in batch.items()}, serving)

    return batched(compute, ROWS_OF_LOGITS if serving.head in ("answers", "likelihood") else ROWS)


def _transformers(serving: Mapping[str, Any]) -> Serve:
    from recft.models.base import AUTO_CLASS

    name = AUTO_CLASS[serving["head"]]
    lines = [
        f"from transformers import AutoTokenizer, {name}",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {name}.from_pretrained("FOLDER", dtype="auto").eval()',
    ]
    return Serve("transformers", "\n".join(lines), "python")


def _vllm(serving: Mapping[str, Any], dtype: str) -> Serve:
    """Its pooler is told what the task does: by itself it takes the last token and normalizes."""
    if serving["head"] == "classifier" and serving.get("columns"):
        return Serve("vLLM", refused="it serves one task's scores, and this head holds several tasks'; take onnx")
    line = f"vllm serve FOLDER --max-model-len {serving['max_tokens']}"
    if serving["head"] == "embedding":
        pooling = {"mean": "MEAN", "last": "LAST"}[serving["pooling"]]
        activation = "true" if serving["normalize"] else "false"
        pooler = f'{{"pooling_type": "{pooling}", "use_activation": {activation}}}'
        line += f" --runner pooling --convert embed --pooler-config '{pooler}'"
    elif serving["head"] == "classifier":
        # Without its softmax or sigmoid: temperature and calibration are applied to logits.
        line += " --runner pooling --convert classify --pooler-config '{\"use_activation\": false}'"
    if dtype in K_BIT:
        line += " --quantization bitsandbytes"
    elif dtype == "float32":
        line += " --dtype float32"
    return Serve("vLLM", line, tried=False)


def _tei(serving: Mapping[str, Any], dtype: str) -> Serve:
    """It serves encoders: embeddings with a pooling that it is told, and classifiers."""
    engine = "TEI"
    if serving["head"] in ("answers", "likelihood"):
        return Serve(
            engine, refused="it serves embeddings and classifiers, and this task reads tokens' logits; use vLLM"
        )
    if serving["kind"] == "causal":
        return Serve(
            engine, refused="of causal bases it knows a few only; use vLLM, or export to sentence-transformers"
        )
    if dtype in (*K_BIT, "bfloat16"):
        return Serve(engine, refused=f"it computes in float32 or float16, not in {dtype}; export in one of these")
    if serving["head"] == "classifier" and serving.get("columns"):
        return Serve(engine, refused="it serves one task's scores, and this head holds several tasks'; take onnx")
    line = f"text-embeddings-router --model-id FOLDER --dtype {dtype} --auto-truncate --port 8080"
    if serving["head"] == "embedding":
        line += f" --pooling {'mean' if serving['pooling'] == 'mean' else 'last-token'}"
    return Serve(engine, line, tried=False)


MEMBER = Merged()
