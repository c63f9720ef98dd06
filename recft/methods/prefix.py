"""Prefix-tuning: learned keys and values before the text's, in every chosen layer (Li & Liang, arXiv 2101.00190).

    Attention(Q, [P_K; K], [P_V; V])        P_K, P_V (V virtual tokens, key/value heads · head size)

No weight of the base changes and none can: a prefix has no merged form. There is no re-parametrising network, as in
PEFT's default. The text's positions count from V on, as in PEFT, whose stock loader gives the same outputs when all
layers carry a prefix; an adapter on some layers only is read by recft alone.

PEFT starts from noise, which makes the base worse than it was and which few steps do not mend. Here the prefix starts
as keys and values that the base itself computes: by default (`init: sink`) for the token on which its attention rests
when it looks for nothing, an encoder's separator or a causal model's first token (Clark et al. 2019, arXiv 1906.04341;
Xiao et al. 2023, arXiv 2309.17453), so that the prefix hardly disturbs the base; or for V real tokens of training texts
(`init: data`) or of words given in the recipe (`init: text`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from recft.errors import ExportError, ModelError, problem
from recft.methods._adapter import Adapter
from recft.methods._base import Plan, chosen_layers
from recft.methods._blocks import BLOCK_REFUSALS, freeze
from recft.registry import Refusal
from recft.schema import MethodSettings, Positive

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from recft.methods._prefix import Spot

__all__ = ["MEMBER"]


UNREACHED = (
    "bloom",
    "deberta",
    "deberta-v2",
    "falcon",
    "gemma2",
    "mpnet",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_next",
    "rembert",
)
"""Architectures tried with tiny models and found wanting; any other is tried when it is loaded, and refused then."""


class PrefixSettings(MethodSettings):
    """The settings of prefix-tuning."""

    name: str = "prefix"
    virtual_tokens: Positive = 16
    init: Literal["sink", "data", "text", "random"] = Field(
        default="sink",
        description="start from the base's keys and values for its resting token, training texts, init_text, or noise",
    )
    init_text: str | None = Field(default=None, description="the words of init: text, repeated up to virtual_tokens")

    @model_validator(mode="after")
    def _text_where_needed(self) -> Self:
        if (self.init == "text") != bool(self.init_text and self.init_text.strip()):
            raise ValueError("init: text needs init_text, and init_text needs init: text")
        return self


@dataclass(frozen=True)
class PrefixMethod:
    """The method."""

    Config = PrefixSettings
    summary = "learned keys and values before the text, in every layer"
    mergeable = False
    starts_as_identity = False
    allows_gradient_checkpointing = True
    refusals = (
        *BLOCK_REFUSALS,
        Refusal(
            when={"method.name": "prefix", "architecture": UNREACHED},
            reason="not every layer's attention goes through transformers' attention interface to SDPA",
            fix="take lora, adalora or bottleneck, or a base such as BERT, RoBERTa, Llama or Qwen",
        ),
    )

    def attach(self, model: PreTrainedModel, config: PrefixSettings, plan: Plan) -> Adapter:
        """A new prefix in `model`."""
        import torch

        from recft.methods._prefix import spots

        every = spots(model)
        chosen = [every[layer] for layer in chosen_layers(config.layers, len(every))]
        width = 2 * len(chosen) * chosen[0].heads * chosen[0].size
        if config.init == "random":
            generator = torch.Generator().manual_seed(plan.seed)
            start = torch.randn(config.virtual_tokens, width, generator=generator) * 0.02
        elif config.init == "sink":
            start = _of_the_sink(model, chosen, config.virtual_tokens, plan)
        else:
            start = _of_the_base(model, chosen, _row(config, plan))
        return _put_in(model, chosen, start, _settings(model, config, chosen, len(every), plan), plan)

    def restore(self, model: PreTrainedModel, config: Mapping[str, Any], plan: Plan) -> Adapter:
        """The prefix of a saved configuration."""
        import torch

        from recft.methods._prefix import spots

        every = spots(model)
        chosen = [every[layer] for layer in config.get("layers", range(len(every)))]
        start = torch.zeros(config["num_virtual_tokens"], 2 * len(chosen) * config["token_dim"])
        return _put_in(model, chosen, start, dict(config), plan)

    def expected_parameters(self, model: PreTrainedModel, config: PrefixSettings) -> int:
        """2 · virtual tokens · layers · key/value heads · head size."""
        from recft.methods._prefix import spots

        every = spots(model)
        chosen = [every[layer] for layer in chosen_layers(config.layers, len(every))]
        return sum(2 * config.virtual_tokens * spot.heads * spot.size for spot in chosen)

    def merge(
        self,
        config: Mapping[str, Any],  # noqa: ARG002
        tensors: Mapping[str, Tensor],  # noqa: ARG002
        name: str,  # noqa: ARG002
        weight: Tensor,  # noqa: ARG002
        rows: slice | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Never comes back: a prefix changes what is attended to, not a weight.

        Raises:
            ExportError: always.
        """
        raise ExportError(
            problem(
                "export --to merged",
                "a prefix is keys and values of its own",
                "only updates of weights can be merged into weights",
                "export to adapter or onnx, which carry it as it is",
            )
        )

    def plain_lora(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """None."""


def _settings(
    model: PreTrainedModel, config: PrefixSettings, chosen: list[Spot], n_layers: int, plan: Plan
) -> dict[str, Any]:
    from peft import PrefixTuningConfig

    from recft.methods._peft import saved_config, task_type

    saved = PrefixTuningConfig(
        task_type=task_type(model) or "SEQ_CLS",  # without one PEFT leaves the prefix out
        base_model_name_or_path=plan.base,
        num_virtual_tokens=config.virtual_tokens,
        num_layers=len(chosen),
        token_dim=chosen[0].heads * chosen[0].size,
        num_attention_heads=chosen[0].heads,
        num_transformer_submodules=1,
        inference_mode=True,
    )
    if len(chosen) == n_layers:
        return saved_config(saved)
    # PEFT knows no prefix on some layers only, and under its own name would put this one on others.
    return saved_config(saved, peft_type="PREFIX_TUNING_ON_LAYERS", layers=[spot.layer for spot in chosen])


def _put_in(
    model: PreTrainedModel, chosen: list[Spot], start: Tensor, settings: Mapping[str, Any], plan: Plan
) -> Adapter:
    from recft.methods._prefix import put_in, switched_off

    attention = model.config._attn_implementation
    freeze(model)
    table = put_in(model, chosen, start, plan.dropout)
    name = next(name for name, parameter in model.named_parameters() if parameter is table.prompt_embeddings)
    return Adapter(
        own={name: table.prompt_embeddings},
        saved_as={name: "prompt_embeddings"},
        settings=settings,
        off=partial(switched_off, model, table, attention),
    )


def _of_the_sink(model: PreTrainedModel, chosen: list[Spot], n_tokens: int, plan: Plan) -> Tensor:
    """The base's keys and values for its resting token in training texts, (V, 2·layers·heads·size), float32.

    A little noise sets virtual tokens apart that would otherwise be equal and, with equal gradients, stay so.
    """
    import torch

    from recft.methods._prefix import hear

    _need_texts(plan.samples, "sink")
    found = []
    for batch in plan.samples:
        heard = hear(model, {key: tensor.to(model.device) for key, tensor in batch.items()})
        mask = batch["attention_mask"].to(model.device)
        places = mask.sum(dim=1) - 1 if plan.kind == "encoder" else mask.argmax(dim=1)  # (B,)
        rows = torch.arange(len(mask), device=model.device)
        pairs = [heard[id(model.get_submodule(spot.name))] for spot in chosen]
        parts = [part[rows, :, places] for pair in pairs for part in pair]  # each (B, heads, size)
        found.append(torch.stack(parts, dim=1).flatten(1).float().cpu())
    start = torch.cat(found)
    start = start.repeat(-(-n_tokens // len(start)), 1)[:n_tokens]
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(plan.seed))
    return start + 0.02 * start.std() * noise


def _need_texts(texts: Sequence[Any], init: str) -> None:
    if not texts:
        raise ModelError(
            problem(
                "method.init",
                f"there are no texts to start from (init: {init})",
                "a prefix starts from the base's keys and values for real tokens",
                "give training data, or take init: random",
            )
        )


def _row(config: PrefixSettings, plan: Plan) -> Tensor:
    """V real token ids, (1, V): of the recipe's words, or of the training texts one after another."""
    import torch

    if config.init == "text" and plan.tokenize is not None:
        batches = [plan.tokenize([config.init_text or ""])]
    else:
        batches = list(plan.samples)
    ids = [batch["input_ids"][batch["attention_mask"].bool()] for batch in batches]
    _need_texts(ids, config.init)
    tokens = torch.cat(ids)
    return tokens.repeat(-(-config.virtual_tokens // len(tokens)))[None, : config.virtual_tokens]


def _of_the_base(model: PreTrainedModel, chosen: list[Spot], row: Tensor) -> Tensor:
    """The base's own keys and values for one row of tokens, (V, 2·layers·heads·size), in float32."""
    import torch

    from recft.methods._prefix import hear

    heard = hear(model, {"input_ids": row.to(model.device)})
    pairs = [heard[id(model.get_submodule(spot.name))] for spot in chosen]
    stacked = torch.stack([part[0] for pair in pairs for part in pair])  # (2·layers, heads, V, size)
    return stacked.permute(2, 0, 1, 3).reshape(row.shape[1], -1).float().contiguous()


MEMBER = PrefixMethod()
