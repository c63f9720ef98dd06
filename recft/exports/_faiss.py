"""Nearest neighbours through faiss: the exact answer, an index that comes near enough to it, and how near it comes.

Of `kind` exact every vector is looked at. hnsw follows a graph of neighbours (Malkov and Yashunin 2018), ivf looks
into the nearest of many lists; how much they look at is doubled until the measured recall reaches its aim. faiss draws
from generators of fixed seed, and one thread builds the same index again, byte for byte; several insert items into a
graph in whatever order they come.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recft.errors import ExportError, problem
from recft.exports._engine import unreadable
from recft.run import Listener

__all__ = ["DEPTH", "INDEX", "Built", "Plan", "build", "faiss", "nearest", "read", "recall", "threads", "truth"]

INDEX = "index.faiss"
DEPTH = 100
"""Recall is of the first so many."""

EXACT_BELOW, IVF_ABOVE = 2_000, 1_000_000
STORAGES = {"float32": ("Flat",), "float16": ("SQfp16", "Flat"), "int8": ("SQ8", "SQfp16", "Flat")}
"""How the index holds vectors, by their dtype. faiss's eight bits are not ours: where both roundings together cost too
much, the index holds more."""

EFFORT = {"hnsw": "efSearch", "ivf": "nprobe"}
LEAST_EFFORT, MOST_EFFORT = 128, 8_192
"""Of a graph: faiss looks at no less than it is asked for, and looking at more is no faster than exact search."""

ADDED, SPARE, SAME = 20_000, 16, 1e-6


@dataclass(frozen=True)
class Plan:
    """What is to be built; see the settings of the target `index`."""

    kind: str
    dtype: str
    neighbours: int
    build_effort: int
    recall: float
    threads: int | None


@dataclass(frozen=True)
class Built:
    """An index that reaches its aim, and what it took."""

    index: Any
    parameters: dict[str, Any]
    recall: dict[str, float]


def faiss() -> Any:
    """The library; its types are not worth their noise."""
    with warnings.catch_warnings():
        # What swig makes says so from Python 3.12 on, once, when it is imported.
        warnings.filterwarnings("ignore", message="builtin type .* has no __module__", category=DeprecationWarning)
        return importlib.import_module("faiss")


def read(folder: Path) -> Any:
    """The index of a folder.

    Raises:
        ExportError: faiss cannot read it.
    """
    try:
        return faiss().read_index(str(folder / INDEX))
    except RuntimeError as error:
        raise unreadable(folder / INDEX, error) from error


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Within it faiss uses so many threads; its own number where None."""
    library = faiss()
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(number or before)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


def nearest(index: Any, vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Item numbers and scores of the nearest items, best first, (B, depth) each; equal scores by item number.

    -1 and -inf stand where there is no further item.
    """
    wanted = min(
        depth + SPARE, index.ntotal
    )  # items of equal text share a score, and the lowest number is to come first
    scores, items = index.search(np.ascontiguousarray(vectors, np.float32), wanted)
    scores = np.where(items < 0, -np.inf, scores)
    order = np.lexsort((items, -scores), axis=-1)[:, :depth]
    found, best = np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)
    short = ((0, 0), (0, depth - found.shape[1]))
    return np.pad(found, short, constant_values=-1), np.pad(best, short, constant_values=-np.inf)


def truth(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The lowest score of each query's exact first `DEPTH` among `vectors`, (Q,)."""
    library = faiss()
    scores, _ = library.knn(queries, vectors, min(DEPTH, len(vectors)), metric=library.METRIC_INNER_PRODUCT)
    return np.asarray(scores[:, -1])


def recall(index: Any, queries: np.ndarray, vectors: np.ndarray, lowest: np.ndarray) -> float:
    """The share of the exact first `DEPTH` that the index finds; items of equal scores may stand for each other.

    Args:
        index: faiss's.
        queries: (Q, D) float32.
        vectors: (N, D) float32, those of the index.
        lowest: what `truth` gave for them.
    """
    depth = min(DEPTH, len(vectors))
    items, _ = nearest(index, queries, depth)
    hits = 0
    for query, row, least in zip(queries, items, lowest, strict=True):
        scores = vectors[row[row >= 0]] @ query
        hits += int((scores >= least - SAME * max(1.0, abs(float(least)))).sum())
    return hits / (depth * len(queries))


def build(vectors: np.ndarray, plan: Plan, queries: Mapping[str, np.ndarray], listen: Listener) -> Built:
    """An index whose recall reaches the plan's aim for every kind of query.

    Args:
        vectors: (N, D) float32.
        plan: what is wanted; `auto` falls back to exact search.
        queries: by kind, (Q, D) float32.
        listen: hears of stages and progress.

    Raises:
        ExportError: a kind that was asked for does not reach it.
    """
    number = len(vectors)
    sized = "exact" if number < EXACT_BELOW else "hnsw" if number <= IVF_ABOVE else "ivf"
    kinds = tuple(dict.fromkeys((sized, "exact"))) if plan.kind == "auto" else (plan.kind,)
    lowest = {name: truth(part, vectors) for name, part in queries.items()}
    reached = {}
    for kind in kinds:
        for storage in STORAGES[plan.dtype]:
            with threads(plan.threads):
                index, parameters = _empty(kind, storage, vectors, plan)
                _fill(index, vectors, listen)
            parameters["threads"] = plan.threads
            for effort in _efforts(kind, index, number):
                if effort is not None:
                    faiss().ParameterSpace().set_index_parameter(index, EFFORT[kind], effort)
                    parameters[EFFORT[kind]] = effort
                reached = {name: recall(index, part, vectors, lowest[name]) for name, part in queries.items()}
                if min(reached.values()) >= plan.recall:
                    return Built(index, parameters, reached)
    raise ExportError(
        problem(
            "export.targets.index",
            f"recall@{DEPTH} of kind {plan.kind} is {min(reached.values()):.4f}",
            f"recall: {plan.recall}",
            "set kind: exact, more neighbours, or a lower recall",
        )
    )


def _empty(kind: str, storage: str, vectors: np.ndarray, plan: Plan) -> tuple[Any, dict[str, Any]]:
    """A trained index without items, and its parameters."""
    library = faiss()
    parameters: dict[str, Any] = {"kind": kind, "factory": storage}
    if kind == "hnsw":
        parameters |= {"factory": f"HNSW{plan.neighbours},{storage}", "efConstruction": plan.build_effort}
    elif kind == "ivf":
        # As many lists as faiss's k-means has 39 vectors for, and a search of one list costs as much as choosing it.
        parameters["factory"] = f"IVF{max(1, min(int(4 * math.sqrt(len(vectors))), len(vectors) // 39))},{storage}"
    index = library.index_factory(vectors.shape[1], parameters["factory"], library.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = plan.build_effort
    index.train(vectors)
    return index, parameters


def _fill(index: Any, vectors: np.ndarray, listen: Listener) -> None:
    for start in range(0, len(vectors), ADDED):
        index.add(vectors[start : start + ADDED])
        done = min(start + ADDED, len(vectors))
        listen("progress", {"name": "building the index", "done": done, "total": len(vectors), "unit": "items"})


def _efforts(kind: str, index: Any, number: int) -> Iterator[int | None]:
    """How much to look at, doubled each time, up to all there is; None where everything is looked at anyway."""
    if kind == "exact":
        yield None
        return
    most = index.nlist if kind == "ivf" else min(number, MOST_EFFORT)
    effort = 1 if kind == "ivf" else LEAST_EFFORT
    while effort < most:
        yield effort
        effort *= 2
    yield most
