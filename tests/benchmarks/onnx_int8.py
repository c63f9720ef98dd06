"""The README's table of int8 in ONNX Runtime: `onnx` in int8 beside what onnxruntime's tools make of the same graph.

    python tests/benchmarks/onnx_int8.py --data ../shared/data --out runs/onnx-int8

MiniLM, untuned, is exported in float32 and in int8 as `recft export` writes it; `quantize_dynamic` and `MatMulNBits`
quantize the float32 graph's matrix products. All four read the same batches in sessions of one thread. Online Retail's
histories of ten titles rank its titles, Chorus' queries rank products; the reference is the model itself in torch.

The first ten are compared as the certificate of an int8 export compares them, and by its ruler for float32, which lets
only scores within 1e-6 change places. Times are CPU times of the process: medians of alternating runs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import json
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from recft import registry
from recft.exports._base import Source
from recft.exports._certificate import agreement, compare, near
from recft.exports._engine import batched, tokens
from recft.models.base import kind_of, load_base, tokenizer_of
from recft.models.encoder import encode
from recft.models.text_model import Serving, TextModel
from recft.run import write_json
from recft.schema import ModelSettings

MAX_TOKENS = 128
BATCH = 32
TITLES = {
    "float32": "float32",
    "int8": "**`onnx` with `export.dtype: int8`**",
    "quantize_dynamic": "onnxruntime's `quantize_dynamic`, per channel",
    "MatMulNBits": "its `MatMulNBits`, 8 bits, blocks of 32",
}
RANKED = {"online_retail": ("histories", "titles"), "chorus": ("queries", "products")}
"""What is ranked by what."""


def main() -> None:
    """Writes the graphs, measures them, prints the table and writes `onnx-int8.json`."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RECFT_DATA") or beside))
    parser.add_argument("--out", type=Path, default=Path("runs/onnx-int8"))
    parser.add_argument("--histories", type=int, default=500)
    parser.add_argument("--products", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each graph")
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's tools have turned on everyone's INFO
    texts = online_retail(given.data / "online-retail", given.histories) | chorus(given.data / "chorus", given.products)
    model, source = untuned()
    started = time.process_time()
    files = ours(source, given.out) | theirs(given.out)
    reference = {name: encode(model, source.tokenizer, rows) for name, rows in texts.items()}
    say(f"graphs and reference made, {time.process_time() - started:.0f} s of CPU")
    found = {}
    for name, file in files.items():
        read = reader(file, source)
        vectors = {role: read(rows) for role, rows in texts.items()}
        far = {data: apart(reference, vectors, *roles) for data, roles in RANKED.items()}
        found[name] = {"bytes": file.stat().st_size, **far}
        say(f"{name} measured, {time.process_time() - started:.0f} s of CPU")
    for name, seconds in timed(files, source, workloads(texts), given.runs).items():
        found[name]["cpu_seconds"] = seconds
    sizes = {role: len(rows) for role, rows in texts.items()}
    machine = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__, "cpu": processor()}
    write_json(given.out / "onnx-int8.json", {"texts": sizes, **machine, "graphs": found})
    show(sizes, found)
    say(f"{time.process_time() - started:.0f} s of CPU in all")


def online_retail(folder: Path, most: int) -> dict[str, list[str]]:
    """The titles, and histories: of each customer the ten purchases before the last."""
    items = pl.read_csv(folder / "items.csv", infer_schema=False).filter(pl.col("title").is_not_null())
    log = pl.read_csv(folder / "interactions.csv.gz", infer_schema=False).with_columns(pl.col("ts").cast(pl.Int64))
    log = log.join(items.select("StockCode", "title"), on="StockCode", maintain_order="left")
    bought = log.sort("ts", maintain_order=True).group_by("CustomerID", maintain_order=True).agg("title")
    long = bought.filter(pl.col("title").list.len() > 10)["title"].head(most).to_list()
    return {"histories": ["; ".join(row[-11:-1]) for row in long], "titles": items["title"].to_list()}


