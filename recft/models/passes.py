"""The passes in which texts go through a model: the one place that chooses between padding and a shared layout.

Causal bases take the layout (`models.layout`): beginnings are computed once, rows hold no padding. Encoders, whose
tokens see what follows them, can share nothing exactly: where our own attention tells the texts of a row apart they
stand side by side, else they take texts of like length, padded. So does a base whose attention does not heed a mask,
or whose sliding window is narrower than a text. Where no gradient is wanted, a
beginning that many texts have stays as keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from recft.models import attention
from recft.models.flex import block_mask
from recft.models.layout import Family, Layout, families, lay_out
from recft.models.packed import NOT_FOR_THIS, Before, additive, fault, hidden_of, narrowest_window, read
from recft.models.text_model import TextModel, chunks_by_length, on, padded
from recft.models.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from recft.models.bottom import Bottom

__all__ = ["Pass", "hidden_states", "passes"]

MOST_ROWS = 1024

_heeding: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a base heeds the mask of a layout, once it was tried."""


@dataclass(frozen=True)
class Pass:
    """Some texts that go through the model together.

    Attributes:
        texts: (n,) their numbers.
        n_tokens: positions that are computed, padding too.
        places: of each text, where its tokens stand in the pass's hidden states, (R·T, D); none behind a cache.
        outputs: computes their numbers, (n, K) float32, with a graph where gradients are on.
    """

    texts: np.ndarray
    n_tokens: int
    places: list[np.ndarray]
    outputs: Callable[[], Tensor]


def passes(
    model: TextModel, tokens: Sequence[Tokens], pad_id: int, chunk_tokens: int, bottom: Bottom | None = None
) -> list[Pass]:
    """The passes that compute all texts, each text in one of them.

    Args:
        model: in training or in evaluation mode.
        tokens: of each text, as `Serving.tokens` gives them.
        pad_id: what stands where no token does.
        chunk_tokens: positions of a pass; bounds memory.
        bottom: blocks that are computed once a text, or None.
    """
    if bottom is None:
        return _passes(model, tokens, pad_id, chunk_tokens, caches=not torch.is_grad_enabled())
    every = _passes(model, tokens, pad_id, chunk_tokens, caches=False)

    def above(one: Pass) -> Pass:
        own = [tokens[text] for text in one.texts]
        alone = partial(_some_alone, model, own, pad_id, chunk_tokens)
        return replace(one, outputs=partial(bottom.outputs, one, own, alone))

    return [above(one) for one in every]


def _some_alone(
    model: TextModel, tokens: Sequence[Tokens], pad_id: int, chunk_tokens: int, chosen: Sequence[int]
) -> list[Pass]:
    return _passes(model, [tokens[text] for text in chosen], pad_id, chunk_tokens, caches=False)


def _passes(model: TextModel, tokens: Sequence[Tokens], pad_id: int, chunk_tokens: int, caches: bool) -> list[Pass]:
    if model.serving.kind == "causal" and _takes_layouts(model.base, tokens):
        return _shared(model, tokens, chunk_tokens, caches)
    if model.serving.kind == "encoder" and _takes_rows(model, tokens):
        return _side_by_side(model, tokens, chunk_tokens)
    found = []
    for rows in chunks_by_length(tokens, chunk_tokens, MOST_ROWS):
        batch = padded(tokens, rows, pad_id, model.device, model.serving.max_tokens)
        ids = batch["input_ids"]
        places = [row * ids.shape[1] + np.arange(len(tokens[text]["input_ids"])) for row, text in enumerate(rows)]
        found.append(Pass(rows, ids.numel(), places, partial(model, **batch)))
    return found


def _side_by_side(model: TextModel, tokens: Sequence[Tokens], chunk_tokens: int) -> list[Pass]:
    """Passes of one row each, without padding: texts stand side by side, those of one length next to another."""
    lengths = np.array([len(row["input_ids"]) for row in tokens])
    found: list[Pass] = []
    chosen: list[int] = []
    room = chunk_tokens
    for text in [*np.argsort(-lengths, kind="stable").tolist(), None]:
        if chosen and (text is None or lengths[text] > room or len(chosen) == MOST_ROWS):
            own = lengths[chosen]
            places = np.split(np.arange(own.sum()), np.cumsum(own)[:-1])
            outputs = partial(_row_outputs, model, [tokens[each] for each in chosen])
            found.append(Pass(np.array(chosen), int(own.sum()), places, outputs))
            chosen, room = [], chunk_tokens
        if text is not None:
            chosen.append(text)
            room -= lengths[text]
    return found


