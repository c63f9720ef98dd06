"""GGUF files: what llama.cpp must know of a causal model, its tensors under llama.cpp's names, and the file itself.

The file is written front to back by what the configuration says, and each tensor then goes to its own place as it
comes: one tensor is in memory, in whatever order they come.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.exports._engine import refuse

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from torch import Tensor
    from transformers import PretrainedConfig

    from recft.exports._gguf_tokenizer import Vocabulary

__all__ = ["POOLING", "Layout", "layout_of", "write_model", "write_tensors"]

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model types that llama.cpp knows and recft has tried, and what llama.cpp calls them."""

FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "int8": "MOSTLY_Q8_0"}
TENSOR_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}
POOLING = {"mean": "MEAN", "last": "LAST"}
BLOCK = 32
"""Values that share a scale in Q8_0: rows of another length stay in 16 bits."""

ALIGNMENT = 32


@dataclass(frozen=True)
class Layout:
    """How a model's tensors lie in GGUF.

    Attributes:
        architecture: llama.cpp's name of it.
        config: the model's own.
        names: a tensor's name in transformers' causal class, without what follows the last dot -> llama.cpp's.
    """

    architecture: str
    config: PretrainedConfig
    names: Mapping[str, str]

    def name(self, name: str) -> str:
        """What llama.cpp calls a weight or bias of the stock model, or of its body alone.

        Raises:
            ExportError: it has no place for it.
        """
        module, _, kind = name.rpartition(".")
        if not module.startswith(("model.", "lm_head")):
            module = f"model.{module}"
        if module not in self.names or kind not in ("weight", "bias"):
            refuse(f"the tensor '{name}'", f"llama.cpp's {self.architecture} has a place for every tensor")
        return f"{self.names[module]}.{kind}"

    def rows(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as llama.cpp reads it, by its transformers name; first dimension: the layer's outputs.

        Its llama architecture turns neighbours (2i, 2i + 1) of a head in the rotary embedding, transformers turns
        (i, i + d/2): the rows of queries and keys change places.
        """
        heads = self._turned_heads(name)
        if not heads:
            return tensor
        return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)

    def rows_back(self, name: str, tensor: Tensor) -> Tensor:
        """The reverse of `rows`."""
        heads = self._turned_heads(name)
        if not heads:
            return tensor
        return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)

    def _turned_heads(self, name: str) -> int:
        found = re.search(r"\.([qk])_proj(\.|$)", name) if self.architecture == "llama" else None
        if found is None:
            return 0
        kind = "num_attention_heads" if found[1] == "q" else "num_key_value_heads"
        return int(getattr(self.config, kind))


def layout_of(config: PretrainedConfig, max_tokens: int) -> Layout:
    """The layout of a model that texts of `max_tokens` are served with.

    Raises:
        ExportError: llama.cpp would compute something else, or nothing.
    """
    import gguf

    if config.model_type not in ARCHITECTURES:
        refuse(f"the architecture '{config.model_type}'", f"GGUF is written for {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[config.model_type]
    if config.hidden_act not in ("silu", "swish"):
        refuse(f"the activation '{config.hidden_act}'", f"llama.cpp's {architecture} computes with silu")
    window = getattr(config, "sliding_window", None)
    if window and window < max_tokens:
        refuse(
            f"sliding attention over {window} tokens, for texts of up to {max_tokens}",
            f"llama.cpp's {architecture} attends to everything",
            f"tune with tune.max_tokens: {window}, or export to merged or onnx",
        )
    if architecture == "qwen2" and _head_size(config) * config.num_attention_heads != config.hidden_size:
        refuse("heads of another size than hidden / heads", "llama.cpp's qwen2 knows no other")
    if _rope(config).get("partial_rotary_factor", 1.0) != 1.0:
        refuse("a partial rotary embedding", f"llama.cpp's {architecture} turns whole heads")
    names = gguf.get_tensor_name_map(
        next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    plain = {name: names.get_name(name) for name in _modules(config.num_hidden_layers)}
    return Layout(architecture, config, {name: found for name, found in plain.items() if found})


def _modules(layers: int) -> Iterable[str]:
    yield from ("model.embed_tokens", "model.norm", "lm_head")
    parts = ["input_layernorm", "post_attention_layernorm"]
    parts += [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    parts += [f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
    yield from (f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts)


def _head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    return dict(config.rope_parameters or {})


def write_model(
    path: Path,
    layout: Layout,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    vocabulary: Vocabulary,
    name: str,
    pooling: str = "",
) -> None:
    """Writes a whole model. Without a head of its own llama.cpp takes the embeddings as the head: tied ones come once.

    Args:
        path: of the file.
        layout: of the model.
        tensors: name in transformers and float32 values.
        shapes: of all the tensors that are to come.
        dtype: a key of TENSOR_TYPES.
        vocabulary: of its tokenizer.
        name: what people call the model.
        pooling: a key of POOLING where it embeds texts.

    Raises:
        ExportError: a tensor is missing or has no place.
    """
    import gguf

    config = layout.config
    writer = gguf.GGUFWriter(None, layout.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(int(gguf.LlamaFileType[FILE_TYPES[dtype]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    if pooling in POOLING:
        writer.add_pooling_type(gguf.PoolingType[POOLING[pooling]])
    vocabulary.add_to(writer)
    extra = _add_rope(writer, config)
    # Tasks that share a base may have a classifier's head beside this one, which llama.cpp cannot hold.
    sizes = {layout.name(key): shape for key, shape in shapes.items() if not key.startswith("score.")}
    sizes |= {key: tuple(value.shape) for key, value in extra.items()}
    named = ((layout.name(key), layout.rows(key, value)) for key, value in tensors if not key.startswith("score."))
    write_tensors(writer, path, sizes, dtype, chain(extra.items(), named))


def _add_shape(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))


def _add_rope(writer: GGUFWriter, config: PretrainedConfig) -> dict[str, Tensor]:
    """Says how rotary positions are scaled; the tensors that this takes.

    Raises:
        ExportError: llama.cpp scales otherwise.
    """
    import gguf
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    if kind == "llama3" and writer.arch == "llama":
        size, theta = _head_size(config), float(rope["rope_theta"])
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        return {"rope_freqs.weight": plain / scaled}
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
    unusual = [name for name, value in usual.items() if rope.get(name) not in (None, value)]
    if kind not in ("linear", "yarn") or unusual:
        refuse(
            f"rope_parameters {rope}", f"llama.cpp's {writer.arch} scales positions by linear, llama3 (llama) or yarn"
        )
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        if (wanted := rope.get("attention_factor")) is not None:
            writer.add_rope_scaling_attn_factors(float(wanted) / (0.1 * math.log(rope["factor"]) + 1.0))
    return {}


def write_tensors(
    writer: GGUFWriter,
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Writes a file of the writer's keys and of tensors by llama.cpp's names, which may come in any order.

    Raises:
        ExportError: one is missing, is not announced, has another shape or does not fit in the dtype.
    """
    import gguf
    import numpy as np

    places, offset = {}, 0
    for name, shape in shapes.items():
        kind = _type_of(shape, dtype)
        size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = math.prod(shape) // size * size_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
        places[name] = (offset, kind)
        offset += -(-n_bytes // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // ALIGNMENT) * ALIGNMENT
    missing = set(shapes)
    with path.open("r+b") as file:
        file.truncate(start + offset)
        for name, tensor in tensors:
            if name not in missing or tuple(tensor.shape) != tuple(shapes[name]):
                refuse(f"the tensor '{name}' of shape {tuple(tensor.shape)}", "the tensors that the configuration says")
            missing.discard(name)
            file.seek(start + places[name][0])
            file.write(_packed(name, tensor, places[name][1]))
    if missing:
        refuse(f"{len(missing)} tensors are missing, '{min(missing)}' first", "the tensors that the configuration says")


def _type_of(shape: tuple[int, ...], dtype: str) -> GGMLQuantizationType:
    """Norms and biases are small and matter: they stay in float32, as llama.cpp's own converter leaves them."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if dtype == "int8" and shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[TENSOR_TYPES[dtype]]


def _packed(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> memoryview:
    import gguf
    import numpy as np

    values = np.ascontiguousarray(tensor.detach().float().numpy())
    packed: np.ndarray = values
    if kind is gguf.GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            packed = values.astype(np.float16)
        if not np.isfinite(packed).all():
            refuse(f"'{name}' holds values above 65504", "float16 ends there", "set export.dtype: bfloat16")
    elif kind is not gguf.GGMLQuantizationType.F32:
        packed = gguf.quants.quantize(values, kind)
    return np.ascontiguousarray(packed).data.cast("B")
