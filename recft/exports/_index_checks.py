"""What is checked of an exported index: that its files belong together, and what its certificate tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from recft.errors import ExportError, problem
from recft.exports import _faiss, _vectors
from recft.exports._certificate import agreement, near
from recft.exports._engine import unreadable
from recft.run import hash_file, read_json
from recft.schema import Tolerances

if TYPE_CHECKING:
    from recft.exports._base import Engine, Opening
    from recft.exports._rows import Rows
    from recft.models.tokens import Text

__all__ = ["DESCRIBED", "measured", "read_description", "refuse_changed", "refuse_unequal"]

DESCRIBED, ITEMS = "index.json", "items.parquet"
"""The artefact's own description, and the catalogue that the verb puts beside it."""

CLOSE = 1e-4
"""How far two engines' float32 may be from each other, in one number of a vector."""

TIMED, READ_AGAIN = 32, 256


def read_description(folder: Path) -> dict[str, Any]:
    """What `index.json` says.

    Raises:
        ExportError: it is not what recft writes there.
    """
    described = read_json(folder / DESCRIBED)
    needed = {"number", "dimension", "dtype", "model", "tower", "recall", "files"}
    if not isinstance(described, dict) or not needed <= described.keys():
        place, rule = str(folder / DESCRIBED), f"an object with {', '.join(sorted(needed))}"
        raise ExportError(problem(place, "does not describe an index", rule, "export again"))
    return described


def refuse_changed(folder: Path, described: Mapping[str, Any]) -> None:
    """Nothing, where vectors, ids and index are those that `index.json` speaks of.

    Raises:
        ExportError: a byte has changed, or a file is missing.
    """
    for name, expected in described["files"].items():
        found = hash_file(folder / name) if (folder / name).is_file() else ""
        if found != expected:
            raise ExportError(
                problem(
                    str(folder / name),
                    f"has changed: SHA-256 {found[:12]}" if found else "is missing",
                    f"SHA-256 {expected[:12]}, as index.json says",
                    "export again",
                )
            )


def refuse_unequal(folder: Path, described: Mapping[str, Any], index: Any) -> None:
    """Nothing, where vectors, ids, index and the catalogue beside them are of the same items in the same order.

    Raises:
        ExportError: they are not.
    """
    ids = _vectors.read_ids(folder)["id"]
    try:
        with safe_open(folder / _vectors.VECTORS, framework="numpy") as file:
            shape = tuple(file.get_slice("vectors").get_shape())
    except (OSError, SafetensorError) as error:
        raise unreadable(folder / _vectors.VECTORS, error) from error
    whole = described["number"], described["dimension"]
    inner = _faiss.faiss().METRIC_INNER_PRODUCT
    checks: list[tuple[str, object, object]] = [
        (_vectors.VECTORS, shape, whole),
        (_faiss.INDEX, (index.ntotal, index.d), whole),
        (f"metric of {_faiss.INDEX}", index.metric_type, inner),
        (_vectors.IDS, len(ids), whole[0]),
    ]
    if (folder / ITEMS).is_file():
        checks.append(
            (f"{ITEMS} has the ids of {_vectors.IDS}", ids.equals(pl.read_parquet(folder / ITEMS)["id"]), True)
        )
    for name, found, rule in checks:
        if found != rule:
            value = f"{name}: {found}, not {rule}"
            rule = "vectors, ids and index are of the same items, row = item number"
            raise ExportError(problem(str(folder), value, rule, "export again"))


def measured(
    folder: Path, described: Mapping[str, Any], tower: Engine, how: Opening, index: Any, rows: Rows
) -> tuple[dict[str, Any], list[str]]:
    """What a certificate tells of an index beside its tower, and what is wrong with it."""

    def encode(texts: Sequence[Text]) -> np.ndarray:
        return tower.encode(how.serving.cut(tower.tokenizer, texts))

    arrays = _vectors.read_vectors(folder)
    vectors = _vectors.restored(arrays)
    queries = encode(rows.contexts)
    found = _faiss.recall(index, queries, vectors, _faiss.truth(queries, vectors))
    figures = {"recall@100": found, "recall_queries": len(queries), **_latency(encode, rows.contexts, queries, index)}
    floor, wrong = how.tolerances.recall, []
    if not found >= floor:
        wrong.append(f"recall@100 against exact search is {found:.4f} (export.tolerances.recall: {floor})")
    digests = _vectors.read_ids(folder)["text_digest"].to_list()
    of_items, words = _items(digests, arrays, vectors, encode, rows, described["dtype"], how.tolerances)
    return figures | of_items, wrong + words


def _latency(
    encode: Callable[[Sequence[Text]], np.ndarray], texts: Sequence[Text], vectors: np.ndarray, index: Any
) -> dict[str, float]:
    """Milliseconds a query takes alone, median: the search, and the tower with it."""
    search, whole = [], []
    for text, vector in zip(texts[:TIMED], vectors[:TIMED], strict=True):
        start = time.perf_counter()
        _faiss.nearest(index, vector[None], _faiss.DEPTH)
        found = time.perf_counter()
        encode([text])
        search.append(found - start)
        whole.append(time.perf_counter() - start)
    if not search:
        return {}
    return {"search_ms": 1000 * float(np.median(search)), "query_ms": 1000 * float(np.median(whole))}


def _items(
    digests: Sequence[str],
    arrays: dict[str, np.ndarray],
    vectors: np.ndarray,
    encode: Callable[[Sequence[Text]], np.ndarray],
    rows: Rows,
    dtype: str,
    tolerances: Tolerances,
) -> tuple[dict[str, Any], list[str]]:
    """How far the stored vectors of the rows' items are from the tower's and from the reference's."""
    place = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    wanted = [_vectors.digest(text) for text in rows.items]
    found = [place.get(digest, -1) for digest in wanted]
    if len(rows.item_numbers) == len(rows.items):  # rows of a catalogue say where each item stands in it
        numbered = zip(rows.item_numbers.tolist(), wanted, strict=True)
        found = [row if row < len(digests) and digests[row] == digest else -1 for row, digest in numbered]
    if -1 in found:
        unknown = rows.items[found.index(-1)]
        return {}, [
            f"{found.count(-1)} of the rows' items stand in the index as no such text, the first {unknown!r:.80}"
        ]
    if not found:
        return {}, []
    numbers = np.array(found)
    stored = vectors[numbers]
    some = np.linspace(0, len(numbers) - 1, min(READ_AGAIN, len(numbers))).astype(int)
    again = encode([rows.items[row] for row in some])
    over = np.abs(stored[some] - again) - np.broadcast_to(_vectors.steps(arrays), vectors.shape)[numbers[some]]
    expected = rows.context_outputs @ rows.item_outputs.T
    scores = rows.context_outputs @ stored.T
    agree = agreement(list(expected), list(scores), near(list(expected), dtype))
    figures = {
        "largest_vector_difference": float(np.abs(stored[some] - again).max()),
        "largest_stored_score_difference": float(np.abs(expected - scores).max(initial=0)),
        "stored_top_k_agreement": agree,
    }
    wrong, floor = [], tolerances.top_k_agreement
    if not over.max() <= CLOSE:
        wrong.append(f"stored vectors are {float(over.max()):.2e} from the tower's, beyond rounding: a stale index")
    if agree is not None and not agree >= floor:
        wrong.append(
            f"by stored vectors the first 10 agree in {agree:.2%} (export.tolerances.top_k_agreement: {floor:g})"
        )
    return figures, wrong