def _row_outputs(model: TextModel, tokens: Sequence[Tokens]) -> Tensor:
    """The embeddings of texts that stand side by side in one row, (n, D)."""
    base, lengths = model.base, np.array([len(row["input_ids"]) for row in tokens])
    inputs = {
        name: _on(np.concatenate([row[name] for row in tokens])[None], base.device)
        for name in ("input_ids", "token_type_ids")
        if name in tokens[0]
    }
    positions = _on(np.concatenate([np.arange(length) for length in lengths])[None], base.device)
    mask = _on(lengths.astype(np.int32)[None, None, None], base.device)
    hidden = base.base_model(**inputs, position_ids=positions, attention_mask=mask).last_hidden_state[0]  # (T, D)
    if model.serving.pooling == "mean":
        return model.vectors(_means_of(hidden, lengths))
    return model.vectors(hidden[_on(np.cumsum(lengths) - 1, base.device)])


def _shared(model: TextModel, tokens: Sequence[Tokens], chunk_tokens: int, caches: bool) -> list[Pass]:
    """Passes over trees; where no gradient is wanted, large families behind a beginning that is read once."""
    # The last token of a likelihood is predicted, never read.
    end = -1 if model.serving.head == "likelihood" else None
    sequences = [row["input_ids"][:end] for row in tokens]
    found: list[Pass] = []
    alone = set(range(len(tokens)))
    if caches and not _pools_all(model) and fault(model.base, 1) is None:
        for family in families(sequences):
            alone.difference_update(family.texts)
            found += _family(model, tokens, sequences, family, chunk_tokens)
    rest = sorted(alone)
    for layout in lay_out([sequences[text] for text in rest], chunk_tokens, _attention_tokens(model.base)):
        chosen = [rest[text] for text in layout.texts]
        places = np.split(layout.ways, layout.starts[1:-1])
        outputs = partial(_outputs, model, layout, [tokens[text] for text in chosen])
        found.append(Pass(np.array(chosen), layout.ids.size, places, outputs))
    return found


def _pools_all(model: TextModel) -> bool:
    return model.serving.head == "embedding" and model.serving.pooling == "mean"


def _family(
    model: TextModel, tokens: Sequence[Tokens], sequences: Sequence[Sequence[int]], family: Family, chunk_tokens: int
) -> list[Pass]:
    """Passes over the rests of a family's texts; its beginning stays as keys and values."""
    common = family.common
    if model.serving.head == "likelihood":
        common = min(common, *(tokens[text]["tail_mask"].index(1) for text in family.texts))
    # The last common token is read again with each tree: what stands before it is what they have in common.
    beginning = sequences[family.texts[0]][:common]
    rests = [sequences[text][common - 1 :] for text in family.texts]
    before = cache(partial(read, model.base, [beginning]))
    found = []
    for layout in lay_out(rests, chunk_tokens, _attention_tokens(model.base)):
        chosen = [family.texts[text] for text in layout.texts]
        outputs = partial(_outputs, model, layout, [tokens[text] for text in chosen], before, common - 1)
        found.append(Pass(np.array(chosen), layout.ids.size, [], outputs))
    return found


def _attention_tokens(base: PreTrainedModel) -> float:
    """Tokens of a row at which attention costs about as much as all else; see `lay_out`.

    On a CPU attention is bound by memory, not by its products: measured, it is the hidden size.
    """
    hidden = int(base.config.get_text_config().hidden_size)
    return float(hidden if base.device.type == "cpu" else 8 * hidden)


def _outputs(
    model: TextModel,
    layout: Layout,
    tokens: Sequence[Tokens],
    before: Callable[[], Before] | None = None,
    n_before: int = 0,
) -> Tensor:
    """The numbers of a layout's texts, (n, K).

    Args:
        model: whose base reads them.
        layout: of the texts, without what was read before.
        tokens: of each text of the layout, in its order.
        before: gives what was read before.
        n_before: tokens of it.
    """
    hidden = hidden_states(model.base, layout, before)  # (R·T, D)
    if model.serving.head == "likelihood":
        return model.likelihood(hidden, *_predicted(layout, tokens, n_before, hidden.device))
    if _pools_all(model):
        return model.vectors(_means(hidden, layout))
    last = hidden[_on(layout.ends, hidden.device)]  # (n, D)
    return model.vectors(last) if model.serving.head == "embedding" else model.logits(last)


def hidden_states(base: PreTrainedModel, layout: Layout, before: Callable[[], Before] | None = None) -> Tensor:
    """The last hidden states of a layout's tokens, (R·T, D), behind what was read before them in every row."""
    ids, positions, last = (_on(part, base.device) for part in (layout.ids, layout.positions, layout.last))
    place = torch.arange(last.shape[1], device=last.device)
    sees = (place <= place[:, None]) & (place[:, None] < last[:, None, :])  # (R, T, T)
    if before is not None:
        return hidden_of(base, before().repeated(len(ids)), ids, positions, sees).flatten(0, 1)
    flexible = getattr(base.config, "_attn_implementation", None) == "flex_attention"
    mask = block_mask(last) if flexible else additive(base, sees)
    states: Tensor = base.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return states.flatten(0, 1)


def _means(hidden: Tensor, layout: Layout) -> Tensor:
    """The mean over each text's tokens, (n, D), in the hidden states' dtype."""
    return _means_of(hidden[_on(layout.ways, hidden.device)], np.diff(layout.starts))


