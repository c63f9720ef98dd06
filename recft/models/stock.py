"""The weights of a stock transformers model, each with its place in the base's files: nothing but headers is read.

Names, renamings and the layers that become k-bit are transformers' own answers, taken from the model on the meta
device; what its loader would compute while it renames is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recft.errors import ExportError, ModelError, problem
from recft.models.base import AUTO_CLASS, config_of, k_bit_config, quiet, resolve, tokenizer_of
from recft.models.tensor_files import Stored, read, stored_in
from recft.schema import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Stock", "Weight", "base_file", "quantized_layers", "stock_of"]


@dataclass(frozen=True)
class Weight:
    """One parameter or persistent buffer.

    Attributes:
        name: in the stock model; of tied ones the one that is saved.
        shape: in the stock model.
        dtype: that the loader would hold it in, before it quantizes.
        stored: where the base has it; None where it has none.
        tied: further names of the same tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: Stored | None
    tied: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The name of the module it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight of two dimensions: what an adapter can change."""
        return self.name.endswith(".weight") and len(self.shape) == 2 and self.dtype.is_floating_point


@dataclass(frozen=True)
class Stock:
    """A stock model without values.

    Attributes:
        model: on the meta device.
        weights: in the model's order.
    """

    model: PreTrainedModel
    weights: tuple[Weight, ...]


def stock_of(
    settings: ModelSettings, head: str, n_outputs: int, dtype: torch.dtype, elsewhere: Collection[str] = ()
) -> Stock:
    """The stock model of a base.

    Args:
        settings: the base.
        head: decides the transformers class, as in `models.base.load_base`.
        n_outputs: of a new head.
        dtype: that it would be loaded in.
        elsewhere: names of parameters whose values do not come from the base: trained heads.

    Raises:
        ExportError: the base lacks a weight, or its names or values are rewritten while transformers loads it.
        ModelError: the base's files cannot be read.
    """
    model = _empty(settings, head, n_outputs, dtype)
    wanted = model.state_dict(keep_vars=True)
    found = _found(settings, model, wanted)
    sources = _untied(model, found)
    alias: dict[str, list[str]] = {}
    for target, source in sources.items():
        alias.setdefault(source, []).append(target)
        if source not in found and target in found:
            found[source] = found[target]
    plan = _kept_in_float32(model, dtype)
    weights = tuple(
        Weight(name, tuple(value.shape), plan(name, value), found.get(name), tuple(alias.get(name, ())))
        for name, value in wanted.items()
        if name not in sources
    )
    _check(settings, model, weights, elsewhere)
    return Stock(model, weights)


def quantized_layers(
    settings: ModelSettings, head: str, n_outputs: int, dtype: torch.dtype
) -> tuple[frozenset[str], list[str]]:
    """Names of the linear layers that the loader makes k-bit, and of those that it does not.

    The latter are without the base model's prefix, so that they fit its bare class too.

    Args:
        settings: the base and its quantization.
        head: as in `stock_of`.
        n_outputs: of a new head.
        dtype: the compute dtype.
    """
    import bitsandbytes as bnb
    from transformers.quantizers.auto import AutoHfQuantizer

    model = _empty(settings, head, n_outputs, dtype)
    with quiet():
        quantizer = AutoHfQuantizer.from_config(k_bit_config(settings, dtype), pre_quantized=False)
        quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": "cpu"})
    kinds = bnb.nn.Linear4bit | bnb.nn.Linear8bitLt
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = frozenset(name for name, module in layers.items() if isinstance(module, kinds))
    return chosen, [name.removeprefix(f"{model.base_model_prefix}.") for name in layers if name not in chosen]


def base_file(settings: ModelSettings, name: str) -> Path | None:
    """One of the base's files, local or from the hub; None where it has no such file."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            resolve(settings.base),
            name,
            revision=settings.revision or "main",
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError as error:
        raise ModelError(
            problem("model.base", f"'{settings.base}' cannot be read ({error})", "a folder or a hub id", "check it")
        ) from error
    return Path(found) if found else None


