"""A transformers model with a prefix or bottleneck adapters inside; this file lies beside its weights.

`config.json` beside it names the stock class that the model extends and, under `recft`, its adapter. To load it:

    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

or AutoModelForSequenceClassification, AutoModelForCausalLM: whichever config.json lists under `auto_map`. Nothing but
torch and transformers is needed, and no file but config.json and safetensors is read.

- prefix: learned keys and values stand before the text's own in the attention of the listed layers. They are no part
  of a cache. The text's positions count from the number of virtual tokens on, and padding has none, on either side.
  Attention is always SDPA: another implementation would pass over the prefix.
- bottleneck: a layer's output h becomes h + s·(W_up·σ(W_down·x + b) + b), x being h itself or what came into the
  feed-forward part.

An adapter's tensors stay in float32 whatever the model's dtype. Written by recft, which made the weights too.
SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["Adapted", "Bottleneck", "Prefix"]

OURS = "Recft"
"""What class names of this file begin with; the rest is the name of the stock class that is extended."""

ATTENTION = f"recft_{hashlib.sha256(__name__.encode()).hexdigest()[:16]}"
"""This file's attention in transformers' registry, where another such folder's stands under its own name."""

PART = "recft_prefix"
"""An attention module's attribute: its part of the prefix."""

KEPT_IN_FLOAT32 = ("prefix.prompt_embeddings", ".bottleneck.")
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}

_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    """The class `Recft` + the name of a stock one: its configuration, or the model with the adapter in it."""
    if name not in _made:
        stock = getattr(transformers, name.removeprefix(OURS), None) if name.startswith(OURS) else None
        if isinstance(stock, type) and issubclass(stock, PreTrainedConfig):
            # A model type of its own: without trust nothing loads, where the stock type would load the base alone.
            _made[name] = _class(name, stock, (stock,), model_type=f"recft-{stock.model_type}")
        elif isinstance(stock, type) and issubclass(stock, PreTrainedModel):
            settings: Any = stock.config_class
            config = __getattr__(OURS + settings.__name__)
            _made[name] = _class(name, stock, (Adapted, stock), config_class=config)
        else:
            raise AttributeError(f"{__name__} has no '{name}'")
    return _made[name]


def _class(name: str, stock: type, bases: tuple[type, ...], **own: Any) -> Any:
    described = f"{stock.__name__} as transformers has it, with the adapter of config.json in it."
    return type(name, bases, {"__module__": __name__, "__doc__": described, **own})


