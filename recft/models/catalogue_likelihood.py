"""How likely every item of a catalogue is after a history, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recft.models.packed import Before, batches_by_length, check, hidden_of, read
from recft.models.token_log_p import log_p
from recft.models.tokens import Tokens
from recft.models.trie import Piece, Trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recft.models.text_model import Serving

__all__ = ["bodies_of", "catalogue_trie", "score_catalogue"]

PAD_TO = 32
"""Packed tokens are rounded up to a multiple of this: few different shapes."""

PIECE_TOKENS = 512
"""Nodes behind one history at a time: attention among them grows with the square, histories beside it do not."""


def catalogue_trie(serving: Serving, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Trie, str]:
    """The trie of the items' texts as tails, and the longest of them, for `bodies_of`."""
    tails = [_apart(tokens)[1] for tokens in serving.tokens(tokenizer, [("", text) for text in texts])]
    longest = max(range(len(tails)), key=lambda row: len(tails[row])) if tails else 0
    return Trie.build([tail[:-1] for tail in tails], tails[0][-1] if tails else None), texts[longest] if texts else ""


def bodies_of(
    serving: Serving, tokenizer: PreTrainedTokenizerBase, bodies: Sequence[str], longest: str
) -> list[list[int]]:
    """Token ids of each body, cut so that any item fits behind it: one body is the same before all items."""
    return [_apart(tokens)[0] for tokens in serving.tokens(tokenizer, [(body, longest) for body in bodies])]


def _apart(tokens: Tokens) -> tuple[list[int], list[int]]:
    middle = tokens["tail_mask"].index(1)
    return tokens["input_ids"][:middle], tokens["input_ids"][middle:]


@torch.no_grad()
def score_catalogue(
    base: PreTrainedModel, bodies: Sequence[Sequence[int]], trie: Trie, chunk_tokens: int = 4096
) -> np.ndarray:
    """The sum of log p of all tokens of every item after each body, in nats, (B, N) float32.

    A body goes through the model once, and so does every node of the trie that has children; what little is done
    twice is where the trie is cut into pieces.

    Args:
        base: a causal model with its head, in evaluation mode; any adapter may sit in it.
        bodies: token ids of each history, one token at least.
        trie: the catalogue.
        chunk_tokens: packed tokens at a time, of several histories where they fit; bounds memory.

    Raises:
        ModelError: the model cannot read packed tokens, or a body is empty.
    """
    scores = np.empty((len(bodies), len(trie.items)), np.float32)
    pieces = trie.pieces(min(chunk_tokens, PIECE_TOKENS))
    widest = max(len(piece.token) for piece in pieces)
    for rows in batches_by_length(bodies, widest, chunk_tokens):
        chosen = [bodies[row] for row in rows]
        check(base, len(chosen[-1]) + int(trie.depth[-1]))
        before = read(base, chosen)
        each = torch.zeros(len(rows), trie.n_nodes)
        # Several histories with one piece, or one history with several: either way a pass that is worth it.
        together = max(1, chunk_tokens // widest) if len(rows) == 1 else 1
        for start in range(0, len(pieces), together):
            some = pieces[start : start + together]
            behind = before.repeated(len(some)) if len(some) > 1 else before
            found = _log_p_of(base, behind, some * len(rows))
            child = torch.from_numpy(np.concatenate([piece.child for piece in some]))
            each[:, child] = found.view(len(rows), -1).cpu()
        scores[rows] = _sums(trie, each)[:, trie.node_of_item].numpy()
    return scores


def _sums(trie: Trie, each: Tensor) -> Tensor:
    """From each node's own log p to the sum from the root down, (B, n); in place."""
    for low, high in trie.levels[1:]:
        each[:, low:high] += each[:, trie.parent[low:high]]
    return each


def _log_p_of(base: PreTrainedModel, before: Before, pieces: Sequence[Piece]) -> Tensor:
    """Log p of each edge of one piece a row, row after row, (sum of E,) float32."""
    width = -(-max(len(piece.token) for piece in pieces) // PAD_TO) * PAD_TO
    device = before.last.device
    ids, depth, first, last = (
        torch.from_numpy(_rows([getattr(piece, name) for piece in pieces], width)).to(device)
        for name in ("token", "depth", "first", "last")
    )
    ids[:, 0] = before.last  # the root is the body's last token
    # Padding stands at place 0 with an empty subtree: seen by none but itself.
    sees = (first[:, None] <= first[:, :, None]) & (first[:, :, None] < last[:, None])  # (B, M, M)
    sees |= torch.eye(width, dtype=torch.bool, device=device)
    hidden = hidden_of(base, before, ids, depth, sees)
    row = np.concatenate([number * width + piece.row for number, piece in enumerate(pieces)])
    token = np.concatenate([piece.leads for piece in pieces])
    flat = hidden.reshape(len(pieces) * width, -1)
    return log_p(base, flat, torch.from_numpy(row).to(device), torch.from_numpy(token).to(device))


def _rows(arrays: Sequence[np.ndarray], width: int) -> np.ndarray:
    table = np.zeros((len(arrays), width), np.int64)
    for number, array in enumerate(arrays):
        table[number, : len(array)] = array
    return table
