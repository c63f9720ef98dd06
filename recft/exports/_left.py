"""A stock model on rows padded on the left: what an engine that pads so serves."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from recft.models.text_model import Serving

__all__ = ["LeftPadded", "left_padded"]


def left_padded(model: PreTrainedModel, serving: Serving) -> LeftPadded | None:
    """The model on left-padded rows; None where it cannot be right on them.

    An encoder's classifier reads the first place of a row, which is padding there; and a model that is not told the
    positions counts them from there.
    """
    if serving.kind == "encoder" and serving.head == "classifier":
        return None
    # This kind makes positions from the ids themselves, and passes over padding.
    counts = hasattr(getattr(model.base_model, "embeddings", None), "create_position_ids_from_input_ids")
    told = "position_ids" in inspect.signature(model.forward).parameters
    return LeftPadded(model, told and not counts) if counts or told else None


class LeftPadded:
    """A model called with rows padded on the right, which it computes padded on the left.

    What it finds for each place is moved back.
    """

    def __init__(self, model: PreTrainedModel, told: bool) -> None:
        self._model = model
        self._told = told

    def __call__(self, attention_mask: Tensor, **batch: Any) -> SimpleNamespace:
        """The model's outputs, place by place as in the rows that came in."""
        import torch

        width = attention_mask.shape[1]
        pads = width - attention_mask.sum(dim=1, keepdim=True)  # (B, 1)
        places = torch.arange(width, device=attention_mask.device)[None]
        there, back = (places - pads) % width, (places + pads) % width
        moved = {
            name: value.gather(1, there) if getattr(value, "ndim", 0) == 2 else value for name, value in batch.items()
        }
        mask = attention_mask.gather(1, there)
        if self._told:
            moved["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        outputs = self._model(attention_mask=mask, **moved)

        def home(value: Tensor) -> Tensor:
            index = back[:, :, None].expand(-1, -1, value.shape[2])
            return value.gather(1, index)

        found = SimpleNamespace()
        if getattr(outputs, "logits", None) is not None:
            found.logits = home(outputs.logits) if outputs.logits.ndim == 3 else outputs.logits
        if getattr(outputs, "last_hidden_state", None) is not None:
            found.last_hidden_state = home(outputs.last_hidden_state)
        if getattr(outputs, "hidden_states", None) is not None:
            found.hidden_states = [home(outputs.hidden_states[-1])]
        return found
