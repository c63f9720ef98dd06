"""The frozen bottom of a model: blocks that nothing trains make the same of a text every time, and make it once.

Below the lowest layer that a method touches, hidden states are a function of the text alone. They are computed by
themselves when a text is new, stored, and handed to the blocks above from then on; the blocks below are not called.

What a block above is given is always what was computed when the text was first met: the same numbers as a run without
the store up to rounding, and the same bits in a run that was killed and goes on, whatever its store holds from steps
that it does again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from recft.models.blocks import blocks_of
from recft.models.hidden_store import HiddenStore
from recft.models.packed import NOT_FOR_THIS
from recft.models.tokens import Tokens

if TYPE_CHECKING:
    from recft.models.passes import Pass
    from recft.models.text_model import TextModel

__all__ = ["Bottom"]

Array = np.ndarray
Forward = Callable[..., Any]


class _Reached(Exception):  # noqa: N818 - no error: the way out of a model whose upper blocks are not wanted
    """The lower blocks are done."""


class Bottom:
    """The lower blocks of a base, and what they made of texts."""

    def __init__(self, blocks: Sequence[nn.Module], store: HiddenStore, what: str) -> None:
        """Takes the lower blocks, in order.

        Args:
            blocks: one at least; none of them trains, nor anything that comes before them.
            store: where their outputs are kept.
            what: all that decides outputs besides token ids, in words: a part of every key.
        """
        self._blocks, self._store, self._what = list(blocks), store, hashlib.sha256(what.encode())
        self._device = next(self._blocks[0].parameters()).device
        self._n_outputs = 0  # of a block, in a tuple; 0: it gives hidden states by themselves

    @classmethod
    def of(cls, model: TextModel, n_blocks: int, store: HiddenStore, what: str) -> Bottom | None:
        """The lowest `n_blocks`; None where this base's blocks hand on more than hidden states, as a trial shows."""
        base, every = model.base, blocks_of(model.base)
        if len(every) != getattr(base.config.get_text_config(), "num_hidden_layers", None):
            return None
        bottom = cls(every[:n_blocks], store, what)
        options: dict[str, Any] = {"use_cache": False} if model.serving.kind == "causal" else {}

        def call(*ids: int) -> Tensor:
            row = torch.tensor([ids], device=base.device)
            hidden: Tensor = base.base_model(input_ids=row, **options).last_hidden_state
            return hidden[0]

        one, other = partial(call, 1, 3, 2, 4, 2, 5), partial(call, 5, 2, 3, 1, 4, 4)

        training = base.training
        base.eval()  # without an adapter's dropout
        try:
            with torch.no_grad():
                plain, states = one(), bottom._computed(one)
                bottom._computed(other)  # what a block leaves somewhere is now another text's
                with bottom._handing(np.arange(len(states)), states):
                    off = float((one() - plain).abs().max() / plain.abs().max())
        except (*NOT_FOR_THIS, KeyError):
            return None
        finally:
            base.train(training)
        return bottom if off < 0.01 else None

    def sync(self) -> None:
        """Comes back when all that is stored is on the disk."""
        self._store.sync()

    def outputs(self, one: Pass, tokens: Sequence[Tokens], alone: Callable[[Sequence[int]], list[Pass]]) -> Tensor:
        """What the pass gives, (n, K), the lower blocks computed for those of its texts that are new.

        Args:
            one: some texts that go through the model together.
            tokens: of each of them.
            alone: the passes of some of them, by their place in this one.
        """
        keys = [self._key(text, len(places)) for text, places in zip(tokens, one.places, strict=True)]
        numbers = {key: number for number, key in reversed(list(enumerate(keys)))}
        states = {key: self._store.get(key) for key in keys}
        new = sorted(number for key, number in numbers.items() if states[key] is None)
        if len(new) == len(keys):
            states |= self._met(one, keys)
        elif new:
            for some in alone(new):
                states |= self._met(some, [keys[new[text]] for text in some.texts])
        # A token that texts share has what was computed for the first of them.
        places, firsts = np.unique(np.concatenate(one.places), return_index=True)
        every = torch.cat([state.to(self._device) for key in keys if (state := states[key]) is not None])
        with self._handing(places, every[torch.from_numpy(firsts).to(self._device)]):
            return one.outputs()

    def _key(self, text: Tokens, n_tokens: int) -> str:
        key = self._what.copy()
        for name in ("input_ids", "token_type_ids"):
            key.update(np.asarray(text.get(name, [])[:n_tokens], "<i8").tobytes() + b";")
        return key.hexdigest()

    def _met(self, some: Pass, keys: Sequence[str]) -> dict[str, Tensor]:
        """The hidden states of texts that are met for the first time, (L, D) each; they are stored."""
        hidden = self._computed(some.outputs)
        rows = np.unique(np.concatenate(some.places))
        texts = {key: np.searchsorted(rows, places) for key, places in zip(keys, some.places, strict=True)}
        hidden = hidden[torch.from_numpy(rows).to(self._device)]  # (M, D)
        self._store.put(hidden, texts)
        return {key: hidden[torch.from_numpy(own).to(self._device)] for key, own in texts.items()}

    @torch.no_grad()
    def _computed(self, call: Callable[[], object]) -> Tensor:
        """What the lower blocks make of a pass, (R·T, D); the upper ones are not called."""
        *_, top = self._blocks
        forward, caught = top.forward, []

        def leave(*inputs: Any, **options: Any) -> None:
            caught.append(forward(*inputs, **options))
            raise _Reached

        with _forwards({top: leave}), contextlib.suppress(_Reached):
            call()
        (given,) = caught
        self._n_outputs = len(given) if isinstance(given, tuple) else 0
        hidden: Tensor = given[0] if isinstance(given, tuple) else given
        return hidden.flatten(0, 1)

    @contextlib.contextmanager
    def _handing(self, places: Array, states: Tensor) -> Iterator[None]:
        """Within it the lower blocks compute nothing, and the last of them hands on `states`.

        Where no text's token stands there are zeros, whatever came before: nothing sees them.
        """
        where = torch.from_numpy(places).to(states.device)

        def as_block(hidden: Tensor) -> Any:
            return (hidden, *[None] * (self._n_outputs - 1)) if self._n_outputs else hidden

        def through(*inputs: Any, **options: Any) -> Any:
            return as_block(_hidden(inputs, options))

        def hand_on(*inputs: Any, **options: Any) -> Any:
            rows, width = _hidden(inputs, options).shape[:2]
            whole = states.new_zeros(rows * width, states.shape[1]).index_copy_(0, where, states)
            return as_block(whole.view(rows, width, -1))

        *lower, top = self._blocks
        with _forwards({**dict.fromkeys(lower, through), top: hand_on}):
            yield


def _hidden(inputs: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    hidden: Tensor = inputs[0] if inputs else options["hidden_states"]
    return hidden


@contextlib.contextmanager
def _forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Within it these blocks compute so."""
    before = {block: block.__dict__.get("forward") for block in forwards}
    for block, forward in forwards.items():
        block.forward = forward
    try:
        yield
    finally:
        for block, old in before.items():
            if old is None:
                del block.forward
            else:
                block.forward = old
