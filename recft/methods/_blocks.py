"""Where a model's transformer blocks and their linear layers are: an adapter's place is never outside the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from recft.errors import ModelError, problem
from recft.methods._base import chosen_layers
from recft.registry import Refusal, suggestion

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["BLOCK_REFUSALS", "blocks", "freeze", "linear_names", "linear_shape", "listed", "narrow", "shortest_names"]

BLOCK_REFUSALS = (
    Refusal(
        when={"architecture": "albert"},
        reason="ALBERT's layers share their weights, so that no layer can be adapted by itself",
        fix="take a base whose layers are its own, for example a BERT or a RoBERTa",
    ),
    Refusal(
        when={"architecture": ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")},
        reason="this architecture keeps its weights in transposed Conv1D modules, which no method here reads",
        fix="take a causal base with linear layers, for example a Llama or a Qwen",
    ),
)
"""What no method that works inside the blocks can do."""


def blocks(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The transformer blocks, in order, with their names in the model.

    Raises:
        ModelError: no list of modules is as long as the model has layers.
    """
    from torch import nn

    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and _linears(module):
            return [(f"{name}.{number}" if name else str(number), block) for number, block in enumerate(module)]
    raise ModelError(
        problem(
            "model.base",
            f"no list of {n_layers} transformer blocks was found in {type(model).__name__}",
            "the blocks stand in one list, each with linear layers",
            "take a base of a common architecture, for example BERT, RoBERTa, Llama or Qwen",
        )
    )


def linear_names(model: PreTrainedModel, layers: str | Sequence[int]) -> list[str]:
    """The names of all linear layers inside the chosen blocks, in the model's order."""
    every = blocks(model)
    chosen = set(chosen_layers(layers, len(every)))
    return [
        f"{name}.{inner}" for number, (name, block) in enumerate(every) if number in chosen for inner in _linears(block)
    ]


def narrow(names: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """The names that `targets` chooses: `all`, `attention`, or names that end with one of the given words.

    Raises:
        ModelError: a given word ends no name.
    """
    if targets == "all":
        return list(names)
    if targets == "attention":
        chosen = [name for name in names if any("attn" in part or "attention" in part for part in name.split("."))]
        known = ["all"]
        words: Sequence[str] = ["attention"] if not chosen else []
    else:
        words = [targets] if isinstance(targets, str) else targets
        chosen = [name for name in names if any(name.endswith(f".{word}") for word in words)]
        known = sorted({name.rsplit(".", 1)[-1] for name in names})
        words = [word for word in words if not any(name.endswith(f".{word}") for name in names)]
    if words:
        raise ModelError(
            problem(
                "method.targets",
                f"no linear layer of the chosen blocks is called '{words[0]}'.{suggestion(words[0], known)}",
                f"all, attention, or a list of {', '.join(known)}",
                "correct the names",
            )
        )
    return chosen


def shortest_names(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """`names` as `adapter_config.json` lists them: a last part alone where that means the same modules, else whole.

    PEFT takes a listed word for every module whose name ends with it, so that `dense` would reach into BERT's pooler.
    """
    chosen = set(names)
    strangers = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name not in chosen}
    return sorted({leaf if (leaf := name.rsplit(".", 1)[-1]) not in strangers else name for name in names})


def listed(model: PreTrainedModel, words: Sequence[str]) -> list[str]:
    """The linear layers of the blocks that `shortest_names` listed, in the model's order."""
    ends = tuple(f".{word}" for word in words)
    return [name for name in linear_names(model, "all") if name in words or name.endswith(ends)]


def linear_shape(model: PreTrainedModel, name: str) -> tuple[int, int]:
    """(in, out) of a linear layer, read from its own account: packed weights have another shape."""
    layer = cast("nn.Linear", model.get_submodule(name))
    return layer.in_features, layer.out_features


def freeze(model: PreTrainedModel) -> None:
    """Stops the training of everything the model has by now."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _linears(module: nn.Module) -> list[str]:
    # bitsandbytes' Linear4bit and Linear8bitLt are linear layers too.
    from torch import nn

    return [name for name, inner in module.named_modules() if isinstance(inner, nn.Linear)]
