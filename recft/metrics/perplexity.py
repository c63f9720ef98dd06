"""Perplexity: among how many equally likely tokens the model chooses, as it were; lower is better, 1 is certainty.

    perplexity = exp(- sum over replies of ln p(reply | context) / sum over replies of tokens)

Jelinek et al., Perplexity: a measure of the difficulty of speech recognition tasks (1977). Over all tokens together.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The perplexity over all replies; NaN where they have no token.

    Two tokens, each with a chance of 1/4:

    >>> round(pointwise(Labels(np.array([2 * np.log(0.25)]), np.array([2]), np.array([0])), np.ones(1)), 4)
    4.0
    """
    tokens = weights @ labels.labels
    if not tokens > 0:
        return float("nan")
    with np.errstate(over="ignore"):  # beyond what a float can hold it is infinite
        return float(np.exp(-(weights @ labels.scores) / tokens))


MEMBER = Metric(
    summary="among how many equally likely tokens the model chooses",
    pointwise=pointwise,
    outputs=("likelihood",),
    higher_is_better=False,
)
