"""What every export target meets: write the artefact, and run it in the engine that serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recft.errors import ExportError, problem
from recft.registry import Refusal
from recft.schema import ModelSettings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recft.models.text_model import Serving, TextModel

__all__ = ["Engine", "Export", "Source"]


@dataclass(frozen=True)
class Source:
    """What a target may draw on; made by the verb, once.

    Attributes:
        reference: the tuned model: the adapter over float32 weights (`onto` decides which), in evaluation mode.
        tokenizer: the base's.
        merged: gives a fresh float32 transformers model with the adapter merged in and the trained head in place;
            None where the method has no weights to merge into.
        adapter: the run's adapter folder.
        adapter_config: its `adapter_config.json`.
        adapter_tensors: its `adapter_model.safetensors`.
        plain_lora: gives (config, tensors) of the exact plain LoRA, or None where the method is none.
        model: the recipe's base and quantization, `compute_dtype` as the run resolved it: k-bit weights are made
            from weights rounded to it.
        dtype: of the weights that are written.
    """

    reference: TextModel
    tokenizer: PreTrainedTokenizerBase
    merged: Callable[[], PreTrainedModel] | None
    adapter: Path
    adapter_config: Mapping[str, Any]
    adapter_tensors: Mapping[str, Tensor]
    plain_lora: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]] | None
    model: ModelSettings
    dtype: torch.dtype

    def need_merged(self) -> PreTrainedModel:
        """A fresh merged model.

        Raises:
            ExportError: the method has no weights to merge into.
        """
        if self.merged is None:
            raise ExportError(
                problem(
                    "export",
                    "this method cannot be merged",
                    "this target holds weights only, and the method adds to them",
                    "export to onnx",
                )
            )
        return self.merged()


@dataclass(frozen=True)
class Engine:
    """An artefact, loaded in the engine that serves it.

    Attributes:
        name: the engine, as people call it.
        version: its version.
        encode: texts -> (N, K) float32, what `models.text_model.encode` gives for the tuned model. It truncates
            plainly: (body, tail) texts go through `models.text_model.cut` first, with `tokenizer`.
        tokenizer: the artefact's own.
        dtype: what it computes in; in float32 it must agree with the reference up to rounding.
    """

    name: str
    version: str
    encode: Callable[[Sequence[str | tuple[str, str]]], np.ndarray]
    tokenizer: PreTrainedTokenizerBase
    dtype: str


class Export(Protocol):
    """One target format.

    `needs` names the Source's optional parts that it cannot do without (`merged`, `plain_lora`); `extra` the
    optional dependency to install, or None; `carries_base` is False where the artefact is served over a base that it
    does not hold.
    """

    summary: str
    needs: tuple[str, ...]
    extra: str | None
    carries_base: bool
    refusals: tuple[Refusal, ...]

    def write(self, source: Source, folder: Path) -> None:
        """Writes the artefact into an existing, empty folder.

        Raises:
            ExportError: this model cannot be written in this format.
        """

    def open(self, folder: Path, serving: Serving) -> Engine:
        """The artefact, loaded by its engine alone: nothing of the run is read.

        Raises:
            ExportError: the engine is not installed or refuses the artefact.
        """
