"""The adapter alone, in PEFT's own layout, served over the base it was tuned on.

`adapter_config.json` and `adapter_model.safetensors` are the exact plain LoRA wherever there is one: AdaLoRA's
B·diag(E)·A with its pruned ranks filled up by zeros, rsLoRA's scale as an alpha of r·s. Engines that put a LoRA on a
running base (vLLM, SGLang) read one rank and one scale and nothing else. DoRA and prefixes are none and stay what they
are, which PEFT reads. The trained head lies beside the adapter as PEFT keeps one (`modules_to_save`), so that stock
PEFT computes the whole model. `base.json` says how the base was loaded: an adapter over an nf4 base belongs to those
nf4 weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ExportError, problem
from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import (
    BASE,
    ROWS,
    ROWS_OF_LOGITS,
    base_of,
    batched,
    numbers,
    open_tokenizer,
    save_tokenizer,
    tokens,
    unreadable,
)
from recft.exports._lora_servers import in_peft, in_vllm
from recft.registry import Refusal
from recft.run import write_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from recft.models.tokens import Text
    from recft.schema import ModelSettings

__all__ = ["MEMBER"]

SAVED_PREFIX = "base_model.model."
"""What PEFT puts before every module name in its files."""


@dataclass(frozen=True)
class Adapter:
    """The target."""

    Config = NoSettings
    summary = "the adapter in PEFT's layout, served over its base"
    needs: tuple[str, ...] = ()
    extra: str | None = None
    carries_base: bool = False
    dtypes: tuple[str, ...] = ("float32",)
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"method.name": "bottleneck"},
            reason="PEFT has no bottleneck adapters, so that no stock engine reads this folder",
            fix="export to onnx, which carries them inside the graph",
        ),
        Refusal(
            when={"method.name": "prefix"},
            unless={"method.layers": "all"},
            reason="PEFT knows one prefix for every layer, and this one leaves layers out",
            fix="export to onnx, or tune with method.layers: all",
        ),
        Refusal(
            when={"method.name": "prefix", "kind": "encoder", "head": "classifier"},
            reason="PEFT ignores token types beside a prefix, so that an encoder cannot tell the two texts of a pair",
            fix="export to onnx",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes the adapter's two files, `base.json` and the tokenizer's files."""
        from recft.models.base import compute_dtype, device_of, resolve

        serving = source.serving
        heads, head_tensors = _head(source) if serving.carrier == "classifier" else ([], {})
        based: dict[str, Any] = {
            "base_model_name_or_path": resolve(source.model.base),
            "revision": source.model.revision,
        }
        if heads:
            based |= {"modules_to_save": heads, "task_type": "SEQ_CLS"}
        config, tensors = source.plain_lora or (source.adapter_config, source.adapter_tensors)
        if (alpha := config.get("lora_alpha")) is not None and alpha == int(alpha):
            based["lora_alpha"] = int(alpha)  # as PEFT writes it; of rsLoRA it may be no whole number
        _write_adapter(config, {**tensors, **head_tensors}, based, folder)
        settings = source.model
        if settings.compute_dtype == "auto":
            # Quantizing rounds to this dtype first: what `auto` meant here must hold on any machine.
            name = str(compute_dtype("auto", device_of())).removeprefix("torch.")
            settings = settings.model_copy(update={"compute_dtype": name})
        write_json(folder / BASE, settings.model_dump(mode="json"))
        save_tokenizer(source.tokenizer, serving, folder)

    def open(self, folder: Path, how: Opening) -> Engine:
        """PEFT's model over the base: a k-bit one as it was trained, any other in float32."""
        import peft

        from recft.models.base import device_of, load_base, quiet

        settings = base_of(folder, how.trust)
        serving, tokenizer = how.serving, open_tokenizer(folder)
        dtype = _dtype(settings)
        base = load_base(settings, serving.carrier, device_of(), dtype, n_labels=serving.n_outputs).model
        try:
            with quiet(), warnings.catch_warnings():
                # PEFT asks transformers under a name that transformers is about to drop: nothing a user can mend.
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                model = peft.PeftModel.from_pretrained(base, folder).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(folder, error) from error
        _check_all_taken(model, folder)

        def compute(texts: list[Text]) -> np.ndarray:
            batch = tokens(tokenizer, texts, serving, "pt")
            batch = {name: tensor.to(base.device) for name, tensor in batch.items()}
            if model.active_peft_config.is_prompt_learning:
                batch = _without_types(batch)
            return numbers(model, batch, serving)

        rows = ROWS_OF_LOGITS if serving.head in ("answers", "likelihood") else ROWS
        return Engine("PEFT", peft.__version__, batched(compute, rows), tokenizer, str(dtype).removeprefix("torch."))

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In PEFT, and in vLLM where that takes the adapter; known before anything is written."""
        return [in_peft(description), in_vllm(description)]


def _write_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], based: Mapping[str, Any], folder: Path
) -> None:
    from safetensors.torch import save_file

    write_json(folder / "adapter_config.json", {**config, **based, "inference_mode": True})
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def _head(source: Source) -> tuple[list[str], dict[str, Tensor]]:
    """The modules of the trained head and their tensors, by PEFT's saved names.

    The head is what stands outside the base's body, and what the run saved of the body itself: a base published
    without a pooler gets a new one.
    """
    model = source.tuned().base
    heads = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    for name, _ in model.named_parameters():
        module = name.rpartition(".")[0]
        if f"{SAVED_PREFIX}{name}" in source.adapter_tensors and not module.startswith((*heads,)):
            heads.append(module)
    state = {
        f"{SAVED_PREFIX}{head}.{name}": tensor
        for head in heads
        for name, tensor in model.get_submodule(head).state_dict().items()
    }
    return heads, state


def _dtype(settings: ModelSettings) -> torch.dtype:
    """Of the computation: a k-bit base is served as trained, and any other in float32."""
    import torch

    from recft.models.base import compute_dtype, device_of

    return torch.float32 if settings.quantization == "none" else compute_dtype(settings.compute_dtype, device_of())


def _without_types(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without token types, which PEFT ignores beside a prefix: harmless where they are all the first.

    Raises:
        ExportError: they are not.
    """
    if (types := batch.get("token_type_ids")) is not None and types.any():
        raise ExportError(
            problem(
                "export",
                "PEFT ignores token types beside a prefix, and these texts have two segments",
                "the engine computes what was tuned",
                "export to onnx",
            )
        )
    return {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}


def _check_all_taken(model: Any, folder: Path) -> None:
    """PEFT passes over tensors that it has no place for: then it serves another model.

    Raises:
        ExportError: names differ.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        written = set(file.keys())
    taken = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    different = sorted(written ^ taken)
    if different:
        raise ExportError(
            problem(
                str(folder),
                f"PEFT and the adapter's file differ in {len(different)} tensors, the first '{different[0]}'",
                "PEFT loads every tensor of the adapter",
                "export to onnx or merged",
            )
        )


MEMBER = Adapter()
