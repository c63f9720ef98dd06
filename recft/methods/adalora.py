"""AdaLoRA: a low-rank update whose rank is dealt out among the layers (Zhang et al. 2023, arXiv 2303.10512).

    W' = W + s·B·diag(E)·A        A (r, in), B (out, r), E (r), s = alpha / initial_rank

All layers start with `initial_rank` directions. After a warm-up, the least important ones of the whole model are
switched off (their E is zero) until `rank` a layer are left on average; the budget falls as a cube. The rest of the
run tunes what is left. A and B are held near orthonormal by a term of the training loss alone.

Where we depart from PEFT, whose layers these are: its trainer hooks, its rank allocator and its loss are not used.
The term is the paper's squared norm, so that it is zero and still at an orthonormal start, which is where A and B
start here (PEFT: small noise, far from what the term asks for). Importance and the directions kept are in the run's
state. s is √(hidden size) unless alpha says otherwise: one step of Adam moves an entry of E as far as an entry of
LoRA's B, but B·A adds that up over all rows of B, and s makes the two updates alike in norm; with PEFT's scale the same
learning rate hardly moves the model. Saving keeps exactly the directions that are switched on, as PEFT expects them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from recft.methods._base import SAVED_PREFIX, Plan
from recft.methods._blocks import BLOCK_REFUSALS, linear_names, linear_shape, listed, narrow, shortest_names
from recft.methods._directions import input_directions, orthonormal
from recft.methods._peft import ADAPTER, inject, saved_config, task_type
from recft.schema import MethodSettings, Positive, Share

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from recft.methods._adalora import AdaLoraAdapter

__all__ = ["MEMBER"]


class AdaLoraSettings(MethodSettings):
    """AdaLoRA's settings."""

    name: str = "adalora"
    rank: Positive = Field(default=16, description="directions a layer in the end, on average")
    initial_rank: Positive | None = Field(default=None, description="directions a layer at first; absent: 1.5 x rank")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="numerator of the scale; absent: initial rank x sqrt(hidden size)"
    )
    targets: Literal["all", "attention"] | tuple[str, ...] = Field(
        default="all", description="linear layers of the blocks: all, attention, or a list of last parts of names"
    )
    init: Literal["orthonormal", "activations", "normal"] = Field(
        default="orthonormal",
        description="of A and B: orthonormal, A the main directions of the layer's own inputs, or noise as in PEFT",
    )
    warmup_share: Share = Field(default=0.1, description="of the steps, before the first allocation")
    final_share: Share = Field(default=0.3, description="of the steps, after the last allocation")
    every_steps: Positive | None = Field(default=None, description="between allocations; absent: about 100 of them")
    orthogonality: Annotated[float, Field(ge=0)] = Field(default=0.1, description="weight of the term in the loss")

    @property
    def first_rank(self) -> int:
        """Directions a layer at first."""
        return self.initial_rank or max(self.rank, (3 * self.rank) // 2)

    @model_validator(mode="after")
    def _room_to_fall(self) -> Self:
        if self.first_rank < self.rank:
            raise ValueError("initial_rank is at least rank: ranks only fall")
        if self.warmup_share + self.final_share >= 1:
            raise ValueError("warmup_share and final_share leave steps between them: their sum is below 1")
        return self


@dataclass(frozen=True)
class AdaLora:
    """The method."""

    Config = AdaLoraSettings
    summary = "low-rank updates whose ranks are dealt out among the layers"
    mergeable = True
    starts_as_identity = True
    allows_gradient_checkpointing = True
    refusals = BLOCK_REFUSALS

    def attach(self, model: PreTrainedModel, config: AdaLoraSettings, plan: Plan) -> AdaLoraAdapter:
        """A new AdaLoRA in `model`."""
        names = narrow(linear_names(model, config.layers), config.targets)
        first_rank = config.first_rank
        alpha = config.alpha or first_rank * float(model.config.get_text_config().hidden_size) ** 0.5
        options = {
            "init_r": first_rank,
            "target_r": config.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "target_modules": shortest_names(model, names),
            "orth_reg_weight": config.orthogonality,
        }
        life = {"shares": [config.warmup_share, config.final_share], "every": config.every_steps}
        adapter = _put_in(model, options, life, names, plan)
        _start(model, adapter, config, plan)
        return adapter

    def restore(self, model: PreTrainedModel, config: Mapping[str, Any], plan: Plan) -> AdaLoraAdapter:
        """The AdaLoRA of a saved configuration; with total steps in the plan it lives its life again."""
        import torch

        keys = ("init_r", "target_r", "lora_alpha", "target_modules", "orth_reg_weight")
        total = config["total_step"]
        life = {"shares": [config["tinit"] / total, config["tfinal"] / total], "every": config["deltaT"]}
        names = listed(model, config["target_modules"])
        adapter = _put_in(model, {key: config[key] for key in keys}, life, names, plan)
        for name, on in (config["rank_pattern"] or {}).items():
            adapter.kept[name.removesuffix(".lora_E")] = torch.tensor(on, dtype=torch.bool)
        # Without a new life the file tells of the old one.
        return adapter if plan.total_steps else replace(adapter, settings=dict(config))

    def expected_parameters(self, model: PreTrainedModel, config: AdaLoraSettings) -> int:
        """The sum of r·(in + out + 1) over the touched layers, r = the first rank: none is freed while tuning."""
        names = narrow(linear_names(model, config.layers), config.targets)
        return sum(config.first_rank * (sum(linear_shape(model, name)) + 1) for name in names)

    def merge(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        name: str,
        weight: Tensor,
        rows: slice | None = None,
    ) -> Tensor:
        """W + s·B·diag(E)·A; with `rows`, `weight` is those of W, in memory that may be used for the result."""
        import torch

        key = f"{SAVED_PREFIX}{name}"
        if f"{key}.lora_A" not in tensors:
            return weight
        right, left, values = (tensors[f"{key}.{kind}"].float() for kind in ("lora_A", "lora_B", "lora_E"))
        chosen, place = (slice(None), None) if rows is None else (rows, weight)
        return torch.addmm(weight, left[chosen], right * values, alpha=scale_of(config), out=place)

    def plain_lora(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The LoRA that it is: A as it stands, s·B·diag(E) in B's place, s = 1.

        Layers with fewer directions are filled up with zeros: engines other than PEFT read one rank for all layers.
        """
        import torch
        from peft import LoraConfig

        names = [key.removesuffix(".lora_E") for key in tensors if key.endswith(".lora_E")]
        rank = max(1, *(len(tensors[f"{name}.lora_E"]) for name in names))
        plain = {}
        for name in names:
            right, left, values = (tensors[f"{name}.{kind}"].float() for kind in ("lora_A", "lora_B", "lora_E"))
            room = rank - len(values)
            scaled = scale_of(config) * left * values.reshape(1, -1)
            plain[f"{name}.lora_A.weight"] = torch.nn.functional.pad(right, (0, 0, 0, room)).contiguous()
            plain[f"{name}.lora_B.weight"] = torch.nn.functional.pad(scaled, (0, room)).contiguous()
        lora = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=list(config["target_modules"]),
            task_type=config["task_type"],
            base_model_name_or_path=config["base_model_name_or_path"],
        )
        return saved_config(lora, inference_mode=True), plain


def scale_of(config: Mapping[str, Any]) -> float:
    """The scale s of a saved configuration, as PEFT computes it: pruning does not change it.

    >>> round(scale_of({"lora_alpha": 48, "init_r": 24}), 5)
    2.0
    """
    return float(config["lora_alpha"] / (config["init_r"] + 1e-5))


def _put_in(
    model: PreTrainedModel, options: Mapping[str, Any], life: Mapping[str, Any], names: list[str], plan: Plan
) -> AdaLoraAdapter:
    import torch
    from peft import AdaLoraConfig

    from recft.methods._adalora import AdaLoraAdapter
    from recft.methods._allocation import Importance, Schedule

    # An adapter that is only loaded has no steps and no life, but PEFT's configuration wants some numbers all the same.
    total = plan.total_steps or 100
    budgets = (options["init_r"] * len(names), options["target_r"] * len(names))
    schedule = Schedule.of_run(total, (life["shares"][0], life["shares"][1]), life["every"], budgets)
    first = max(0, schedule.first)

    def config() -> AdaLoraConfig:
        # PEFT shortens the target modules of the configuration it is given: the saved one is another.
        return AdaLoraConfig(
            task_type=task_type(model),
            base_model_name_or_path=plan.base,
            lora_dropout=plan.dropout,
            total_step=total,
            tinit=first,
            tfinal=min(total - schedule.last, total - 1 - first),
            deltaT=schedule.every,
            inference_mode=True,  # PEFT's own allocator stays out
            **options,
        )

    layers = inject(model, config(), names, plan.seed)
    for layer in layers.values():
        # PEFT divides by it, and over int8 a list of one float32 number would make float32 of all that follows.
        layer.ranknum[ADAPTER].data = layer.ranknum[ADAPTER].data.squeeze()
    return AdaLoraAdapter(
        layers=layers,
        settings=saved_config(config()),
        schedule=schedule if plan.total_steps else None,
        importance=Importance(),
        kept={name: torch.ones(options["init_r"], dtype=torch.bool) for name in names},
    )


def _start(model: PreTrainedModel, adapter: AdaLoraAdapter, config: AdaLoraSettings, plan: Plan) -> None:
    """Gives every A and B its initial values, in float32 whatever the base's dtype; E is zero."""
    import torch

    generator = torch.Generator().manual_seed(plan.seed)
    found = input_directions(model, adapter.layers, plan) if config.init == "activations" else {}
    for name, layer in adapter.layers.items():
        right, left = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        starts = [torch.randn(tensor.shape, generator=generator) for tensor in (right, left)]
        starts = [0.02 * start if config.init == "normal" else orthonormal(start) for start in starts]
        if name in found:
            starts[0][: found[name].shape[0]] = found[name][: config.first_rank]
        with torch.no_grad():
            right.copy_(starts[0])
            left.copy_(starts[1])


MEMBER = AdaLora()
