"""Merged weights: the adapter added, in float32, to weights freshly read from disk, a tensor at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from recft.errors import ExportError, problem
from recft.models.base import attention_of, k_bit_config, quiet, set_dropout_off
from recft.models.shards import PROGRESS, SHARD_BYTES, write_shards
from recft.models.stock import base_file, quantized_layers, stock_of
from recft.models.weight_pass import Bits, WeightPass
from recft.run import Listener, hash_bytes, silent
from recft.schema import K_BIT, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PROGRESS", "SHARD_BYTES", "Merge"]


@dataclass(frozen=True)
class Merge:
    """What merged weights are made of; nothing is read before it is asked for.

    Attributes:
        model: the base and its quantization, `compute_dtype` as the run resolved it.
        head: decides the transformers class, as in `models.base.load_base`.
        n_outputs: of a new head.
        onto: `original`, the published weights, or `dequantized`, those that the adapter was trained on.
        change: a module's name and its float32 weight (out, in) -> the merged weight, or the weight itself. One that
            takes `rows` too, a slice, is given those of the weight, in memory that it may use for the result.
        heads: trained heads in float32, by their name in the model.
        seed: of what is new in the model and not trained.
        identity: tells base and adapter from any other, by their hashes; where it is empty an interrupted `write` is
            begun anew.
    """

    model: ModelSettings
    head: str
    n_outputs: int
    onto: str
    change: Callable[[str, Tensor], Tensor]
    heads: Mapping[str, Tensor]
    seed: int = 0
    identity: str = ""

    def load(self) -> PreTrainedModel:
        """The merged model in float32, on the CPU, in evaluation mode.

        Raises:
            ExportError: merging changed no weight, or this base cannot be merged.
        """
        work = self._pass(torch.float32)
        config = work.stock.model.config
        with quiet():
            model: PreTrainedModel = type(work.stock.model).from_pretrained(
                None,
                config=config,
                state_dict=dict(work.values()),
                dtype=torch.float32,
                attn_implementation=attention_of(self.model, torch.device("cpu"), torch.float32),
            )
        model.config.name_or_path = self.model.base
        model.eval().requires_grad_(False)
        set_dropout_off(model)
        return model

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, float32 tensor) of the merged model, one at a time; names as in the stock model, tied ones once.

        What is no floating-point number stays as it is.

        Raises:
            ExportError: merging changed no weight, or this base cannot be merged.
        """
        yield from self._pass(torch.float32).values()

    def write(self, folder: Path, dtype: str, listen: Listener = silent, shard_bytes: int = SHARD_BYTES) -> None:
        """Writes `config.json` and the merged weights as safetensors.

        A call that was interrupted is taken up where its last whole file ends, if what is written is the same.

        Args:
            folder: where to; exists. PROGRESS stays in it, for the caller to remove.
            dtype: `float32`, `bfloat16` or `float16`; or `int8`, `nf4` or `fp4`: linear layers in bitsandbytes' form,
                the rest in the compute dtype.
            listen: hears of bytes written.
            shard_bytes: the most that a file holds.

        Raises:
            ExportError: merging changed no weight, this base cannot be merged, or the disk is full.
        """
        plain = getattr(torch, self.model.compute_dtype if dtype in K_BIT else dtype)
        bits, quantization = self._bits(dtype, plain) if dtype in K_BIT else (Bits(), None)
        work = self._pass(plain, bits)
        self._write_config(work.stock.model, plain, quantization, folder)
        fingerprint = self._fingerprint(dtype, shard_bytes) if self.identity else ""
        with contextlib.nullcontext() if work.quantizes else _one_thread():
            write_shards(folder, work.pieces(), work.made, fingerprint, shard_bytes, listen)

    def _pass(self, dtype: torch.dtype, written: Bits | None = None) -> WeightPass:
        held = torch.float32 if self.onto == "original" else getattr(torch, self.model.compute_dtype)
        stock = stock_of(self.model, self.head, self.n_outputs, held, self.heads)
        seen = Bits()
        if self.onto != "original" and self.model.quantization != "none":
            layers, _ = quantized_layers(self.model, self.head, self.n_outputs, held)
            seen = Bits(self.model.quantization, self.model.double_quantization, layers)
        return WeightPass(stock, self.change, self.heads, dtype, seen, written or Bits())

    def _bits(self, kind: str, dtype: torch.dtype) -> tuple[Bits, Any]:
        """The layers that are written in k bits, and the settings by which a stock loader makes the same ones k-bit."""
        from transformers.quantizers.quantizers_utils import should_convert_module

        settings = self.model.model_copy(update={"quantization": kind})
        layers, plain = quantized_layers(settings, self.head, self.n_outputs, dtype)
        if not layers:
            raise ExportError(
                problem(
                    "export.dtype",
                    f"'{self.model.base}' has no layer that becomes {kind}",
                    "bitsandbytes quantizes plain linear layers",
                    "export in float32, bfloat16 or float16",
                )
            )
        loading = k_bit_config(settings, dtype)
        # One by one where that says the same: not every engine reads patterns.
        if all(should_convert_module(layer, plain) for layer in layers):
            loading.llm_int8_skip_modules = plain
        return Bits(kind, settings.double_quantization, layers), loading

    def _write_config(self, model: PreTrainedModel, dtype: torch.dtype, quantization: Any, folder: Path) -> None:
        """Writes `config.json`, the base's `generation_config.json`, and code that the base brings along."""
        from transformers.dynamic_module_utils import custom_object_save

        config = model.config
        config.architectures = [type(model).__name__]
        config.dtype = str(dtype).removeprefix("torch.")
        if quantization is not None:
            config.quantization_config = quantization
        if model.is_remote_code():
            custom_object_save(model, folder, config=cast("Any", config))
        config.save_pretrained(folder)
        generation = base_file(self.model, "generation_config.json") if model.can_generate() else None
        if generation is not None:
            (folder / generation.name).write_bytes(generation.read_bytes())

    def _fingerprint(self, dtype: str, shard_bytes: int) -> str:
        """Of all that decides the bytes."""
        import bitsandbytes as bnb
        import transformers

        heads = {name: hash_bytes(head.contiguous().numpy().tobytes()) for name, head in self.heads.items()}
        parts = {
            "identity": self.identity,
            "model": self.model.model_dump(mode="json"),
            "head": [self.head, self.n_outputs, heads],
            "written": [self.onto, dtype, shard_bytes],
            "versions": [torch.__version__, transformers.__version__, bnb.__version__],
        }
        return hash_bytes(json.dumps(parts, sort_keys=True).encode())


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Within it torch computes in one thread: reading and writing, beside it, fill a second one.

    Blocks that fit a processor's cache gain little from more, and lose much where the processors are busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