def _empty(settings: ModelSettings, head: str, n_outputs: int, dtype: torch.dtype) -> PreTrainedModel:
    import transformers

    config = config_of(settings)
    if getattr(config, "quantization_config", None) is not None:
        raise ExportError(
            problem(
                "model.base",
                f"'{settings.base}' is stored quantized",
                "an adapter is merged into weights in full precision",
                "export the adapter, or tune on the unquantized base",
            )
        )
    if head == "classifier":
        config.num_labels = n_outputs
        if config.pad_token_id is None:
            # By it a stock causal classifier finds a text's last token.
            config.pad_token_id = tokenizer_of(settings).pad_token_id
    with quiet(), torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, AUTO_CLASS[head]).from_config(
            config, dtype=dtype, trust_remote_code=settings.trust_remote_code
        )
    model.eval()
    return model


def _files(settings: ModelSettings) -> list[Path]:
    from transformers.utils.hub import get_checkpoint_shard_files

    whole = base_file(settings, "model.safetensors")
    if whole is not None:
        return [whole]
    index = base_file(settings, "model.safetensors.index.json")
    if index is None:
        raise ModelError(
            problem(
                "model.base",
                f"'{settings.base}' has no model.safetensors and no index of shards",
                "weights are read from safetensors only",
                "take a base, or a revision of it, that has them",
            )
        )
    files, _ = get_checkpoint_shard_files(resolve(settings.base), str(index), revision=settings.revision or "main")
    return [Path(file) for file in files]


def _found(settings: ModelSettings, model: PreTrainedModel, wanted: dict[str, Any]) -> dict[str, Stored]:
    """Where the files hold the model's tensors, by the model's names; what it does not want is left out."""
    rename = _renaming(model, wanted)
    found: dict[str, Stored] = {}
    for file in _files(settings):
        for key, stored in stored_in(file).items():
            name = rename(key)
            if name is None:
                raise ExportError(
                    problem(
                        "model.base",
                        f"transformers rewrites '{key}' while loading {type(model).__name__}",
                        "weights are merged where the base's files have them one to one",
                        "export to adapter or onnx",
                    )
                )
            if name in wanted:
                found.setdefault(name, stored)
    return found


def _renaming(model: PreTrainedModel, wanted: dict[str, Any]) -> Any:
    """A function: a checkpoint's name -> the model's name, or None where more than the name would change."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def rename(key: str) -> str | None:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, wanted)
        return None if pattern is not None else name

    return rename


def _untied(model: PreTrainedModel, found: Mapping[str, Stored]) -> dict[str, str]:
    """The tied names, each with the one whose tensor it shares.

    A pair that the base holds twice, and not equal, is none, as the loader has it.
    """
    tied: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    return {
        target: source
        for target, source in tied.items()
        if not (target in found and source in found) or _equal(found[target], found[source])
    }


def _equal(one: Stored, other: Stored) -> bool:
    return one.shape == other.shape and torch.equal(read(one), read(other))


def _kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> Any:
    """A function: a name and its empty tensor -> the dtype that the loader gives it."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda _name, value: value.dtype
    pattern, by_group, _ = build_glob_alternation(list(plan))

    def dtype_of(name: str, value: torch.Tensor) -> torch.dtype:
        match = pattern.search(name)
        if match is None or match.lastgroup is None:
            return value.dtype
        planned: torch.dtype = plan[by_group[match.lastgroup]]
        return planned

    return dtype_of


def _check(
    settings: ModelSettings, model: PreTrainedModel, weights: Collection[Weight], elsewhere: Collection[str]
) -> None:
    """Nothing, where every weight has a value and a loader would find it under its name."""
    rename = _renaming(model, {name: True for weight in weights for name in (weight.name, *weight.tied)})
    for weight in weights:
        if rename(weight.name) != weight.name:
            raise ExportError(
                problem(
                    "model.base",
                    f"transformers rewrites '{weight.name}' while loading {type(model).__name__}",
                    "a merged model is loaded under the names it was written with",
                    "export to adapter or onnx",
                )
            )
        # A pooler that the task does not use is no reason to refuse a base that comes without one.
        if weight.name in elsewhere or (weight.stored is None and weight.name.startswith("pooler.")):
            continue
        if weight.stored is None or weight.stored.shape != weight.shape:
            has = "no" if weight.stored is None else f"{list(weight.stored.shape)} for"
            raise ExportError(
                problem(
                    "model.base",
                    f"'{settings.base}' has {has} '{weight.name}', {type(model).__name__} wants {list(weight.shape)}",
                    "every weight comes from the base or was trained",
                    "take a base made for this class, or export to adapter or onnx",
                )
            )
