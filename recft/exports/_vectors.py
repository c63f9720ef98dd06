"""Item vectors on disk: float32, float16, or int8 with scales, beside their ids; row = item number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recft.errors import ExportError, problem

if TYPE_CHECKING:
    from recft.models.tokens import Text

__all__ = ["IDS", "VECTORS", "digest", "read_ids", "read_vectors", "restored", "rounded", "steps", "write_ids"]

VECTORS, IDS = "vectors.safetensors", "ids.parquet"
LEVELS = 127


def digest(text: Text) -> str:
    """16 hexadecimal digits that tell a text from others, and do not tell what it says."""
    whole = text if isinstance(text, str) else "\0".join(text)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def rounded(vectors: np.ndarray, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The vectors as they are written, and the mean squared error of each way there was to round them.

    int8 has one scale a vector or one a dimension, whichever errs less: x is about scale * code, code in -127..127.

    Args:
        vectors: (N, D) float32.
        dtype: `float32`, `float16` or `int8`.
    """
    if dtype != "int8":
        return {"vectors": vectors.astype(dtype)}, {}
    ways: dict[str, dict[str, np.ndarray]] = {}
    for name, axis in (("vector", 1), ("dimension", 0)):
        largest = np.abs(vectors).max(axis=axis, keepdims=True)
        scales = (np.where(largest > 0, largest, 1) / LEVELS).astype(np.float32)  # (N, 1) or (1, D)
        ways[name] = {"vectors": np.rint(vectors / scales).astype(np.int8), "scales": scales}
    errors = {name: float(np.square(restored(way) - vectors).mean()) for name, way in ways.items()}
    return ways[min(errors, key=lambda name: errors[name])], errors


def restored(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The vectors that written arrays stand for, (N, D) float32."""
    vectors: np.ndarray = arrays["vectors"].astype(np.float32)
    return vectors * arrays["scales"] if "scales" in arrays else vectors


def steps(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """How far rounding may have moved each number, something that broadcasts to (N, D)."""
    if "scales" in arrays:
        return np.asarray(arrays["scales"] / 2)
    # Half the distance to the next number of the dtype; in float32 that is nothing beside what engines differ by.
    return np.asarray(np.abs(np.spacing(arrays["vectors"])).astype(np.float32) / 2)


def read_vectors(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `vectors.safetensors`, as written.

    Raises:
        ExportError: the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(folder / VECTORS))
    except (OSError, SafetensorError, KeyError) as error:
        raise _unreadable(folder / VECTORS, error) from error


def write_ids(folder: Path, ids: Sequence[str], texts: Sequence[Text]) -> None:
    """Writes `ids.parquet`: an item's id and a digest of what the tower has read of it."""
    frame = {"id": list(ids), "text_digest": [digest(text) for text in texts]}
    pl.DataFrame(frame, schema={"id": pl.String, "text_digest": pl.String}).write_parquet(folder / IDS)


def read_ids(folder: Path) -> pl.DataFrame:
    """The reverse of `write_ids`.

    Raises:
        ExportError: the file cannot be read.
    """
    try:
        return pl.read_parquet(folder / IDS, columns=["id", "text_digest"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(folder / IDS, error) from error


def _unreadable(path: Path, error: Any) -> ExportError:
    return ExportError(
        problem(str(path), f"cannot be read ({error})", "an export is as recft wrote it", "export again")
    )