class Adapted(PreTrainedModel):
    """What is put before a stock class: the adapter goes in when the stock model stands."""

    def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
        ours, stock = type(config), type(config).__base__
        # A causal classifier asks transformers for its body by the configuration's class.
        config.__class__ = stock
        try:
            super().__init__(config, *inputs, **options)
        finally:
            config.__class__ = ours
        adapter = config.recft
        {"prefix": _put_in_prefix, "bottleneck": _put_in_bottlenecks}[adapter["method"]](self, adapter)
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), *KEPT_IN_FLOAT32}

    @classmethod
    def from_pretrained(cls, *inputs: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """The model, as the stock class gives it.

        Raises:
            ValueError: the weights lack tensors of the adapter, where transformers would make some up.
        """
        loaded: Any = super().from_pretrained(*inputs, output_loading_info=True, **options)
        model, info = loaded
        lost = sorted(name for name in info["missing_keys"] if any(part in f".{name}" for part in KEPT_IN_FLOAT32))
        if lost:
            raise ValueError(f"the weights lack {len(lost)} of the adapter's tensors, the first '{lost[0]}'")
        return (model, info) if output_loading_info else model

    def set_attn_implementation(self, *inputs: Any, **options: Any) -> None:
        """Sets how the model attends, where the adapter is no part of that.

        Raises:
            ValueError: the model has a prefix.
        """
        if self.config.recft["method"] == "prefix":
            raise ValueError("this model's prefix lies in its attention (SDPA): another would leave it out")
        super().set_attn_implementation(*inputs, **options)


class Prefix(nn.Module):
    """The keys and values of all prefixes: (V, 2·layers·heads·size)."""

    def __init__(self, virtual_tokens: int, layers: int, heads: int, size: int) -> None:
        super().__init__()
        self.shape = (virtual_tokens, layers, 2, heads, size)
        self.prompt_embeddings = nn.Parameter(torch.zeros(virtual_tokens, 2 * layers * heads * size))

    def key_and_value(self, row: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's keys and values (B, heads, V, size), for a batch of keys (B, heads, T, size)."""
        pair = self.prompt_embeddings.view(self.shape)[:, row].permute(1, 2, 0, 3).to(like)  # (2, heads, V, size)
        return pair[0].expand(like.shape[0], -1, -1, -1), pair[1].expand(like.shape[0], -1, -1, -1)


def _put_in_prefix(model: Any, adapter: dict[str, Any]) -> None:
    body, modules = model.base_model, adapter["modules"]
    prefix = Prefix(adapter["virtual_tokens"], len(modules), adapter["heads"], adapter["size"])
    body.add_module("prefix", prefix)
    for row, name in enumerate(modules):
        # In a tuple it is no submodule, so that its tensor has one name.
        setattr(body.get_submodule(name), PART, (prefix, row))
    model.config._attn_implementation = body.config._attn_implementation = ATTENTION  # not always one object
    body.register_forward_pre_hook(_behind_the_prefix, with_kwargs=True)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    """SDPA over the prefix and, after it, what the cache and the text give. attention_mask: (B or 1, 1, Q, T)."""
    part = getattr(module, PART, None)
    if part is not None:
        before_key, before_value = part[0].key_and_value(part[1], key)
        if attention_mask is None:  # an architecture that leaves causality to the kernel
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            whole = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attention_mask = whole.tril(key.shape[2] - query.shape[2]) if causal else whole
        # True where the mask is of booleans; in one that is added to the scores, 0.
        seen = attention_mask.new_full(
            (*attention_mask.shape[:-1], before_key.shape[2]), attention_mask.dtype == torch.bool
        )
        attention_mask = torch.cat([seen, attention_mask], dim=-1)
        key, value = torch.cat([before_key, key], dim=2), torch.cat([before_value, value], dim=2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _mask(*inputs: Any, **options: Any) -> Tensor | None:
    # A mask that is left out cannot be widened.
    options.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(*inputs, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def _behind_the_prefix(body: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """A call of the body with the text's positions behind the prefix's."""
    if body.config._attn_implementation != ATTENTION:
        raise RuntimeError("another attention was set, and this model's prefix lies in its own")
    names = list(inspect.signature(body.forward).parameters)
    given = {**dict(zip(names, inputs, strict=False)), **options}
    if "position_ids" not in names:
        return (), given
    n_before = body.prefix.shape[0]
    if given.get("position_ids") is not None:
        return (), {**given, "position_ids": given["position_ids"] + n_before}
    positions = _positions(body, given, n_before)
    rows = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    if isinstance(rows, nn.Embedding) and not torch.compiler.is_compiling() and positions.max() >= rows.num_embeddings:
        room = rows.num_embeddings - n_before
        raise ValueError(f"too many tokens: beside {n_before} virtual ones this model has positions for {room} at most")
    return (), {**given, "position_ids": positions}


def _positions(body: Any, given: dict[str, Any], n_before: int) -> Tensor:
    """The real tokens' places in the text, behind the prefix: (B or 1, T)."""
    ids, mask, past = given.get("input_ids"), given.get("attention_mask"), given.get("past_key_values")
    embeddings: Any = getattr(body, "embeddings", None)
    own: Any = getattr(embeddings, "create_position_ids_from_input_ids", None)
    if ids is not None and own is not None:  # RoBERTa's: they begin behind the padding's
        of_ids: Tensor = own(ids, embeddings.padding_idx, n_before)
        return of_ids
    first = n_before + (embeddings.padding_idx + 1 if own is not None else 0)
    like = ids if ids is not None else given["inputs_embeds"][..., 0]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -like.shape[1] :] + first
    behind = past.get_seq_length() if past is not None else 0
    return torch.arange(like.shape[1], device=like.device)[None] + first + behind


class Bottleneck(nn.Module):
    """x (..., in) → s·(W_up·σ(W_down·x + b) + b) (..., out)."""

    def __init__(self, sizes: tuple[int, int, int], activation: str, scale: float | str) -> None:
        super().__init__()
        size_in, middle, size_out = sizes
        self.down = nn.Linear(size_in, middle)
        self.activation = ACTIVATIONS[activation]()
        self.up = nn.Linear(middle, size_out)
        self.scale: Any = nn.Parameter(torch.ones(())) if scale == "learned" else scale

    def forward(self, x: Tensor) -> Tensor:
        """What is added."""
        out: Tensor = self.scale * self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return out


class _Seen(threading.local):
    """What last came into a feed-forward part, in this thread, on its way to the adapter beside it."""

    value: Tensor | None = None


def _put_in_bottlenecks(model: Any, adapter: dict[str, Any]) -> None:
    body = model.base_model
    for place in adapter["adapters"]:
        layer = body.get_submodule(place["after"])
        layer.add_module("bottleneck", Bottleneck(place["sizes"], adapter["activation"], adapter["scale"]))
        if place["reads"] is None:
            layer.register_forward_hook(_behind)
        else:
            _stand_beside(body.get_submodule(place["reads"]), layer)


def _behind(layer: Any, _inputs: Any, output: Tensor) -> Tensor:
    added: Tensor = layer.bottleneck(output)
    return output + added.to(output.dtype)


def _stand_beside(first: nn.Module, last: nn.Module) -> None:
    """Lets the adapter of a feed-forward part's last layer read what comes into the first."""
    seen = _Seen()

    def remember(_layer: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.value = inputs[0]

    def beside(layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        x, seen.value = seen.value, None
        added: Tensor = layer.bottleneck(x)
        return output + added.to(output.dtype)

    first.register_forward_pre_hook(remember)
    last.register_forward_hook(beside)
