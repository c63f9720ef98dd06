"""The adapter as a GGUF LoRA, for `llama-server --lora` and Ollama's ADAPTER, over the base's own GGUF file.

What is written is the exact plain LoRA, W' = W + (alpha / r)·B·A, in llama.cpp's names and order of rows. `base.json`
says how the base was loaded: the certificate writes that base as GGUF, in float32 and as the adapter saw it, and puts
the adapter over it in llama.cpp.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import BASE, base_of, open_tokenizer, refuse, require, save_tokenizer, unreadable
from recft.exports._gguf_engine import CAUSAL_ONLY, EXTRA, MODELFILE, NO_CLASSIFIER, open_file, servers, vocabulary_for
from recft.registry import Refusal
from recft.run import write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from recft.models.text_model import Serving
    from recft.schema import ModelSettings

__all__ = ["MEMBER"]

ADAPTER = "adapter.gguf"
SAVED_PREFIX = "base_model.model."
"""What PEFT puts before every module name in its files."""


@dataclass(frozen=True)
class GgufAdapter:
    """The target."""

    Config = NoSettings
    summary = "the LoRA as GGUF, for llama.cpp and Ollama over the base's own GGUF"
    needs: tuple[str, ...] = ("plain_lora",)
    extra: str | None = EXTRA
    carries_base: bool = False
    dtypes: tuple[str, ...] = ("float32", "float16")
    refusals: tuple[Refusal, ...] = (
        CAUSAL_ONLY,
        NO_CLASSIFIER,
        Refusal(
            when={"method.name": "lora", "method.dora": True},
            reason="llama.cpp adds a plain LoRA, and DoRA is none",
            fix="export to gguf, which holds the merged weights",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes `adapter.gguf`, `base.json`, `Modelfile` and the tokenizer's files."""
        require((EXTRA,), EXTRA)
        import gguf

        from recft.exports._gguf import layout_of, write_tensors
        from recft.exports._modelfile import modelfile
        from recft.models.base import config_of

        serving = source.serving
        if source.plain_lora is None:
            refuse("this adapter is no plain LoRA", "llama.cpp adds B·A to a weight", "export to gguf")
        lora, tensors = source.plain_lora
        if lora.get("rank_pattern") or lora.get("alpha_pattern") or lora.get("use_rslora"):
            refuse("an adapter with a scale for each layer", "one alpha for all layers", "export to gguf")
        config = config_of(source.model)
        layout = layout_of(config, serving.max_tokens)
        parts = dict(_parts(tensors, lora["r"]))
        named = {
            f"{layout.name(name)}.{side}": layout.rows(name, part) if side == "lora_b" else part
            for (name, side), part in parts.items()
        }
        writer = gguf.GGUFWriter(None, layout.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora["lora_alpha"]))
        writer.add_name(source.name)
        shapes = {name: tuple(part.shape) for name, part in named.items()}
        write_tensors(writer, folder / ADAPTER, shapes, source.dtype, named.items())
        write_json(folder / BASE, source.model.model_dump(mode="json"))
        save_tokenizer(source.tokenizer, serving, folder)
        begins = vocabulary_for(source.tokenizer, config.vocab_size, serving).begins
        files = f"# BASE.gguf is the base's own file.\nFROM ./BASE.gguf\nADAPTER ./{ADAPTER}"
        context = config.max_position_embeddings
        text = modelfile(source.name, open_tokenizer(folder), serving, begins, files, context)
        write_text(folder / MODELFILE, text)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The adapter in llama.cpp over the base's GGUF, which is written in float32 for as long as it is open."""
        require((EXTRA,), EXTRA)
        for name in (BASE, ADAPTER):
            if not (folder / name).is_file():
                raise unreadable(folder, OSError(f"there is no {name}"))
        settings = base_of(folder, how.trust)
        dtype = _dtype(folder / ADAPTER)
        scratch = Path(tempfile.mkdtemp(prefix="recft-gguf-"))
        try:
            path = scratch / "base.gguf"
            _write_base(path, settings, open_tokenizer(folder), how.serving)
            # llama.cpp maps the file into memory: it goes when the engine does.
            return open_file(folder, path, how.serving, folder / ADAPTER, dtype, scratch)
        except BaseException:
            shutil.rmtree(scratch)
            raise

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In llama.cpp's server and in Ollama, over the base's GGUF."""
        return servers(description, f"-m BASE.gguf --lora FOLDER/{ADAPTER}")


def _parts(tensors: Mapping[str, Tensor], rank: int) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """((the weight's name, lora_a or lora_b), values) of each half; what llama.cpp divides by the half's own rank."""
    for key, tensor in tensors.items():
        name = key.removeprefix(SAVED_PREFIX)
        for side in ("lora_A", "lora_B"):
            if name.endswith(f".{side}.weight"):
                values = tensor.float()
                if side == "lora_B":
                    values = values * (tensor.shape[1] / rank)
                yield (f"{name.removesuffix(f'.{side}.weight')}.weight", side.lower()), values


def _write_base(path: Path, settings: ModelSettings, tokenizer: Any, serving: Serving) -> None:
    """The base's own GGUF, as the adapter saw it."""
    import torch

    from recft.exports._gguf import layout_of, write_model
    from recft.models.weights import float32_base

    dtype = getattr(torch, settings.compute_dtype)
    model = float32_base(settings, serving.carrier, dtype, "dequantized", n_labels=serving.n_outputs).model
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    layout = layout_of(model.config, serving.max_tokens)
    vocabulary = vocabulary_for(tokenizer, model.config.vocab_size, serving)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    write_model(path, layout, state.items(), shapes, "float32", vocabulary, "base", pooling=serving.pooling)


def _dtype(path: Path) -> str:
    """What the adapter was written in."""
    from gguf import GGMLQuantizationType, GGUFReader

    try:
        kinds = {tensor.tensor_type for tensor in GGUFReader(path).tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise unreadable(path.parent, error) from error
    return "float16" if GGMLQuantizationType.F16 in kinds else "float32"


MEMBER = GgufAdapter()
