"""The main directions of what flows into a layer, on training texts (EVA, Paischer et al. 2024, arXiv 2410.07170)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recft.errors import ModelError, problem
from recft.methods._base import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["input_directions", "orthonormal", "run_samples"]


def run_samples(model: PreTrainedModel, plan: Plan) -> None:
    """Passes the plan's samples through the model, in evaluation mode and without gradients.

    Raises:
        ModelError: there are none.
    """
    import torch

    if not plan.samples:
        raise ModelError(
            problem(
                "method.init",
                "there are no training texts to start from",
                "this init reads how the base answers to training texts",
                "give training data, or take an init that reads none",
            )
        )
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for sample in plan.samples:
                model(**{key: tensor.to(model.device) for key, tensor in sample.items()})
    finally:
        model.train(training)


def input_directions(model: PreTrainedModel, layers: Mapping[str, Any], plan: Plan) -> dict[str, Tensor]:
    """Orthonormal directions (in, in) of each layer's inputs as rows, those with most energy first, by layer name."""
    import torch

    moments: dict[str, Tensor] = {}
    weights: list[Tensor] = []

    def start_of_pass(_module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        weights[:] = [] if mask is None else [mask.reshape(-1, 1)]

    def listen(name: str) -> Any:
        def record(_module: Any, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().reshape(-1, args[0].shape[-1]).float()
            if weights and len(weights[0]) == len(rows):  # what stands on padding is no text
                rows = rows * weights[0]
            moments[name] = moments[name] + rows.T @ rows if name in moments else rows.T @ rows

        return record

    handles = [model.register_forward_pre_hook(start_of_pass, with_kwargs=True)]
    handles += [layer.register_forward_pre_hook(listen(name)) for name, layer in layers.items()]
    try:
        run_samples(model, plan)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: torch.linalg.eigh(moment.cpu().double()).eigenvectors.flip(1).T.float()
        for name, moment in moments.items()
    }


def orthonormal(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span the columns of `matrix`; orthonormal rows where it is wider than high."""
    import torch

    rows, columns = matrix.shape
    basis: Tensor = torch.linalg.qr(matrix if rows >= columns else matrix.T).Q
    return basis if rows >= columns else basis.T
