"""The README's table of certificates: MiniLM tuned on the demo's shop by each method over each base, and exported.

    python tests/benchmarks/exports.py --out runs/exports

Prints for each export how far it is from the tuned model on held-out rows, beside what the adapter itself changes.
Finished runs are kept, so that the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from recft import Recipe, export, tune
from recft.data.shop import make_shop
from recft.errors import ExportError
from recft.run import read_json, write_json

BASES = ("nf4", "fp4", "int8", "none")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 16},
    "dora": {"name": "lora", "rank": 16, "dora": True},
    "adalora": {"name": "adalora", "rank": 16},
    "prefix": {"name": "prefix", "virtual_tokens": 16},
    "bottleneck": {"name": "bottleneck"},
}
MERGED = [(method, base) for method in ("lora", "dora", "adalora") for base in BASES[:3]]
"""DoRA over int8 cannot be tuned on a CPU: that one is left out."""

OTHERS = [
    ("lora", "none", "adapter", "float32"),
    ("lora", "none", "onnx", "float32"),
    ("lora", "none", "onnx", "int8"),
    ("lora", "none", "sentence-transformers", "float32"),
    ("lora", "none", "index", "float32"),
    ("lora", "none", "index", "float16"),
    ("lora", "none", "index", "int8"),
    ("lora", "nf4", "merged", "nf4"),
    ("prefix", "none", "onnx", "float32"),
    ("prefix", "none", "code", "float32"),
    ("prefix", "none", "distil", "float32"),
    ("bottleneck", "none", "onnx", "float32"),
    ("bottleneck", "none", "code", "float32"),
    ("bottleneck", "none", "distil", "float32"),
]


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/exports"))
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    shop = given.out / "shop"
    if not shop.is_dir():
        shop.mkdir(parents=True)
        make_shop(shop, scale=0.5)
    cells = [(method, base, "merged", dtype) for method, base in MERGED for dtype in ("float32", "bfloat16")]
    cells = [cell for cell in cells if cell[:2] != ("dora", "int8")] + OTHERS
    found = [measured(given.out, shop, given.steps, cell) for cell in cells]
    write_json(given.out / "exports.json", found)
    show(found)


def measured(out: Path, shop: Path, steps: int, cell: tuple[str, str, str, str]) -> dict[str, Any]:
    """The certificate of one export, made where it is missing."""
    method, base, target, dtype = cell
    kept = out / "certificates" / f"{method}-{base}-{target}-{dtype}.json"
    if kept.is_file():
        return dict(read_json(kept))
    run = out / f"{method}-{base}"
    if not (run / "adapter").is_dir():
        tune(recipe(shop, METHODS[method], base, steps), run, force=True)
    folder = out / "export"
    told = [f"export.dtype={dtype}", "export.trust_remote_code=true"]
    for old in (folder, folder.with_name("export.failed")):
        shutil.rmtree(old, ignore_errors=True)
    try:
        made = export(run, target, folder, onto="auto" if base == "none" else "dequantized", overrides=told)
    except ExportError:
        made = read_json(folder.with_name("export.failed") / "recft-export.json")
    size = sum(file.stat().st_size for file in folder.parent.glob("export*/**/*") if file.is_file())
    row = {"method": method, "base": base, "target": target, "dtype": dtype, "bytes": size}
    write_json(kept, row | {"certificate": made["certificate"]})
    return row | {"certificate": made["certificate"]}


def recipe(shop: Path, method: dict[str, Any], base: str, steps: int) -> Recipe:
    """The demo's recipe, shorter."""
    return Recipe.from_mapping(
        {
            "name": "exports",
            "task": {"name": "retrieval", "judged_per_query": 8},
            "data": {
                "items": {
                    "path": "products.jsonl.gz",
                    "id": "id",
                    "text": ["supplier", "product_type", "title"],
                    "title": "title",
                },
                "queries": {"path": "ratings.csv", "query": "query", "item": "docid", "grade": "rating"},
                "split": {"by": "query", "folds": 3, "fold": 0},
            },
            "model": {"base": "minilm", "quantization": base},
            "method": method,
            "tune": {"max_steps": steps, "learning_rate": 2e-3, "max_tokens": 48, "calibration": "none"},
            "eval": {"baselines": []},
        },
        folder=shop,
    )


def show(found: list[dict[str, Any]]) -> None:
    """The table, in Markdown."""
    print(
        "| method | base | target | largest difference | KL / adapter's effect | first 10 | NDCG@10, change | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in found:
        one = row["certificate"]
        low, high = one["metric_interval"] or (0.0, 0.0)
        print(
            f"| {row['method']} | {row['base']} | {row['target']} {row['dtype']} "
            f"| {one['largest_score_difference']:.1e} | {one['kl'] / max(one['k_bit']['effect_kl'], 1e-12):.1e} "
            f"| {one['top_k_agreement']:.4f} | {one['metric_change']:+.4f} [{low:+.4f}, {high:+.4f}] "
            f"| {one['verdict']} |"
        )
    print(json.dumps({"exports": len(found), "passed": sum(r["certificate"]["verdict"] == "passed" for r in found)}))


if __name__ == "__main__":
    main()