def _means_of(hidden: Tensor, lengths: np.ndarray) -> Tensor:
    """The mean over each text's tokens, (n, D), of texts that stand one behind the other, (sum of lengths, D)."""
    owner = _on(np.repeat(np.arange(len(lengths)), lengths), hidden.device)
    sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, owner, hidden)
    return sums / _on(lengths, hidden.device)[:, None]


def _predicted(
    layout: Layout, tokens: Sequence[Tokens], n_before: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Where each tail's tokens are predicted, in ascending order: place (E,), token (E,) and text (E,); and n."""
    places, ids, owners = [], [], []
    for number, text in enumerate(tokens):
        tail = np.flatnonzero(np.asarray(text["tail_mask"]))
        places.append(layout.ways[layout.starts[number] + tail - 1 - n_before])
        ids.append(np.asarray(text["input_ids"], np.int64)[tail])
        owners.append(np.full(len(tail), number))
    place = np.concatenate(places)
    order = np.argsort(place, kind="stable")
    parts = (place[order], np.concatenate(ids)[order], np.concatenate(owners)[order])
    place_, id_, owner = (_on(part, device) for part in parts)
    return place_, id_, owner, len(tokens)


def _on(array: np.ndarray, device: torch.device) -> Tensor:
    return on(torch.from_numpy(np.ascontiguousarray(array)), device)


def _takes_layouts(base: PreTrainedModel, tokens: Sequence[Tokens]) -> bool:
    """Whether texts of these lengths come out of a layout as they do alone."""
    longest = max((len(row["input_ids"]) for row in tokens), default=0)
    if longest > narrowest_window(base, longest):
        return False
    if base not in _heeding:
        _heeding[base] = _heeds(base)
    return _heeding[base]


def _takes_rows(model: TextModel, tokens: Sequence[Tokens]) -> bool:
    """Whether an encoder's texts can stand side by side, for all attention of it tells them apart.

    A new head reads the first token of a row: there each text has a row of its own.
    """
    if model.serving.head != "embedding" or model.base.config._attn_implementation != attention.NAME:
        return False
    lengths = [len(row["input_ids"]) for row in tokens]
    # Lengths are all that this attention is told: nothing of a window within them.
    if not all(lengths) or max(lengths, default=0) > narrowest_window(model.base, max(lengths, default=0)):
        return False
    if model.base not in _heeding:
        _heeding[model.base] = _knows_apart(model)
    return _heeding[model.base]


@torch.no_grad()
def _knows_apart(model: TextModel) -> bool:
    """Tries a few tokens: not every architecture hands a mask to its attention, or counts positions from 0."""
    first, other, second = [1, 3, 2, 4, 2, 5], [5, 2, 4, 4, 1, 3], [1, 3, 2, 4]
    base = model.base
    training = base.training
    base.eval()  # without an adapter's dropout
    try:
        together, again = (_row_outputs(model, [{"input_ids": ids} for ids in (one, second)]) for one in (first, other))
        alone = model(**padded([{"input_ids": second}], np.zeros(1, int), 0, model.device, len(second)))
        ids, places = torch.tensor([second], device=model.device), torch.arange(len(second), device=model.device)[None]
        usual, counted, spread = (
            base.base_model(input_ids=ids, **more).last_hidden_state
            for more in ({}, {"position_ids": places}, {"position_ids": 2 * places})
        )
    except NOT_FOR_THIS:
        return False
    finally:
        base.train(training)
    # To the bit, so that no rounding hides a place that is off by one or not heeded, or a neighbour that is seen.
    if not torch.equal(usual, counted) or torch.equal(usual, spread):
        return False
    if not torch.equal(together[1], again[1]) or torch.equal(together[0], again[0]):
        return False
    off = float((together[1] - alone).abs().max() / alone.abs().max())
    return off < (0.1 if base.dtype.itemsize == 2 else 0.01)


@torch.no_grad()
def _heeds(base: PreTrainedModel) -> bool:
    """Tries a few tokens: not every architecture takes a mask and positions for every token."""
    texts = [[1, 3, 2, 4, 2, 5], [1, 3, 2, 4, 3, 2], [5, 2, 3]]
    training = base.training
    base.eval()  # without an adapter's dropout
    try:
        (layout,) = lay_out(texts, 64, 64.0)
        together = hidden_states(base, layout)[_on(layout.ends, base.device)].float()
        alone = torch.stack([_alone(base, texts[text]) for text in layout.texts])
    except NOT_FOR_THIS:
        return False
    finally:
        base.train(training)
    off = float((together - alone).abs().max() / alone.abs().max())
    return off < (0.1 if together.dtype.itemsize == 2 else 0.01)


def _alone(base: PreTrainedModel, ids: list[int]) -> Tensor:
    states: Any = base.base_model(input_ids=torch.tensor([ids], device=base.device), use_cache=False)
    hidden: Tensor = states.last_hidden_state[0, -1]
    return hidden.float()
