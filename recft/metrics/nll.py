"""Negative log-likelihood: how surprised the model is by each token of the true replies; lower is better.

    NLL = - sum over replies of ln p(reply | context) / sum over replies of tokens

In nats a token, over all tokens together: a long reply counts for as many tokens as it has. Models that divide text
into other tokens cannot be compared by it.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The nats a token over all replies; NaN where they have no token.

    Replies of 2 and 3 tokens: (4 + 1) / (2 + 3).

    >>> pointwise(Labels(np.array([-4.0, -1.0]), np.array([2, 3]), np.array([0, 1])), np.ones(2))
    1.0
    """
    tokens = weights @ labels.labels
    # Subtracted from 0, so that a reply that is certain scores 0 and not -0.
    return float(0 - weights @ labels.scores / tokens) if tokens > 0 else float("nan")


MEMBER = Metric(
    summary="surprise at a token of the true replies, in nats",
    pointwise=pointwise,
    outputs=("likelihood",),
    higher_is_better=False,
)
