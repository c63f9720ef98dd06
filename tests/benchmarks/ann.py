"""The index export's search: recall@100 against exact search, milliseconds a query, seconds to build, sizes of files.

    python tests/benchmarks/ann.py --items ../shared/data/online-retail/items.csv --text title   # read by minilm
    python tests/benchmarks/ann.py --number 100000                                             # made-up vectors

Items and queries of a table are its own rows: every tenth is a query and is not in the index. Made-up vectors lie near
2,000 centres in 48 of their dimensions, with noise in all of them, as embeddings of a catalogue do. One thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from recft import registry
from recft.exports import _faiss, _vectors
from recft.run import silent


def main() -> None:
    """Prints one line a dtype and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--text", default="title")
    parser.add_argument("--number", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--kinds", nargs="+", default=["exact", "hnsw"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--recall", type=float, default=0.98)
    given = parser.parse_args()
    if given.items:
        every = read_by_minilm(pl.read_csv(given.items, infer_schema=False)[given.text].fill_null("").to_list())
        tenth = np.arange(len(every)) % 10 == 0
        vectors, queries = every[~tenth], every[tenth][: given.queries]
    else:
        vectors, queries = (
            made_up(size, given.dimension, seed) for seed, size in enumerate((given.number, given.queries))
        )
    print(
        f"{len(vectors):,} items of {vectors.shape[1]} dimensions, {len(queries)} queries, "
        f"faiss {_faiss.faiss().__version__}"
    )
    exact = queries @ vectors.T
    for dtype in given.dtypes:
        for kind in given.kinds:
            print(measured(vectors, queries, exact, dtype, kind, given.recall), flush=True)


def measured(vectors: np.ndarray, queries: np.ndarray, exact: np.ndarray, dtype: str, kind: str, aim: float) -> str:
    """One line of figures; recall is against exact search over the float32 vectors, and over the stored ones."""
    settings = registry.load("recft.exports", "index").Config(kind=kind, threads=1, recall=aim)
    arrays, errors = _vectors.rounded(vectors, dtype)
    stored = _vectors.restored(arrays)
    start = time.perf_counter()
    # Half of the queries stand for training texts, which the effort of search is chosen by; the others are measured.
    texts, queries, exact = queries[::2], queries[1::2], exact[1::2]
    chosen_by = {"items": stored[:: max(1, len(stored) // 256)], "texts": texts}
    built = _faiss.build(stored, _faiss.Plan(dtype=dtype, **settings.model_dump()), chosen_by, silent)
    seconds = time.perf_counter() - start
    of_stored = _faiss.recall(built.index, queries, stored, _faiss.truth(queries, stored))
    with tempfile.TemporaryDirectory() as folder, _faiss.threads(1):
        save_file(arrays, Path(folder) / "vectors")
        _faiss.faiss().write_index(built.index, str(Path(folder) / "index"))
        sizes = [(Path(folder) / name).stat().st_size / 1e6 for name in ("vectors", "index")]
        times = []
        for query in queries:
            start = time.perf_counter()
            items, _ = _faiss.nearest(built.index, query[None], _faiss.DEPTH)
            times.append(time.perf_counter() - start)
    items, _ = _faiss.nearest(built.index, queries, _faiss.DEPTH)
    depth = min(_faiss.DEPTH, len(vectors))
    least = -np.partition(-exact, depth - 1, axis=1)[:, depth - 1 : depth]
    of_float = float((np.take_along_axis(exact, items, axis=1) >= least - 1e-6).mean())
    scale = f", one scale a {min(errors, key=lambda name: errors[name])}" if errors else ""
    effort = next(
        (f" {name}={built.parameters[name]}" for name in ("efSearch", "nprobe") if name in built.parameters), ""
    )
    return (
        f"{dtype:8} {built.parameters['factory']:14}{effort:14} recall@100 {of_stored:.4f} "
        f"(of float32 {of_float:.4f}), "
        f"{1000 * float(np.median(times)):.2f} ms a query, {seconds:.1f} s to build and tune, "
        f"vectors {sizes[0]:.1f} MB, index {sizes[1]:.1f} MB{scale}"
    )


def read_by_minilm(texts: list[str]) -> np.ndarray:
    """The bundled base's vectors, pooled and normalized as recft does."""
    import torch

    from recft.models.base import kind_of, load_base, tokenizer_of
    from recft.models.encoder import encode
    from recft.models.text_model import Serving, TextModel
    from recft.schema import ModelSettings

    settings = ModelSettings(compute_dtype="float32")
    base = load_base(settings, "embedding", torch.device("cpu"), torch.float32).model
    serving = Serving("retrieval", kind_of(base.config), "embedding", "mean", normalize=True, max_tokens=64)
    return encode(TextModel(base, serving).eval(), tokenizer_of(settings), texts)


def made_up(number: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors, (number, dimension) float32."""
    draw, fixed = np.random.default_rng(seed), np.random.default_rng(1234)
    centres, spread = fixed.standard_normal((2000, 48)), fixed.standard_normal((48, dimension))
    inner = centres[draw.integers(0, 2000, number)] + 0.7 * draw.standard_normal((number, 48))
    found = np.tanh(inner @ spread / 7) + 0.15 * draw.standard_normal((number, dimension))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