def chorus(folder: Path, most: int) -> dict[str, list[str]]:
    """The rated queries, and products drawn by a seed."""
    with gzip.open(folder / "products_compact.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    products = [", ".join(str(row[k]) for k in ("supplier", "product_type", "title") if row.get(k)) for row in rows]
    with (folder / "Broad_Query_Set_rated.csv").open(encoding="utf-8", newline="") as lines:
        queries = sorted({row["query"] for row in csv.DictReader(lines)})
    return {"queries": queries, "products": random.Random(0).sample(products, min(most, len(products)))}


def untuned() -> tuple[TextModel, Source]:
    """The bundled base as a retrieval model, and what the target is handed of it."""
    settings = ModelSettings(base="minilm", compute_dtype="float32")
    base = load_base(settings, "embedding", torch.device("cpu"), torch.float32).model
    serving = Serving("retrieval", kind_of(base.config), "embedding", "mean", normalize=True, max_tokens=MAX_TOKENS)
    model = TextModel(base, serving).eval()
    source = Source(
        name="minilm",
        serving=serving,
        tokenizer=tokenizer_of(settings),
        tuned=lambda: model,
        merge=None,
        adapter_config={},
        adapter_tensors={},
        plain_lora=None,
        model=settings,
    )
    return model, source


def ours(source: Source, out: Path) -> dict[str, Path]:
    """The graphs that the target `onnx` writes."""
    files = {}
    for dtype in ("float32", "int8"):
        folder = out / dtype
        folder.mkdir(parents=True, exist_ok=True)
        registry.load("recft.exports", "onnx").write(dataclasses.replace(source, dtype=dtype), folder)
        files[dtype] = folder / "model.onnx"
    return files


def theirs(out: Path) -> dict[str, Path]:
    """What onnxruntime's tools make of the float32 graph."""
    plain = out / "float32" / "model.onnx"
    files = {name: out / f"{name}.onnx" for name in ("quantize_dynamic", "MatMulNBits")}
    only_weights = {"MatMulConstBOnly": True}
    quantize_dynamic(
        plain, files["quantize_dynamic"], op_types_to_quantize=["MatMul"], per_channel=True, extra_options=only_weights
    )
    tool = MatMulNBitsQuantizer(onnx.load(plain), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    tool.process()
    onnx.save(tool.model.model, files["MatMulNBits"])
    return files


def session(file: Path) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def batch_of(source: Source, texts: Sequence[Any]) -> dict[str, np.ndarray]:
    """Inputs of a graph, padded and cut as an export's engine does it."""
    batch = tokens(source.tokenizer, texts, source.serving, "np")
    return {name: np.asarray(value, "int64") for name, value in batch.items()}


def reader(file: Path, source: Source) -> Callable[[Sequence[Any]], np.ndarray]:
    """texts -> vectors by the graph."""
    graph = session(file)

    def compute(texts: list[Any]) -> np.ndarray:
        return np.asarray(graph.run(["outputs"], batch_of(source, texts))[0])

    return batched(compute, BATCH)


def apart(reference: dict[str, np.ndarray], vectors: dict[str, np.ndarray], of: str, among: str) -> dict[str, Any]:
    """How far a graph's scores of `of` for `among` are from the reference's."""
    scores, found = (side[of] @ side[among].T for side in (reference, vectors))
    rows = list(scores)
    return {
        "first_10": agreement(rows, list(found), near(rows, "int8")),
        "first_10_strictly": agreement(rows, list(found), near(rows, "float32")),
        "largest_difference": compare(scores, found, 1.0)["largest_score_difference"],
    }


def workloads(texts: dict[str, list[str]]) -> dict[str, list[list[str]]]:
    """Batches to time: a few histories and titles of like lengths, and histories one at a time."""
    histories, titles = (sorted(texts[role][:most], key=len) for role, most in (("histories", 96), ("titles", 256)))
    return {
        "histories": [histories[start : start + BATCH] for start in range(0, len(histories), BATCH)],
        "titles": [titles[start : start + BATCH] for start in range(0, len(titles), BATCH)],
        "one_text": [[text] for text in histories[::4]],
    }


def timed(
    files: dict[str, Path], source: Source, work: dict[str, list[list[str]]], runs: int
) -> dict[str, dict[str, float]]:
    """CPU seconds of each graph for each workload; tokenizing is not in them, nor a first run."""
    graphs = {name: session(file) for name, file in files.items()}
    inputs = {kind: [batch_of(source, batch) for batch in batches] for kind, batches in work.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in inputs} for name in graphs}
    for run in range(runs + 1):
        for kind, batches in inputs.items():
            for name, graph in graphs.items():
                started = time.process_time()
                for batch in batches:
                    graph.run(["outputs"], batch)
                if run:
                    seconds[name][kind].append(time.process_time() - started)
    return {name: {kind: statistics.median(taken) for kind, taken in of.items()} for name, of in seconds.items()}


def processor() -> str:
    """The CPU's name and how it multiplies bytes, where the system tells."""
    told = Path("/proc/cpuinfo")
    words = told.read_text(encoding="utf-8") if told.is_file() else ""
    name = next((line.split(": ")[-1] for line in words.splitlines() if line.startswith("model name")), "unknown")
    return " ".join([name, *sorted({"avx512_vnni", "avx_vnni", "amx_int8"} & set(words.split()))])


def show(sizes: dict[str, int], found: dict[str, Any]) -> None:
    """The table, in Markdown; pairs of figures are Online Retail's and Chorus'."""
    print(", ".join(f"{number:,} {role}" for role, number in sizes.items()))
    print("\n| | first 10 | strictly | largest difference | file | times as fast: histories, titles, one text |")
    print("|---|---|---|---|---|---|")
    plain = found["float32"]["cpu_seconds"]
    for name, row in found.items():
        figures = [
            ", ".join(f"{row[data][key]:{form}}" for data in RANKED)
            for key, form in (("first_10", ".4f"), ("first_10_strictly", ".4f"), ("largest_difference", ".1e"))
        ]
        faster = ", ".join(f"{plain[kind] / taken:.2f}" for kind, taken in row["cpu_seconds"].items())
        print(f"| {TITLES[name]} | {' | '.join(figures)} | {row['bytes'] / 1e6:.0f} MB | {faster} |")


def say(line: str) -> None:
    """How far the command is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
