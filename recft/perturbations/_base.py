"""What every way of spoiling a text meets, and how texts are spoilt: for scores, and in training.

For scores a text is always spoilt the same way: its draws come from a hash of the seed, the name and the text, so
that equal texts stay equal, whatever stands beside them and in whatever order. In training the draws are the
batch's own. Of a conversation what the user says is spoilt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from recft import registry
from recft.errors import RecipeError, problem
from recft.perturbations._words import Words

__all__ = ["Perturbation", "Sides", "Text", "augmented", "chosen", "spoil", "spoiler"]

Text = str | tuple[str, str]
Sides = Literal["contexts", "items", "both"]

FAMILY = "recft.perturbations"


class Perturbation(Protocol):
    """One way of spoiling a text.

    What no member ever does: leave a text empty that was not, take an emoji or a letter and its marks apart, or
    alter a word with a digit in it (a size, a model number, an id). It may move or drop one where that is its kind
    of harm.
    """

    summary: str

    def apply(self, text: str, share: float, rng: np.random.Generator, words: Words | None = None, /) -> str:
        """The text, spoilt; the text itself where there is nothing that could be.

        Args:
            text: as a customer or a shop wrote it.
            share: of the words (of Chinese: of the characters) that are touched, on average; from 0 to 1.
            rng: the same draws give the same text.
            words: what may stand for what, for members that read it; the built-in words where absent.
        """


def chosen(n: int, share: float, rng: np.random.Generator) -> list[int]:
    """Which of `n` are touched, in order: `share * n` of them on average, never off by a whole one."""
    count = min(n, int(share * n + rng.random()))
    return sorted(rng.choice(n, count, replace=False).tolist()) if count else []


def spoil(
    texts: Sequence[Text],
    shares: Mapping[str, float],
    seed: int,
    words: Words | None = None,
    prompts: Sequence[str] = (),
) -> list[Text]:
    """The texts, each spoilt by every named perturbation in turn; of (body, tail) the body alone.

    Args:
        texts: as they would be scored.
        shares: perturbation -> share of the words that it touches.
        seed: another seed spoils otherwise.
        words: a shop's own, from `read_words`.
        prompts: a text that begins with one of these keeps it: they are the recipe's, not a customer's.

    Raises:
        RecipeError: there is no such perturbation, or a share is not from 0 to 1.
    """
    spoilt = spoiler(shares, seed, words)
    return [_own(text, spoilt, prompts) for text in texts]


def augmented(
    texts: Sequence[Text],
    probabilities: Mapping[str, float],
    rng: np.random.Generator,
    share: float = 0.2,
    words: Words | None = None,
    prompts: Sequence[str] = (),
    which: Sequence[int] | np.ndarray | None = None,
) -> list[Text]:
    """The texts of a training batch, each spoilt by at most one of the named perturbations.

    Args:
        texts: of a batch.
        probabilities: perturbation -> how likely a text gets it; together at most 1.
        rng: the batch's.
        share: of the words of a text that is spoilt.
        words: a shop's own, from `read_words`.
        prompts: a text that begins with one of these keeps it.
        which: places of the texts that may be spoilt (the contexts'); all where absent.

    Raises:
        RecipeError: there is no such perturbation, or probabilities that are none.
    """
    names = list(probabilities)
    drawn = [_drawing(registry.load(FAMILY, name), share, rng, words) for name in names]
    _check("tune.augment", {**probabilities, "together": sum(probabilities.values())})
    edges = np.cumsum([probabilities[name] for name in names])
    found = list(texts)
    for place in range(len(texts)) if which is None else sorted({int(place) for place in which}):
        member = int(np.searchsorted(edges, rng.random(), side="right"))
        if member < len(drawn):
            found[place] = _own(texts[place], drawn[member], prompts)
    return found


def spoiler(shares: Mapping[str, float], seed: int, words: Words | None = None) -> Callable[[str], str]:
    """A function of one text: every named perturbation in turn, with draws from the text's own hash.

    Raises:
        RecipeError: there is no such perturbation, or a share is not from 0 to 1.
    """
    members = {name: registry.load(FAMILY, name) for name in shares}
    _check("eval.robustness", shares)

    def spoilt(text: str) -> str:
        for name, member in members.items():
            text = member.apply(text, shares[name], _rng(seed, name, text), words)
        return text

    return lambda text: _spoken(text, spoilt)


def _rng(seed: int, name: str, text: str) -> np.random.Generator:
    # Python's own hash differs from process to process. A lone surrogate has no UTF-8, but is hashed all the same.
    words = "\0".join((str(seed), name.replace("_", "-"), text)).encode("utf-8", "surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(words, digest_size=16).digest(), "big"))


def _drawing(member: Perturbation, share: float, rng: np.random.Generator, words: Words | None) -> Callable[[str], str]:
    return lambda text: _spoken(text, lambda said: member.apply(said, share, rng, words))


def _spoken(text: str, spoilt: Callable[[str], str]) -> str:
    """The text spoilt; of a conversation, a JSON list of messages, the user's messages."""
    if not text.startswith("[{"):
        return spoilt(text)
    try:
        messages = json.loads(text)
    except ValueError:
        return spoilt(text)
    if not all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages):
        return spoilt(text)
    said = [
        {**message, "content": spoilt(message["content"])} if message.get("role") == "user" else message
        for message in messages
    ]
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _own(text: Text, spoilt: Callable[[str], str], prompts: Sequence[str]) -> Text:
    """A text with all spoilt but the recipe's words before it; of (body, tail) the body."""
    body = text if isinstance(text, str) else text[0]
    # The longest that fits: one prompt may begin with another.
    prompt = max((words for words in prompts if body.startswith(words)), key=len, default="")
    changed = prompt + spoilt(body[len(prompt) :])
    return changed if isinstance(text, str) else (changed, text[1])


def _check(place: str, shares: Mapping[str, float]) -> None:
    wrong = next((name for name, share in shares.items() if not 0 <= share <= 1), None)
    if wrong is not None:
        raise RecipeError(
            problem(f"{place}.{wrong}", f"{shares[wrong]:g}", "a number from 0 to 1", "choose a share between them")
        )
