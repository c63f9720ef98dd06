"""Vectors of item texts, kept between runs: what a model has read once is not read again.

A folder a model, named by a hash of all that decides its numbers; in it one safetensors file for each time that new
texts were read: `texts`, (n, 2) uint64, the first 128 bits of each text's hash, ascending, and `vectors`, (n, D)
float32. A file's name is the hash of its bytes, and what does not fit its name counts as not there. The cache may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recft.models.tokens import Text
from recft.run import atomic_file, bound_cache, cache_folder

__all__ = ["known_vectors"]

MOST_BYTES = 4 << 30
"""All files together; those that were read longest ago go first."""


def known_vectors(model: str, texts: Sequence[Text], encode: Callable[[Sequence[Text]], np.ndarray]) -> np.ndarray:
    """The vector of each text, (N, D) float32: from the cache where it is known, else from `encode`, and then kept.

    Args:
        model: a hash of all that decides the vectors besides the text.
        texts: equal ones are read once.
        encode: texts -> vectors.
    """
    folder = cache_folder("vectors") / model[:40]
    different = list(dict.fromkeys(texts))
    hashes = _hashes(different)
    found, known = _read(folder, hashes)
    new = np.flatnonzero(~known)
    if len(new):
        vectors = np.asarray(encode([different[place] for place in new]), np.float32)
        _keep(folder, hashes[new], vectors)
        found = found if known.any() else np.empty((len(different), vectors.shape[1]), np.float32)
        found[new] = vectors
    if len(different) == len(texts):
        return found
    place = {text: row for row, text in enumerate(different)}
    return found[[place[text] for text in texts]]


def _hashes(texts: Sequence[Text]) -> np.ndarray:
    """The first 128 bits of each text's hash, (N, 2) uint64."""
    digests = (hashlib.blake2b(json.dumps(text).encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def _read(folder: Path, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors that are known, (N, D), and which these are, (N,)."""
    found, known = np.zeros((len(hashes), 0), np.float32), np.zeros(len(hashes), bool)
    for path in sorted(folder.glob("[!.]*.safetensors")):
        part = _whole(path)
        if part is None:
            continue
        held, vectors = part
        at = np.minimum(np.searchsorted(held[:, 0], hashes[:, 0]), len(held) - 1)
        here = (held[at] == hashes).all(axis=1) & ~known
        if not found.shape[1]:
            found = np.zeros((len(hashes), vectors.shape[1]), np.float32)
        if here.any() and vectors.shape[1] == found.shape[1]:
            found[here], known = vectors[at[here]], known | here
            with contextlib.suppress(OSError):
                os.utime(path)
    return found, known


def _whole(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """A file's hashes and vectors; None where it is damaged, or is gone by now."""
    try:
        data = path.read_bytes()
        if _name(data) != path.stem:
            return None
        held = load(data)
    except (OSError, SafetensorError):
        return None
    return held["texts"], held["vectors"]


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]


def _keep(folder: Path, hashes: np.ndarray, vectors: np.ndarray) -> None:
    """Writes new vectors; a cache that cannot be written costs time, nothing else."""
    order = np.argsort(hashes[:, 0], kind="stable")
    if vectors.nbytes > MOST_BYTES // 2:
        return
    data = save({"texts": np.ascontiguousarray(hashes[order]), "vectors": np.ascontiguousarray(vectors[order])})
    with contextlib.suppress(OSError):
        with atomic_file(folder / f"{_name(data)}.safetensors") as draft:
            draft.write_bytes(data)
        bound_cache(folder.parent, MOST_BYTES)
