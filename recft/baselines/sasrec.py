"""SASRec: the next item from the order of the last ones, by self-attention.

    h = two blocks of causal self-attention and a pointwise network over item vectors + position vectors
    score(u, j) = h(last) e(j);  loss = mean over positions of -ln softmax over all N items at the next one

Kang and McAuley, Self-attentive sequential recommendation (2018), with the full cross-entropy of Klenitskiy and
Vasilev, Turning dross into gold loss: is BERT4Rec really better than SASRec? (2023). We depart from it in size (64
numbers, one head, 50 events), in what is learned (the next item is drawn from the next basket, anew in each pass:
within a basket there is no order; half of the places of a pass take part) and in time: at most 3,000 steps, so that
it fits within minutes on a processor. The same seed each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._pairs import log_of

if TYPE_CHECKING:
    import torch

    from recft.data.store import Log, Records, Store, Table

__all__ = ["MEMBER", "Sasrec"]

LENGTH = 50
WIDTH = 64
LAYERS = 2
BATCH = 64
MOST_STEPS = 3_000
LEARNING_RATE = 2e-3
_SCORED = 1 << 23
"""Logits of a step: the positions that take part in the loss are as many as fit, 32 MiB."""


def _shapes(n_items: int) -> dict[str, tuple[int, ...]]:
    """The weights by name; vectors named `scale` start at 1, matrices small, all else at 0."""
    shapes: dict[str, tuple[int, ...]] = {"items": (n_items + 1, WIDTH), "places": (LENGTH, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value", "mixed", "wide", "narrow")}
        shapes |= {f"{layer}.{name}": (WIDTH,) for name in ("scale1", "shift1", "scale2", "shift2", "bias1", "bias2")}
    return shapes | {"scale": (WIDTH,), "shift": (WIDTH,)}


def _states(weights: Mapping[str, torch.Tensor], items: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """The state after each place of padded sequences, (B, T, D); item N is padding, at the left."""
    from torch.nn import functional

    def dropped(x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, dropout, training=dropout > 0)

    length = items.shape[1]
    padding = weights["items"].shape[0] - 1
    x = dropped(weights["items"][items] * WIDTH**0.5 + weights["places"][-length:])
    causal = items.new_ones((length, length), dtype=items.dtype).tril().bool()
    # Each place may see itself, padding too: a row without any would be NaN.
    mask = (causal & (items != padding)[:, None, :]) | causal.new_ones(length).diag().bool()
    for layer in range(LAYERS):
        own = {name: weights[f"{layer}.{name}"] for name in ("query", "key", "value", "mixed", "wide", "narrow")}
        normed = functional.layer_norm(x, (WIDTH,), weights[f"{layer}.scale1"], weights[f"{layer}.shift1"])
        attended = functional.scaled_dot_product_attention(
            (normed @ own["query"])[:, None],
            (normed @ own["key"])[:, None],
            (normed @ own["value"])[:, None],
            attn_mask=mask[:, None],
        )[:, 0]
        x = x + dropped(attended @ own["mixed"])
        normed = functional.layer_norm(x, (WIDTH,), weights[f"{layer}.scale2"], weights[f"{layer}.shift2"])
        inner = functional.relu(normed @ own["wide"] + weights[f"{layer}.bias1"])
        x = x + dropped(inner @ own["narrow"] + weights[f"{layer}.bias2"])
    return functional.layer_norm(x, (WIDTH,), weights["scale"], weights["shift"])


@dataclass(frozen=True)
class _Pieces:
    """Sequences to learn from, padded at the left.

    Attributes:
        places: (S, LENGTH) places in the log, -1 where there is none.
        items: (E + 1,) the log's items, padding last.
        next_starts: (E + 1,) where the next basket of the same user starts.
        next_sizes: (E + 1,) how many items it has; 0 where there is none.
    """

    places: np.ndarray
    items: np.ndarray
    next_starts: np.ndarray
    next_sizes: np.ndarray

    @classmethod
    def of(cls, log: Log, n_items: int) -> _Pieces:
        """Every user's events in pieces of LENGTH, from the end, so that the latest fill a whole piece."""
        fresh = np.ones(len(log) + 1, bool)
        fresh[1:-1] = (log.users[1:] != log.users[:-1]) | (log.times[1:] != log.times[:-1])
        bounds = np.append(
            np.flatnonzero(fresh), len(log)
        )  # the end twice: the last basket is followed by an empty one
        following = np.searchsorted(bounds, np.arange(len(log)), side="right")
        starts = bounds[following]
        own = log.users[np.minimum(starts, max(len(log) - 1, 0))] == log.users
        sizes = np.where(own, bounds[np.minimum(following + 1, len(bounds) - 1)] - starts, 0)
        first, pieces = np.searchsorted(log.users, np.unique(log.users)), []
        for start, stop in pairwise([*first.tolist(), len(log)]):
            for end in range(stop, start, -LENGTH):
                piece = np.arange(max(start, end - LENGTH), end)
                pieces.append(np.concatenate([np.full(LENGTH - len(piece), -1), piece]))
        items = np.append(log.items, n_items).astype(np.int64)
        places = np.array(pieces, np.int64).reshape(-1, LENGTH)
        useful = (np.append(sizes, 0)[places] > 0).any(axis=1)
        return cls(places[useful], items, np.append(starts, 0), np.append(sizes, 0))


