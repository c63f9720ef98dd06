"""The README's Chorus table: every method over five folds and three seeds, pooled over all 116 queries.

    python tests/benchmarks/chorus.py --out runs/chorus               # the table
    python tests/benchmarks/chorus.py --out runs/chorus --fused       # bi-encoder, cross-encoder and BM25 as one sum
    python tests/benchmarks/chorus.py --out runs/search --search tune.learning_rate=1e-3,3e-3 --recipes chorus-prefix

The last lines set every row beside the untuned base on the protocol's own product text, `supplier, product_type,
title`. Much of what a tuned row gains over it is the longer text, so the table's own `(base)` rows are the ones to
compare with.

A search trains on part of the training queries of two folds and scores the rest of them; test queries are not read.
Finished runs are kept, so that the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from recft import Recipe, compare, evaluate, prepare, tune
from recft.metrics._intervals import paired
from recft.models.base import device_of, tokenizer_of
from recft.models.encoder import Encoder
from recft.run import RunFolder, read_json
from recft.training import assemble
from recft.training.opened import exam_of
from recft.training.scoring import score_model
from recft.training.servings import servings_of

RECIPES = Path(__file__).parents[2] / "recipes"
TABLE = ("chorus-lora", "chorus-lora-nf4", "chorus-adalora", "chorus-prefix", "chorus-bottleneck")


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/chorus"))
    parser.add_argument("--recipes", nargs="+", default=list(TABLE))
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--search", nargs="+", default=[], metavar="KEY=A,B", help="inner search over these settings")
    parser.add_argument("--fused", action="store_true", help="the weighted sum of retrieval, relevance and BM25")
    given = parser.parse_args()
    if given.fused:
        show(compare(fused(given.out, given.folds, given.seeds)))
        return
    if given.search:
        search(given.out, given.recipes, given.search)
        return
    runs = [
        once(given.out / f"{name}-f{fold}-s{seed}", name, [f"data.split.fold={fold}", f"seed={seed}"], "test")
        for seed, name, fold in itertools.product(given.seeds, given.recipes, given.folds)
    ]
    show(compare(runs))
    against_short_text(runs, given.folds)


def once(run: Path, name: str, overrides: list[str], split: str) -> Path:
    """The run, tuned and scored, unless it was already."""
    folder = RunFolder(run)
    if not folder.report(split).is_file():
        started = time.perf_counter()
        folder_of = name if "/" in name else f"retrieval/{name}"
        tune(Recipe.load(RECIPES / f"{folder_of}.yaml", overrides), run=run, force=True)
        report = evaluate(run, split=split)  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
        scores = f"{report['base']['ndcg@10']:.4f} -> {report['tuned']['ndcg@10']:.4f}"
        print(f"{run.name}: ndcg@10 {scores}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return run


def fused(out: Path, folds: list[int], seeds: list[int]) -> list[Path]:
    """Bi-encoder runs scored beside a cross-encoder of the same fold and seed, and summed with it and BM25."""
    runs = []
    for seed, fold in itertools.product(seeds, folds):
        same = [f"data.split.fold={fold}", f"seed={seed}"]
        reader = once(out / f"relevance-f{fold}-s{seed}", "relevance/chorus-lora", same, "test")
        beside = f"eval.beside=[{reader.resolve()}]"
        runs.append(once(out / f"fused-f{fold}-s{seed}", "retrieval/chorus-fused", [*same, beside], "test"))
    return runs


def search(out: Path, names: list[str], settings: list[str]) -> None:
    """Scores every combination of settings on held-out training queries of folds 0 and 1."""
    axes = [[f"{key}={value}" for value in values.split(",")] for key, values in (s.split("=", 1) for s in settings)]
    for name, chosen in itertools.product(names, itertools.product(*axes)):
        gains = []
        for fold in (0, 1):
            label = "-".join(part.rsplit(".", 1)[-1] for part in chosen)
            overrides = [*chosen, f"data.split.fold={fold}", "data.split.valid=0.4"]
            overrides.append("tune.early_stopping.metric=ndcg@10")
            run = once(out / f"{name}-{label}-f{fold}", name, overrides, "valid")
            report = read_json(RunFolder(run).report("valid"))
            gains.append(report["tuned"]["ndcg@10"] - report["base"]["ndcg@10"])
        print(f"{name} {' '.join(chosen)}: {sum(gains) / 2:+.4f} ({gains[0]:+.4f}, {gains[1]:+.4f})", flush=True)


def against_short_text(runs: list[Path], folds: list[int]) -> None:
    """Every recipe's pooled rows less the untuned base's on the protocol's text, paired by query."""
    zero = zero_shot("[supplier, product_type, title]", folds)
    values = np.array(list(zero.values()))
    print(f"\nuntuned, supplier, product_type, title: {np.nanmean(values):.4f}, n = {np.isfinite(values).sum()}")
    for name in dict.fromkeys(run.name.rsplit("-f", 1)[0] for run in runs):
        mine = [run for run in runs if run.name.rsplit("-f", 1)[0] == name]
        frames = [pl.read_parquet(RunFolder(run).predictions("test")).select("key", "tuned:ndcg@10") for run in mine]
        mean = pl.concat(frames).group_by("key", maintain_order=True).mean()
        ours = mean["tuned:ndcg@10"].fill_null(np.nan).to_numpy()
        theirs = np.array([zero[key] for key in mean["key"]])
        found = paired(ours, theirs, mean["key"].to_list())
        low, high = found.interval or (np.nan, np.nan)
        print(f"{name} - untuned on that text: {found.mean:+.4f} [{low:+.4f}, {high:+.4f}]")


def zero_shot(text: str, folds: list[int]) -> dict[str, float]:
    """The untuned base's nDCG@10 of every query, by key, with another product text."""
    scores: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for fold in folds:
            overrides = [f"data.split.fold={fold}", f"data.items.text={text}"]
            recipe = Recipe.load(RECIPES / "retrieval" / "chorus-lora.yaml", overrides)
            store = prepare(recipe, out=f"{folder}/{fold}")
            exam = exam_of(recipe, store, "test")
            servings = servings_of([(recipe, store.item_ids)], tokenizer_of(recipe.model))
            tuned = assemble.new(recipe, servings, 1, [], device_of())
            with tuned.as_base():
                found = score_model(exam, Encoder(tuned.model, tuned.tokenizer))
            scores |= dict(zip(exam.records.keys, found.per_record["ndcg@10"].tolist(), strict=True))
    return scores


def show(found: dict[str, object]) -> None:
    """The table as Markdown, and as JSON on the last line."""
    print("| row | nDCG@10 | 95% | runs | n |\n|---|---|---|---|---|")
    for row in found["rows"]:  # type: ignore[attr-defined]
        low, high = row["ci"]["ndcg@10"]
        print(
            f"| {row['run']} | {row['scores']['ndcg@10']:.4f} | {low:.4f} - {high:.4f} | {row['runs']} | {row['n']} |"
        )
    print("\n| difference | nDCG@10 | 95% |\n|---|---|---|")
    for name, difference in found["paired"].items():  # type: ignore[attr-defined]
        low, high = difference["ndcg@10"]["ci"]
        print(f"| {name} | {difference['ndcg@10']['mean']:+.4f} | {low:+.4f} - {high:+.4f} |")
    print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    main()
