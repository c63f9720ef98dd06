"""A transformers folder with its model code inside: for adapters that have no weights to merge into.

`modeling_recft.py` extends the base's stock class by a prefix or by bottleneck adapters; `config.json` says by which,
and where they sit. It needs torch and transformers, not recft. Whoever loads the folder runs its code, so transformers
wants `trust_remote_code=True`, and recft the user's word; the configuration has a model type of its own, because under
the stock one transformers would load the base without the adapter, and say nothing.

The weights are those of the tuned model in memory, the base's in the wanted dtype and the adapter's in float32: memory
is bounded by the float32 model, not by its largest tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ExportError, problem
from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import ROWS, ROWS_OF_LOGITS, batched, numbers, save_tokenizer, tokens, unreadable
from recft.exports._left import LeftPadded
from recft.registry import Refusal
from recft.run import write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from recft.models.tokens import Text

__all__ = ["MEMBER"]

MODULE = "modeling_recft"
SHIPPED = Path(__file__).with_name("_code_modeling.py")
OURS = "Recft"
"""What the shipped file's class names begin with."""

FORMS = {"PREFIX_TUNING": "prefix", "PREFIX_TUNING_ON_LAYERS": "prefix", "BOTTLENECK": "bottleneck"}
"""By `peft_type`, what the shipped code can put into a model."""

SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Code:
    """The target."""

    Config = NoSettings
    summary = "a transformers folder with its model code inside (prefix, bottleneck); loads with explicit trust only"
    needs: tuple[str, ...] = ()
    extra: str | None = None
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"target": "code"},
            unless={"method.name": tuple(sorted(set(FORMS.values())))},
            reason="this method's adapter merges into weights, which stock classes load: no code is needed",
            fix="export to merged",
        ),
        Refusal(
            when={"export.trust_remote_code": False},
            reason="code in a folder runs only where you say so, and the certificate runs it",
            fix="set export.trust_remote_code: true, or export to onnx",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes `modeling_recft.py`, `config.json`, the weights in shards, and the tokenizer's files."""
        form = FORMS.get(str(source.adapter_config.get("peft_type")))
        if form is None:
            raise ExportError(
                problem(
                    "--to code",
                    "this adapter needs no code of its own",
                    "merged serves it with stock classes",
                    "export to merged",
                )
            )
        model = source.tuned().base
        if not type(model).__module__.startswith("transformers."):
            raise ExportError(
                problem(
                    "model.base",
                    f"{type(model).__name__} is code of the base itself",
                    "the code in the folder extends a class of transformers",
                    "export to onnx, or take a base that transformers knows",
                )
            )
        adapter = (_prefix if form == "prefix" else _bottlenecks)(model.base_model, source.adapter_config)
        write_json(folder / "config.json", _config(model, source, {"method": form, **adapter}))
        if model.can_generate():
            write_json(folder / "generation_config.json", model.generation_config.to_diff_dict())
        _write_weights(model, source.dtype, folder)
        write_text(folder / f"{MODULE}.py", SHIPPED.read_text(encoding="utf-8"))
        save_tokenizer(source.tokenizer, source.serving, folder)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The folder's own model, where its code may run."""
        if not how.trust:
            raise ExportError(
                problem(
                    str(folder),
                    f"its model is code in the folder ({MODULE}.py), and trust is false",
                    "code in a folder runs only where you say so",
                    "read the file, then give --trust-remote-code; or export to onnx",
                )
            )
        import transformers

        from recft.models.base import device_of

        serving = how.serving
        model, tokenizer = _load(folder, serving.carrier)
        model = model.eval().to(device_of())

        def compute(run: Any) -> Any:
            def of_texts(texts: list[Text]) -> np.ndarray:
                batch = tokens(tokenizer, texts, serving, "pt")
                return numbers(run, {name: tensor.to(model.device) for name, tensor in batch.items()}, serving)

            return batched(of_texts, ROWS_OF_LOGITS if serving.head in ("answers", "likelihood") else ROWS)

        return Engine(
            "transformers, model code in the folder",
            transformers.__version__,
            compute(model),
            tokenizer,
            str(model.dtype).removeprefix("torch."),
            # An encoder's own places in the text depend on the side, with or without an adapter.
            other_side=compute(LeftPadded(model, told=False)) if serving.kind == "causal" else None,
        )

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In transformers; engines with model code of their own refuse it."""
        from recft.models.base import AUTO_CLASS

        automatic = AUTO_CLASS[description["serving"]["carrier"]]
        lines = (
            f"from transformers import {automatic}, AutoTokenizer\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)\n'
            f'model = {automatic}.from_pretrained("FOLDER", trust_remote_code=True).eval()'
        )
        why = "it runs model code and attention of its own, without a prefix or bottleneck adapters; take {} instead"
        return [
            Serve("transformers", lines, "python"),
            Serve("vLLM", refused=why.format("distil")),
            Serve("TEI", refused=why.format("onnx or distil")),
        ]


def _prefix(body: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the prefix sits, read from the live model: attention modules by their row of the table."""
    found = {
        part.row: (name, part) for name, module in body.named_modules() if (part := vars(module).get("recft_prefix"))
    }
    if sorted(found) != list(range(config["num_layers"])):
        raise _not_found(len(found), config["num_layers"])
    part = found[0][1]
    return {
        "virtual_tokens": config["num_virtual_tokens"],
        "heads": part.heads,
        "size": part.size,
        "modules": [found[row][0] for row in sorted(found)],
    }


def _bottlenecks(body: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the adapters sit, read from the live model."""
    # In a model with a head the body's names lie behind the body's own.
    prefix = f"{body.base_model_prefix}."
    places = [
        {
            "after": name.removesuffix(".bottleneck"),
            "reads": module.reads and module.reads.removeprefix(prefix),
            "sizes": [module.down.in_features, module.down.out_features, module.up.out_features],
        }
        for name, module in body.named_modules()
        if name.endswith(".bottleneck")
    ]
    expected = len(config["layers"]) * (2 if config["placement"] == "houlsby" else 1)
    if len(places) != expected:
        raise _not_found(len(places), expected)
    scale = "learned" if config["learned_scale"] else config["scale"]
    return {"activation": config["activation"], "scale": scale, "adapters": places}


def _not_found(n_found: int, n_expected: int) -> ExportError:
    return ExportError(
        problem(
            "adapter",
            f"{n_found} of its {n_expected} parts stand in the model",
            "the code in the folder puts every part where it was tuned",
            "tune again with this version, or export to onnx",
        )
    )


def _config(model: Any, source: Source, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json`: the base's own settings, the classes of the shipped file, and the adapter."""
    from recft.models.base import AUTO_CLASS

    settings: dict[str, Any] = model.config.to_diff_dict()
    settings.pop("quantization_config", None)  # these are plain weights
    whole, body = (OURS + type(part).__name__ for part in (model, model.base_model))
    classes = {"AutoConfig": OURS + type(model.config).__name__, "AutoModel": body}
    classes[AUTO_CLASS[source.serving.carrier]] = whole
    return settings | {
        "model_type": f"recft-{model.config.model_type}",
        "architectures": [whole],
        "auto_map": {automatic: f"{MODULE}.{name}" for automatic, name in classes.items()},
        "dtype": source.dtype,
        "recft": dict(adapter),
    }


def _write_weights(model: Any, dtype: str, folder: Path) -> None:
    """Writes every tensor once, in shards with an index: the adapter's in float32, all others in `dtype`."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # a tied one is tied again when it is loaded
            seen.add(tensor.data_ptr())
            state[name] = tensor
    shards = split_torch_state_dict_into_shards(state, max_shard_size=SHARD_BYTES)
    for file, names in shards.filename_to_tensors.items():
        written = {name: state[name].to(_dtype_of(name, state[name], getattr(torch, dtype))) for name in names}
        tensors = {name: tensor.contiguous() for name, tensor in written.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def _dtype_of(name: str, tensor: Tensor, wanted: Any) -> Any:
    is_adapter = name.endswith("prefix.prompt_embeddings") or ".bottleneck." in name
    return tensor.dtype if is_adapter or not tensor.is_floating_point() else wanted


def _load(folder: Path, carrier: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """The folder's model and tokenizer, whole.

    Raises:
        ExportError: transformers or the folder's code refuses them, or weights and model differ.
    """
    import transformers

    from recft.models.base import AUTO_CLASS, quiet

    automatic = getattr(transformers, AUTO_CLASS[carrier])
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            model, info = automatic.from_pretrained(
                folder, trust_remote_code=True, dtype="auto", use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # code in a folder may raise anything
        raise unreadable(folder, error) from error
    different = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if different:
        raise unreadable(folder, ValueError(f"{len(different)} tensors differ, the first '{different[0]}'"))
    return model, tokenizer


MEMBER = Code()
