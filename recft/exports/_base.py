"""What every export target meets: write the artefact, run it in the engine that serves it, say how it is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recft import registry
from recft.errors import ExportError, problem
from recft.registry import Refusal
from recft.run import Listener, silent
from recft.schema import ModelSettings, Settings, Tolerances

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from recft.exports._rows import Rows
    from recft.models.merging import Merge
    from recft.models.text_model import Serving, TextModel
    from recft.models.tokens import Text

__all__ = ["Catalogue", "Engine", "Export", "FittedLora", "NoSettings", "Opening", "Serve", "Source", "other_target"]

other_target = partial(registry.load, "recft.exports")


class NoSettings(Settings):
    """The settings of a target that has none."""


@dataclass(frozen=True)
class Catalogue:
    """The items of a run, by item number.

    Attributes:
        ids: as in `data.items`.
        texts: what the item tower reads; none where the task has no such tower.
    """

    ids: Sequence[str] = ()
    texts: Sequence[Text] = ()


@dataclass(frozen=True)
class FittedLora:
    """A plain LoRA that was fitted to the tuned model's numbers.

    Attributes:
        config: its `adapter_config.json`.
        tensors: its `adapter_model.safetensors`.
        merge: makes the base's weights with it.
        figures: of the fit: how many texts and steps, and the share of the adapter's effect that is missing.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    merge: Merge
    figures: Mapping[str, float | int]


@dataclass(frozen=True)
class Source:
    """What a target may draw on; made by the verb, once. Functions load what they give when they are called.

    Attributes:
        name: the run's.
        serving: how texts become numbers.
        tokenizer: the base's.
        tuned: gives a fresh tuned model: the adapter over float32 weights, on the CPU, in evaluation mode.
        merge: makes the merged weights; None where the method has no weights to merge into.
        adapter_config: the run's `adapter_config.json`.
        adapter_tensors: its `adapter_model.safetensors`.
        plain_lora: (config, tensors) of the exact plain LoRA, or None where the method is none.
        model: the recipe's base and quantization, `compute_dtype` as the run resolved it: k-bit weights are made
            from weights rounded to it.
        dtype: of the weights that are written, one of the target's `dtypes`.
        settings: the target's own, an object of its `Config`.
        catalogue: the run's items.
        prompts: what a task puts before its texts, by the role that sentence-transformers knows: `query`, `document`.
        texts: some training texts, as the model reads them: of a distilled model's fit.
        fit: (texts, rank, steps, learning_rate, batch_size) -> a plain LoRA over the same base that gives the tuned
            model's numbers; None where the verb hands over none.
        others: another target by name, for one that puts an artefact of it into its folder.
        listen: hears of stages.
    """

    name: str
    serving: Serving
    tokenizer: PreTrainedTokenizerBase
    tuned: Callable[[], TextModel]
    merge: Merge | None
    adapter_config: Mapping[str, Any]
    adapter_tensors: Mapping[str, Tensor]
    plain_lora: tuple[dict[str, Any], dict[str, Tensor]] | None
    model: ModelSettings
    dtype: str = "float32"
    settings: Settings = field(default_factory=NoSettings)
    catalogue: Catalogue = Catalogue()
    prompts: Mapping[str, str] = field(default_factory=dict)
    texts: Callable[[int], list[Text]] = lambda _most: []
    fit: Callable[..., FittedLora] | None = None
    others: Callable[[str], Export] = other_target
    listen: Listener = silent

    def need_merge(self) -> Merge:
        """What makes the merged weights.

        Raises:
            ExportError: the method has no weights to merge into.
        """
        if self.merge is None:
            raise ExportError(
                problem(
                    "export",
                    "this method cannot be merged",
                    "this target holds weights only, and the method adds to them",
                    "export to onnx",
                )
            )
        return self.merge


@dataclass(frozen=True)
class Opening:
    """What an artefact is opened with, besides its folder.

    Attributes:
        serving: how texts become numbers.
        trust: whether code that lies in the folder may be run: the user's word, never the folder's.
        tolerances: what `Engine.own` judges by.
        others: another target by name.
    """

    serving: Serving
    trust: bool = False
    tolerances: Tolerances = field(default_factory=Tolerances)
    others: Callable[[str], Export] = other_target


@dataclass(frozen=True)
class Engine:
    """An artefact, loaded in the engine that serves it.

    Attributes:
        name: the engine, as people call it.
        version: its version.
        encode: texts -> (N, K) float32, what `models.text_model.encode` gives for the tuned model. It truncates
            plainly: (body, tail) texts go through `models.text_model.cut` first, with `tokenizer`.
        tokenizer: the artefact's own files, as transformers reads them.
        dtype: what it computes in; in float32 it must agree with the reference up to rounding.
        tokens: the engine's own token ids, where it does not tokenize with `tokenizer`.
        other_side: `encode` with the padding on the other side; None where the engine pads by itself or not at all.
        search: vectors (B, D), depth -> item numbers (B, depth), -1 where there is none, and scores (B, depth): where
            the artefact holds the items' vectors. Then `encode` need not be asked for the catalogue.
        searched: the ids of the items that `search` numbers.
        own: further measurements that only this target has: rows -> (figures, what is wrong in words).
        distilled: whether its weights were fitted to the tuned model's outputs: it is judged by how close it comes.
    """

    name: str
    version: str
    encode: Callable[[Sequence[Text]], np.ndarray]
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    tokens: Callable[[Sequence[Text]], list[list[int]]] | None = None
    other_side: Callable[[Sequence[Text]], np.ndarray] | None = None
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None = None
    searched: Sequence[str] = ()
    own: Callable[[Rows], tuple[dict[str, Any], list[str]]] | None = None
    distilled: bool = False


@dataclass(frozen=True)
class Serve:
    """How people serve an artefact in one engine.

    Attributes:
        engine: as people call it.
        lines: what to type; none where the engine refuses the artefact.
        language: of the lines: `sh` or `python`.
        refused: why the engine does not take it, and what to take instead; empty where it does.
        tried: whether recft's own tests run the artefact in this engine.
    """

    engine: str
    lines: str = ""
    language: str = "sh"
    refused: str = ""
    tried: bool = True


class Export(Protocol):
    """One target format.

    `needs` names the Source's optional parts that it cannot do without (`merge`, `plain_lora`); `extra` the optional
    dependency to install, or None; `carries_base` is False where the artefact is served over a base that it does not
    hold; `dtypes` are those that it can be written in, the default first.
    """

    Config: type[Settings]
    summary: str
    needs: tuple[str, ...]
    extra: str | None
    carries_base: bool
    dtypes: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    def write(self, source: Source, folder: Path) -> None:
        """Writes the artefact into an existing folder, which is empty or holds what an interrupted export left.

        Raises:
            ExportError: this model cannot be written in this format.
        """

    def open(self, folder: Path, how: Opening) -> Engine:
        """The artefact, loaded by its engine alone: nothing of the run is read.

        Raises:
            ExportError: the engine is not installed or refuses the artefact, or it wants trust that was not given.
        """

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """How the artefact is served; `description` is recft-export.json, `FOLDER` stands for its folder."""
