"""Token ids that were worked out before, by the hash of all that decides them: tokenizer, cutting rule, texts.

A catalogue is tokenized again by every prepare, tune and eval; here the second time costs a read. One file an entry
under `~/.cache/recft/tokens`, flat numbers and offsets, written whole or not at all; it carries a hash of its own
content, and one that is damaged is made again. The folder may be deleted at any time. Tokenizers are fast ones
(`models.base.tokenizer_of` takes no others), which use all cores by themselves: there is nothing left to divide.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.models.tokens import Text, Tokens
from recft.run import atomic_file, bound_cache, cache_folder, hash_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FEWEST", "lengths", "remembered"]

FEWEST = 4000
"""Fewer texts are tokenized faster than they are looked up and kept."""

MOST_FILE_BYTES = 1 << 28
MOST_BYTES = 1 << 30
_BATCH_TEXTS = 10_000

Arrays = dict[str, np.ndarray]

_identities: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def remembered(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    rule: Mapping[str, Any],
    make: Callable[[Sequence[Text]], list[Tokens]],
) -> list[Tokens]:
    """The token ids of each text as `make` gives them, from the cache where it has them.

    Args:
        tokenizer: what `make` tokenizes with.
        texts: texts or pairs; fewer than `FEWEST` are always made.
        rule: all else that decides what `make` gives, such as the most tokens; plain JSON.
        make: gives a mapping for each text, all with the same names, each a list of whole numbers that fit 32 bits.
    """
    if len(texts) < FEWEST:
        return make(texts)
    made: list[list[Tokens]] = []

    def arrays() -> Arrays:
        made.append(make(texts))
        return _flat(made[0])

    held = _held(_key(tokenizer, "tokens", rule, texts), arrays, len(texts))
    return made[0] if made else _rows(held)


def lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text, uncut, special tokens included."""
    if len(texts) < FEWEST:
        return _counted(tokenizer, texts)
    key = _key(tokenizer, "lengths", {}, texts)
    held = _held(key, lambda: {"lengths": np.array(_counted(tokenizer, texts), np.int32)}, len(texts))
    found: list[int] = held["lengths"].tolist()
    return found


def _counted(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []
    # What an earlier call has set there would cut and pad; every call through transformers sets it anew.
    backend.no_truncation()
    backend.no_padding()
    parts = (list(texts[start : start + _BATCH_TEXTS]) for start in range(0, len(texts), _BATCH_TEXTS))
    return [len(encoding) for part in parts for encoding in backend.encode_batch_fast(part)]


def _key(tokenizer: PreTrainedTokenizerBase, kind: str, rule: Mapping[str, Any], texts: Sequence[Text]) -> str:
    """The hash of all that decides the numbers."""
    hashed = hashlib.sha256(json.dumps([kind, rule, _code(), _identity(tokenizer)], sort_keys=True).encode())
    for part in _pieces(texts):
        hashed.update(part)
    return hashed.hexdigest()[:40]


def _pieces(texts: Sequence[Text]) -> Iterator[bytes]:
    """The texts as bytes from which they could be read back: no two lists give the same."""
    for start in range(0, len(texts), _BATCH_TEXTS):
        part = [text if isinstance(text, str) else list(text) for text in texts[start : start + _BATCH_TEXTS]]
        yield json.dumps(part).encode() + b"\n"


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of a tokenizer's vocabulary, rules and settings; worked out once for each tokenizer."""
    known = _identities.get(tokenizer)
    if known is not None:
        return known
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else dict(tokenizer.get_vocab())
    # How the last call cut and padded is no part of the tokenizer.
    state.pop("truncation", None)
    state.pop("padding", None)
    named = {
        name: repr(getattr(tokenizer, name, None))
        for name in (
            "special_tokens_map", "chat_template", "padding_side", "truncation_side", "model_max_length",
            "model_input_names", "split_special_tokens", "add_bos_token", "add_eos_token",
        )
    }  # fmt: skip
    told = json.dumps([type(tokenizer).__name__, named, state], sort_keys=True)
    _identities[tokenizer] = found = hashlib.sha256(told.encode()).hexdigest()
    return found


@functools.cache
def _code() -> list[str]:
    """What else decides how texts become tokens: our own rules, and the libraries'."""
    versions = [importlib.metadata.version(name) for name in ("tokenizers", "transformers")]
    return [hash_file(Path(__file__).with_name("tokens.py")), hash_file(Path(__file__)), *versions]


def _flat(tokens: Sequence[Tokens]) -> Arrays:
    """Every name's numbers end to end, and where each text's begin."""
    arrays: Arrays = {}
    for name in tokens[0]:
        offsets = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(row[name]) for row in tokens], out=offsets[1:])
        arrays[name] = np.fromiter((number for row in tokens for number in row[name]), np.int32, int(offsets[-1]))
        arrays[f"{name}.offsets"] = offsets
    return arrays


def _rows(arrays: Arrays) -> list[Tokens]:
    """The reverse of `_flat`."""
    columns: dict[str, list[list[int]]] = {}
    for name, numbers in arrays.items():
        if not name.endswith(".offsets"):
            flat, bounds = numbers.tolist(), arrays[f"{name}.offsets"].tolist()
            columns[name] = [flat[start:stop] for start, stop in pairwise(bounds)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _held(key: str, make: Callable[[], Arrays], n_texts: int) -> Arrays:
    """The arrays under a key, from the cache where they are there and whole."""
    path = cache_folder("tokens") / f"{key}.safetensors"
    found = _read(path, n_texts)
    if found is not None:
        return found
    made = make()
    if sum(array.nbytes for array in made.values()) <= MOST_FILE_BYTES:
        try:
            _write(path, made)
            bound_cache(path.parent, MOST_BYTES)
        except OSError:
            pass  # a cache that cannot be written costs time, nothing else
    return made


def _read(path: Path, n_texts: int) -> Arrays | None:
    """A file's arrays; None where there is none, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(path.read_bytes())
        told = arrays.pop("digest")
        if told.tobytes() != _digest(arrays) or not arrays:
            return None
        os.utime(path)
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    sizes = {len(array) - name.endswith(".offsets") for name, array in arrays.items() if _a_text_each(name, arrays)}
    return arrays if sizes == {n_texts} else None


def _a_text_each(name: str, arrays: Arrays) -> bool:
    """Whether an array has a place for each text."""
    return name.endswith(".offsets") or f"{name}.offsets" not in arrays


def _write(path: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save

    with atomic_file(path) as draft:
        draft.write_bytes(save(arrays | {"digest": np.frombuffer(_digest(arrays), np.uint8)}))


def _digest(arrays: Arrays) -> bytes:
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        hashed.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        hashed.update(np.ascontiguousarray(arrays[name]).data)
    return hashed.digest()