def _start(n_items: int, maker: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights to begin with."""
    import torch

    weights: dict[str, torch.Tensor] = {}
    for name, shape in _shapes(n_items).items():
        last = name.rpartition(".")[2]
        start = torch.ones(shape) if last.startswith("scale") else torch.zeros(shape)
        if len(shape) == 2:
            start = torch.randn(shape, generator=maker) * (0.02 if last in ("items", "places") else WIDTH**-0.5)
        weights[name] = start.requires_grad_()
    return weights


@contextlib.contextmanager
def _one_order() -> Iterator[None]:
    """Within it gradients of rows that are met again are summed in one order, however many threads there are."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train(pieces: _Pieces, n_items: int, epochs: int, dropout: float) -> dict[str, torch.Tensor]:
    """The weights after some passes."""
    import torch
    from torch.nn import functional

    maker = torch.Generator().manual_seed(0)
    draws = np.random.default_rng(0)
    weights = _start(n_items, maker)
    optimizer = torch.optim.Adam(weights.values(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    n_steps = min(MOST_STEPS, epochs * -(-len(pieces.places) // BATCH))
    batches = (part for _ in range(epochs) for part in torch.randperm(len(pieces.places), generator=maker).split(BATCH))
    for step, part in zip(range(n_steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / n_steps)
        places = pieces.places[part.numpy()]
        rows, columns = np.nonzero(pieces.next_sizes[places])
        chosen = draws.permutation(len(rows))[: max(1, min(len(rows) // 2, _SCORED // max(n_items, 1)))]
        rows, columns = rows[chosen], columns[chosen]
        events = places[rows, columns]
        drawn = pieces.next_starts[events] + draws.integers(0, pieces.next_sizes[events])
        states = _states(weights, torch.from_numpy(pieces.items[places]), dropout)[rows, columns]
        logits = states @ weights["items"][:n_items].T
        loss = functional.cross_entropy(logits, torch.from_numpy(pieces.items[drawn]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights


@dataclass(frozen=True)
class Sasrec:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "the next item from the order of the last ones, by self-attention"
    grid: tuple[Mapping[str, Any], ...] = ({"epochs": 6, "dropout": 0.2}, {"epochs": 3, "dropout": 0.2})
    probabilities: bool = False
    by_default: bool = False  # it takes minutes
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The weights."""
        import torch

        n_items = len(known.store.item_ids)
        pieces = _Pieces.of(log_of(known, "sasrec"), n_items)
        # Dropout draws from torch's own numbers: they are set here, and put back for whoever draws after.
        with torch.random.fork_rng(devices=[]), _one_order():
            torch.manual_seed(0)
            weights = _train(pieces, n_items, settings["epochs"], settings["dropout"])
        return {name: tensor.detach().numpy() for name, tensor in weights.items()}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The state after the history times every item's vector; zeros for an empty history."""
        import torch

        n_items = len(store.item_ids)
        weights = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        out = np.zeros((len(rows), n_items), np.float32)
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            items = np.full((len(part), LENGTH), n_items, np.int64)
            for i, row in enumerate(part.tolist()):
                history = records.history(row, LENGTH)
                items[i, LENGTH - len(history) :] = history
            with torch.no_grad():
                states = _states(weights, torch.from_numpy(items))[:, -1]
                found = (states @ weights["items"][:n_items].T).numpy()
            out[start : start + 256] = found * (items[:, -1:] != n_items)
        return out


MEMBER = Sasrec()
