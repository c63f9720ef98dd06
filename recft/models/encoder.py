"""A model as the function that everything works on: texts in, K numbers out for each; and what only likelihoods can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recft.models.catalogue_likelihood import bodies_of, catalogue_trie, score_catalogue
from recft.models.generation import generate, generate_free
from recft.models.passes import passes
from recft.models.text_model import TextModel
from recft.models.token_cache import remembered
from recft.models.tokens import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoder", "encode", "remembering"]

PACKED_TOKENS = 4096


@dataclass(frozen=True)
class Encoder:
    """A model with its tokenizer, called with texts.

    Attributes:
        model: whose serving says what its numbers are.
        tokenizer: its tokenizer.
        chunk_tokens: tokens of a forward pass; bounds memory.
    """

    model: TextModel
    tokenizer: PreTrainedTokenizerBase
    chunk_tokens: int = 16384

    def __call__(self, texts: Sequence[Text]) -> np.ndarray:
        """What the model makes of each text, (N, K) float32."""
        return encode(self.model, self.tokenizer, texts, self.chunk_tokens)

    def catalogue(self, bodies: Sequence[str], tails: Sequence[str]) -> np.ndarray:
        """Log p of every tail after every body in nats, (B, N) float32: the tails' beginnings are shared.

        A body is cut so that the longest tail fits behind it: all tails then have one past.
        """
        trie, longest = catalogue_trie(self.model.serving, self.tokenizer, tails)
        ids = bodies_of(self.model.serving, self.tokenizer, bodies, longest)
        return score_catalogue(self.model.base, ids, trie, min(self.chunk_tokens, PACKED_TOKENS))

    def generated(
        self, bodies: Sequence[str], tails: Sequence[str], beams: int, free: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tails that a beam search finds after each body, (B, beams), -1 where there are no more, and their log p.

        Args:
            bodies: B prompts.
            tails: the catalogue.
            beams: of each body; so many tails are wanted.
            free: write without regard to the catalogue; an output that is none of it is -2.
        """
        trie, longest = catalogue_trie(self.model.serving, self.tokenizer, tails)
        ids = bodies_of(self.model.serving, self.tokenizer, bodies, longest)
        search = generate_free if free else generate
        return search(self.model.base, ids, trie, beams, beams, chunk_tokens=min(self.chunk_tokens, PACKED_TOKENS))


@torch.no_grad()
def encode(
    model: TextModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], chunk_tokens: int = 16384
) -> np.ndarray:
    """What the model makes of each text, (N, K) float32; equal texts are computed once."""
    different = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(different)}
    found = np.zeros((0, 0), np.float32)
    for rows, values in _encode_chunks(model, tokenizer, different, chunk_tokens):
        if not found.size:
            found = np.empty((len(different), values.shape[1]), np.float32)
        found[rows] = values
    return found[[place[text] for text in texts]]


def remembering(encode: Callable[[Sequence[Any]], np.ndarray]) -> Callable[[Sequence[Any]], np.ndarray]:
    """The same function of texts, computing each text once."""
    known: dict[Any, np.ndarray] = {}

    def remember(texts: Sequence[Any]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, encode(new), strict=True) if new else ())
        return np.stack([known[text] for text in texts]) if len(texts) else np.zeros((0, 0), np.float32)

    return remember


def _encode_chunks(
    model: TextModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], chunk_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    window = 20_000  # texts tokenized at a time: memory stays flat, and lengths still group well
    pad_id = int(tokenizer.pad_token_id or 0)
    serving = model.serving
    rule = {"max_tokens": serving.max_tokens, "head": serving.head, "chat": serving.chat}
    for start in range(0, len(texts), window):
        tokens = remembered(tokenizer, texts[start : start + window], rule, partial(model.serving.tokens, tokenizer))
        for one in passes(model, tokens, pad_id, chunk_tokens):
            yield start + one.texts, one.outputs().cpu().numpy()
