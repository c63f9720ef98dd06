"""One ONNX graph from token ids to the served numbers, for ONNX Runtime.

The graph holds everything: transformer, adapter (a prefix's keys and values, a bottleneck's layers), pooling or head,
normalization. Where the adapter can be merged it is, which makes the graph smaller. Batch and length are dynamic.

`graph.json` says what the graph is: operator sets, inputs and outputs with their dynamic axes, on which sides rows may
be padded, and what int8 has done (`_onnx_int8`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ExportError, problem
from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import (
    ROWS,
    ROWS_OF_LOGITS,
    batched,
    open_tokenizer,
    require,
    save_tokenizer,
    tokens,
    unreadable,
)
from recft.exports._onnx_graph import described, tidy
from recft.exports._onnx_servers import servers
from recft.registry import Refusal
from recft.run import write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.onnx import ONNXProgram

    from recft.models.text_model import TextModel
    from recft.models.tokens import Text

__all__ = ["MEMBER"]

OPSET = 20
LARGEST_FILE_BYTES = 1_900_000_000
"""An ONNX file is one protobuf, which ends at 2 GiB: weights beyond this go to a second file."""

MODEL, GRAPH = "model.onnx", "graph.json"


@dataclass(frozen=True)
class Onnx:
    """The target."""

    Config = NoSettings
    summary = "one graph for ONNX Runtime, prefix and bottleneck inside"
    needs: tuple[str, ...] = ()
    extra: str | None = "onnx"
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32", "int8")
    refusals: tuple[Refusal, ...] = ()

    def write(self, source: Source, folder: Path) -> None:
        """Writes `model.onnx` (and `model.onnx.data` beyond 2 GB), `graph.json` and the tokenizer's files."""
        from recft.exports._onnx_int8 import quantize
        from recft.models.text_model import TextModel

        require(("onnx", "onnxscript"), "onnx")
        serving = source.serving
        model = TextModel(source.merge.load(), serving) if source.merge else source.tuned()
        model = model.float().eval()
        inputs = _example(model, source)
        sides = "either" if _bears_left_padding(model, inputs, int(source.tokenizer.pad_token_id or 0)) else "right"
        program = _traced(model, inputs)
        del model
        tidy(program.model)
        # The float32 graph never reaches the disk: each matrix is replaced in memory.
        facts = {"quantization": quantize(program.model)} if source.dtype == "int8" else {}
        weights = program.model.graph.initializers.values()
        outside = sum(value.const_value.nbytes for value in weights if value.const_value) > LARGEST_FILE_BYTES
        program.save(str(folder / MODEL), external_data=outside)
        told = described(program.model) | {"dtype": source.dtype, "padding": sides, **facts}
        write_json(folder / GRAPH, {"file": MODEL, "data": f"{MODEL}.data" if outside else None, **told})
        save_tokenizer(source.tokenizer, serving, folder)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The graph in ONNX Runtime, on the CPU."""
        require(("onnxruntime",), "onnx")
        import onnxruntime

        serving, tokenizer = how.serving, open_tokenizer(folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            told = json.loads((folder / GRAPH).read_text(encoding="utf-8"))
            session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        except _engine_errors() as error:
            raise unreadable(folder, error) from error
        names = [entry.name for entry in session.get_inputs()]
        rows = ROWS_OF_LOGITS if serving.head == "likelihood" else ROWS

        def encoder(left: bool) -> Callable[[Sequence[Text]], np.ndarray]:
            def compute(texts: list[Text]) -> np.ndarray:
                import numpy as np

                batch = tokens(tokenizer, texts, serving, "np")
                given = {name: np.asarray(batch[name], "int64") for name in names}
                answer: np.ndarray = session.run(["outputs"], _moved_left(given) if left else given)[0]
                return answer

            return batched(compute, rows)

        return Engine(
            name="ONNX Runtime",
            version=onnxruntime.__version__,
            encode=encoder(left=False),
            tokenizer=tokenizer,
            dtype=told.get("dtype", "float32"),
            other_side=encoder(left=True) if told.get("padding") == "either" else None,
        )

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In ONNX Runtime."""
        return servers(description)


def _traced(model: TextModel, inputs: Mapping[str, Tensor]) -> ONNXProgram:
    """The model as a graph, without the notes of where its code lies."""
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    from recft.models.base import quiet

    with quiet(), _calm_exporter(), torch.no_grad():
        program = torch.onnx.export(
            model,
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=["outputs"],
            dynamic_shapes=_dynamic_shapes(inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        if program is None:  # only an older exporter gives none
            raise ExportError(problem("export", "torch gave no graph", "torch >= 2.11", "install it"))
        ClearMetadataAndDocStringPass()(program.model)
    return program


def _bears_left_padding(model: TextModel, example: Mapping[str, Tensor], pad_id: int) -> bool:
    """Whether rows padded on the left give the same: measured, since positions may be counted in many ways."""
    import torch

    mask = example["attention_mask"]
    ids = torch.arange(mask.numel()).reshape(mask.shape) + 5
    right = dict(example) | {"input_ids": torch.where(mask == 1, ids, pad_id)}
    left = {name: torch.roll(value[1:], 3, dims=1) for name, value in right.items()}  # the second row has 3 places free
    with torch.no_grad():
        expected, found = model(**right)[1], model(**left)[0]
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-4))


def _moved_left(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch padded on the right, padded on the left."""
    import numpy as np

    mask = batch["attention_mask"]
    width = mask.shape[1]
    places = (np.arange(width)[None] - (width - mask.sum(axis=1, keepdims=True))) % width
    return {name: np.take_along_axis(value, places, axis=1) for name, value in batch.items()}


def _engine_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own errors, which have no class in common, and those of a file that is none."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (OSError, RuntimeError, ValueError, *found)


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
