"""One ONNX graph from token ids to the served numbers, for ONNX Runtime.

The graph holds everything: transformer, adapter (a prefix's keys and values, a bottleneck's layers), pooling or head,
normalization. Where the adapter can be merged it is, which makes the graph smaller. Batch and length are dynamic.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ExportError, problem
from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import batched, open_tokenizer, require, save_tokenizer, tokens, unreadable
from recft.registry import Refusal
from recft.run import write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from recft.models.text_model import TextModel
    from recft.models.tokens import Text

__all__ = ["MEMBER"]

OPSET = 20
LARGEST_FILE_BYTES = 1_900_000_000
"""An ONNX file is one protobuf, which ends at 2 GiB: weights beyond this go to a second file."""

MODEL = "model.onnx"


@dataclass(frozen=True)
class Onnx:
    """The target."""

    Config = NoSettings
    summary = "one graph for ONNX Runtime, prefix and bottleneck inside"
    needs: tuple[str, ...] = ()
    extra: str | None = "onnx"
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32",)
    refusals: tuple[Refusal, ...] = ()

    def write(self, source: Source, folder: Path) -> None:
        """Writes `model.onnx` (and `model.onnx.data` beyond 2 GB), `graph.json` and the tokenizer's files."""
        import torch

        from recft.models.base import quiet
        from recft.models.text_model import TextModel

        require(("onnx", "onnxscript"), "onnx")
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        serving = source.serving
        model = TextModel(source.merge.load(), serving) if source.merge else source.tuned()
        model = model.float().eval()
        inputs = _example(model, source)
        n_bytes = sum(tensor.numel() * 4 for tensor in model.parameters())
        with quiet(), _calm_exporter(), torch.no_grad():
            program = torch.onnx.export(
                model,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["outputs"],
                dynamic_shapes=_dynamic_shapes(inputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            if program is None:  # only an older exporter gives none
                raise ExportError(problem("export", "torch gave no graph", "torch >= 2.11", "install it"))
            # The exporter notes, at every node, the paths and lines of the code that made it.
            ClearMetadataAndDocStringPass()(program.model)
            program.save(str(folder / MODEL), external_data=n_bytes > LARGEST_FILE_BYTES)
        description = {"file": MODEL, "opset": OPSET, "inputs": list(inputs), "outputs": ["outputs"]}
        write_json(folder / "graph.json", description)
        save_tokenizer(source.tokenizer, serving, folder)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The graph in ONNX Runtime, on the CPU."""
        require(("onnxruntime",), "onnx")
        import onnxruntime

        serving, tokenizer = how.serving, open_tokenizer(folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        except _engine_errors() as error:
            raise unreadable(folder, error) from error
        names = [entry.name for entry in session.get_inputs()]

        def compute(texts: list[Text]) -> np.ndarray:
            import numpy as np

            batch = tokens(tokenizer, texts, serving, "np")
            answer: np.ndarray = session.run(["outputs"], {name: np.asarray(batch[name], "int64") for name in names})[0]
            return answer

        return Engine("ONNX Runtime", onnxruntime.__version__, batched(compute), tokenizer, "float32")

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:  # noqa: ARG002
        """In ONNX Runtime."""
        return [Serve("ONNX Runtime", 'InferenceSession("FOLDER/model.onnx")', "python")]


def _engine_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own errors, which have no class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (OSError, RuntimeError, *found)


@contextlib.contextmanager
def _calm_exporter() -> Iterator[None]:
    """Keeps off the terminal what the exporter says about itself."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it misses torchvision, which no text model needs
    try:
        with warnings.catch_warnings():
            # torch's exporter compares trees in a way that torch is about to drop.
            warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
            yield
    finally:
        logger.setLevel(level)


def _dynamic_shapes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Batch and length are free, and the same for every input: the first one names them."""
    import torch

    free = torch.export.Dim.DYNAMIC
    return {name: {0: free, 1: free} if row else {0: "batch", 1: "length"} for row, name in enumerate(inputs)}


def _example(model: TextModel, source: Source) -> dict[str, Tensor]:
    """Inputs to trace with: two rows of unequal length, since a size of one would be taken for a constant."""
    import torch

    width = min(12, model.serving.max_tokens)
    mask = torch.ones(2, width, dtype=torch.long)
    mask[1, width - 3 :] = 0
    inputs: dict[str, Any] = {"input_ids": mask.clone(), "attention_mask": mask}
    if "token_type_ids" in source.tokenizer.model_input_names:
        inputs["token_type_ids"] = torch.zeros_like(mask)
    if model.serving.head == "likelihood":
        tail = torch.zeros_like(mask)
        tail[:, width - 6 : width - 3] = 1
        inputs["tail_mask"] = tail
    return inputs


MEMBER = Onnx()
