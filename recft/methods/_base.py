"""What every tuning method meets: attach, train, save, switch off, merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from recft.registry import Refusal
from recft.schema import MethodSettings

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["SAVED_PREFIX", "Attached", "Method", "Plan", "chosen_layers"]

SAVED_PREFIX = "base_model.model."
"""What PEFT puts before every module name in `adapter_model.safetensors`."""


@dataclass(frozen=True)
class Plan:
    """What a method may need to know before it starts.

    Attributes:
        kind: `encoder` or `causal`.
        base: what `adapter_config.json` names as the base.
        total_steps: optimizer steps of the whole run; 0 when an adapter is only loaded.
        dropout: of the adapter's input, while training.
        seed: of the adapter's initial values.
        samples: tokenized training texts (dicts of (B, T) tensors) for initialisation from data; may be empty.
        tokenize: texts to such a dict, for initialisation from words of the recipe; absent when only loading.
    """

    kind: str
    base: str
    total_steps: int = 0
    dropout: float = 0.0
    seed: int = 0
    samples: Sequence[Mapping[str, Tensor]] = field(default=())
    tokenize: Callable[[Sequence[str]], Mapping[str, Tensor]] | None = None


class Attached(Protocol):
    """An adapter that sits in a model. The model keeps its class and its forward."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's own trainable parameters, by their name in the model."""

    def penalty(self) -> Tensor | None:
        """A term of the training loss only (AdaLoRA's orthogonality), or None."""

    def after_backward(self, step: int) -> None:
        """Called once an optimizer step, after the update and before gradients are cleared; `step` counts from 0."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs besides the parameters."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of `state`."""

    def tensors(self) -> dict[str, Tensor]:
        """What `adapter_model.safetensors` holds, by PEFT's saved names."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `tensors`.

        Raises:
            ModelError: names or shapes differ from what this adapter has.
        """

    def config(self) -> dict[str, Any]:
        """What `adapter_config.json` holds."""

    def disabled(self) -> AbstractContextManager[None]:
        """Within it the model computes as the base alone."""


class Method(Protocol):
    """One tuning method."""

    @property
    def Config(self) -> type[MethodSettings]:  # noqa: N802 - a class
        """Its settings."""

    @property
    def summary(self) -> str:
        """One line for `recft methods`."""

    @property
    def mergeable(self) -> bool:
        """Whether `merge` gives weights that carry all of it."""

    @property
    def starts_as_identity(self) -> bool:
        """Whether a new adapter leaves the model's outputs as they are, up to rounding."""

    @property
    def allows_gradient_checkpointing(self) -> bool:
        """Whether gradients stay right with it."""

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What it cannot do."""

    def attach(self, model: PreTrainedModel, config: Any, plan: Plan) -> Attached:
        """Puts a new adapter into `model`, in place, and freezes everything else.

        Raises:
            ModelError: the model has no place for this adapter.
        """

    def restore(self, model: PreTrainedModel, config: Mapping[str, Any], plan: Plan) -> Attached:
        """Puts in the adapter that a saved `adapter_config.json` describes; the caller then calls `load`."""

    def expected_parameters(self, model: PreTrainedModel, config: Any) -> int:
        """The number of trainable parameters by the method's formula, counted without attaching."""

    def merge(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        name: str,
        weight: Tensor,
        rows: slice | None = None,
    ) -> Tensor:
        """The merged weight of the module `name`, float32; `weight` itself where the adapter does not touch it.

        Args:
            config: the saved `adapter_config.json`.
            tensors: the saved adapter, by PEFT's saved names.
            name: the module's name in the transformers model, without `.weight`.
            weight: the base's weight, float32, (out, in).
            rows: `weight` is these rows of it alone, in memory that may be used for the result.

        Raises:
            ExportError: this method has no weights to merge into.
        """

    def plain_lora(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The same adapter as a plain LoRA (s = alpha / rank, one rank for all layers), or None where it is none.

        The configuration and the tensors come in as saved, and go out as PEFT's LoraConfig and its tensors.
        """


def chosen_layers(choice: str | Sequence[int], n_layers: int) -> list[int]:
    """The layer numbers that `method.layers` names.

    >>> chosen_layers("last 2", 6)
    [4, 5]

    Raises:
        ModelError: the base has no such layer, or the words are not understood.
    """
    from recft.errors import ModelError, problem

    if choice == "all":
        return list(range(n_layers))
    if isinstance(choice, str):
        words = choice.split()
        if len(words) == 2 and words[0] == "last" and words[1].isdecimal() and 1 <= int(words[1]) <= n_layers:
            return list(range(n_layers - int(words[1]), n_layers))
    elif choice and all(0 <= layer < n_layers for layer in choice):
        return sorted(set(choice))
    raise ModelError(
        problem(
            "method.layers",
            f"{choice!r}",
            f"all, 'last N' with N from 1 to {n_layers}, or a list of numbers from 0 to {n_layers - 1}",
            "correct the layers",
        )
    )
