"""Reports as `eval` writes them, made up: a fused ranking, classes, calibrated labels, values, several tasks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

Report = dict[str, Any]

SCRIPT = "<script>alert('item')</script><img src=https://shop.example/x.png onerror=alert(1)>"
TITLES = (
    "Ergonomischer Bürostuhl mit Rollen, schwarz, höhenverstellbar bis 140 kg",
    "无线鼠标 2.4G 可充电 静音 笔记本电脑办公",
    SCRIPT,
    "USB-C cable 2 m, braided 🔌🔥",
    "Stapler with 1,000 staples & remover",
    "Tintenpatrone für Drucker HP 304 XL – Sparpack",
    "保温杯 316不锈钢 大容量 便携水杯",
    "",
)
CONTEXTS = ("leiser Bürostuhl <i>schwarz</i>", "鼠标 → 键盘 → 显示器", "cable 🔌 " + "x" * 3000)


def around(scores: Mapping[str, float | None]) -> Report:
    """An interval around each score."""
    return {name: None if value is None else [value - 0.02, value + 0.02] for name, value in scores.items()}


def row(metrics: Sequence[str], value: float) -> dict[str, float]:
    return {metric: value - 0.07 * place for place, metric in enumerate(metrics)}


def difference(mean: float, half: float, p: float | None = None) -> Report:
    return {"mean": mean, "ci": [mean - half, mean + half], "n": 1027, "p": p, "p_holm": None if p is None else 2 * p}


def shared(task: str, counted: str = "records") -> Report:
    ranked = counted == "records"
    return {
        "format": 2,
        "name": "shop-search",
        "task": task,
        "n": 1027,
        "protocol": {
            "split": "test",
            "split_by": "time",
            "n": 1027,
            "counted": counted,
            "left_out": 12,
            "candidates": "all" if ranked else "pairs",
            "n_candidates": 3659 if ranked else None,
            "sampled": False,
            "history_masked": ranked,
            "gain": "linear",
            "ties": "expected value over random order",
            "interval": "95%, bootstrap clustered by user",
            "data": "bb75d63c278fbaa9d101ce3cae07f2b39d42950ba88d1611b1cfecff85d086ff",
        },
        "run": {
            "base": "minilm",
            "quantization": "nf4",
            "method": "lora",
            "trainable_parameters": 331776,
            "steps": 260,
            "seconds": 362.79,
            "peak_memory_bytes": 2447990784,
            "versions": {"python": "3.11.7", "recft": "0.2.0", "torch": "2.13.0"},
            "hashes": {"base": "f33948fdb210b6685f40cf6f84b17d26a54acd669a52bcaded85c55e7f218386"},
        },
        "data": {
            "items": 19406,
            "records": {"train": 97123, "valid": 1100, "test": 1027},
            "lengths": {
                "max_tokens": 64,
                "audited_items": 19406,
                "items": {
                    "texts": 19406,
                    "mean": 22.7,
                    "p50": 21.0,
                    "p95": 40.0,
                    "max": 109,
                    "rows_losing_tokens": 165,
                },
                "queries": {"texts": 135, "mean": 4.0, "p50": 4.0, "p95": 5.0, "max": 9, "rows_losing_tokens": 0},
                "columns": {
                    "supplier": {"filled": 19406, "rows_losing_tokens": 0},
                    "title": {"filled": 19406, "rows_losing_tokens": 165},
                },
            },
            "order": {
                "train": {"mixed_records": 71, "place_auc": 0.4983, "item_number_auc": 0.4772},
                "test": {"mixed_records": 51, "place_auc": 0.4141, "item_number_auc": 0.3544},
            },
            "dropped": {"exact duplicates of events": 5268},
            "quarantined": {"rows": 17, "by_rule": {"data.items: every item needs a title": 17}},
        },
        "predictions": {"path": "test.predictions.parquet", "sha256": "25bd00f513b9e098"},
        "gates": [
            {"gate": "ndcg@10 >= base", "passed": True, "line": "ndcg@10 = 0.4210 is >= base = 0.3500"},
            {"gate": "ece <= 0.05", "passed": False, "line": "ece = 0.0610 is not <= 0.0500"},
        ],
        "seconds": 25.88,
    }


def ranking() -> Report:
    metrics = ("ndcg@10", "recall@20", "mrr@10")
    values = {"base": 0.35, "tuned": 0.421, "fused": 0.472, "fused_without_model": 0.455}
    classic = {"popularity": 0.21, "ease": 0.449, "own-repeats": 0.402, "bm25": None}
    rows = {name: row(metrics, value) for name, value in values.items()}
    baselines = {
        name: dict.fromkeys(metrics) if value is None else row(metrics, value) for name, value in classic.items()
    }
    ci = {name: around(scores) for name, scores in (rows | baselines).items()}
    found = shared("next_item") | rows
    found["baselines"], found["ci"] = baselines, ci
    found["paired"] = {
        "tuned - base": {metric: difference(0.071, 0.011, 0.0001) for metric in metrics},
        "tuned - ease": {metric: difference(-0.028, 0.012, 0.004) for metric in metrics},
        "fused - fused_without_model": {
            "ndcg@10": difference(0.017, 0.009, 0.012),
            "mrr@10": difference(0.01, 0.02, 0.3),
        },
    }
    found["fusion"] = {
        "systems": ["tuned", "ease", "popularity"],
        "weights": {"tuned": 0.61, "ease": 1.2, "popularity": 0.05},
        "weights_without_model": {"ease": 1.3, "popularity": 0.1},
        "fitted_on": "valid",
        "n": 1100,
    }
    found["verdicts"] = [
        "The tuned model does not beat the best classic row (ease): ndcg@10 is 0.0280 lower, p = 0.008.",
        "Fused with the classic rows the model is worth +0.0170 ndcg@10.",
    ]
    found["slices"] = {
        name: {
            "of": name.partition("=")[0],
            "n": 120 + 90 * place,
            "rows": {
                key: row(metrics, value - 0.02 * place)
                for key, value in (values | {"ease": 0.449, "popularity": 0.21}).items()
            },
            "paired": {
                "tuned - base": {"ndcg@10": difference(0.09 - 0.02 * place, 0.03)},
                "fused - fused_without_model": {"ndcg@10": difference(0.03 - 0.01 * place, 0.02)},
            },
        }
        for place, name in enumerate(("cold_item", "head_item", "tail_item", "repeat", "novel", "marke=Büro & Co <b>"))
    }
    found["gaps"] = {
        "item_popularity": {
            "base": {"ndcg@10": {"gap": 0.31, "best": "head_item", "worst": "tail_item"}},
            "tuned": {"ndcg@10": {"gap": 0.22, "best": "head_item", "worst": "cold_item"}},
        }
    }
    found["robustness"] = {
        name: {
            "share": share,
            "rows": {"base": row(metrics, 0.3 - share), "tuned": row(metrics, 0.4 - share)},
            "paired": {f"tuned: {name} - clean": {metric: difference(-share, 0.01, 0.01) for metric in metrics}},
        }
        for name, share in (("typos", 0.1), ("word_order", 0.2), ("dropped_attributes", 0.05))
    }
    found["examples"] = [
        {
            "key": f"user-{place}",
            "context": context,
            "targets": [TITLES[1], TITLES[2]],
            "base": list(TITLES[3:8]),
            "tuned": [TITLES[1], *TITLES[3:6], TITLES[2]],
            "metric": "ndcg@10",
            "base_score": 0.0,
            "tuned_score": 0.854,
        }
        for place, context in enumerate(
            ("leiser Bürostuhl <i>schwarz</i>", "鼠标 → 键盘 → 显示器", "cable 🔌 " + "x" * 3000)
        )
    ]
    found["explanations"] = [
        {
            "key": "q1",
            "context": "kabellose Maus leise",
            "item": "1017",
            "title": TITLES[1],
            "score": 0.713,
            "method": "leave-one-out",
            "parts": [
                {"text": "kabellose", "effect": 0.12},
                {"text": "Maus", "effect": 0.31},
                {"text": "leise", "effect": -0.08},
                {"text": "<b>für</b>", "effect": 0.0},
                {"text": "办公", "effect": 0.2},
            ],
        }
    ]
    return found


def classes() -> Report:
    labels = ["order_status", "refund", "客服投诉", "Rechnung & Mahnung", "talk_to_human"]
    draw = random.Random(0)
    metrics = ("f1_macro", "f1_weighted", "accuracy")
    found = shared("classify", "pairs")
    found |= {"base": row(metrics, 0.61), "tuned": row(metrics, 0.83)}
    found["baselines"] = {"logistic": row(metrics, 0.79)}
    found["ci"] = {name: around(found[name]) for name in ("base", "tuned")}
    found["paired"] = {
        "tuned - base": {"f1_macro": difference(0.22, 0.03)},
        "tuned - logistic": {"f1_macro": difference(0.04, 0.05)},
    }
    rows = {}
    for name in ("base", "tuned"):
        counts = [[draw.randint(0, 9) + (90 if one == other else 0) for other in range(5)] for one in range(5)]
        report = {label: {"precision": 0.8, "recall": 0.75, "f1": 0.77, "n": 100 + len(label)} for label in labels}
        rows[name] = {"confusion": counts, "report": report}
    found["classes"] = {"labels": labels, "rows": rows}
    return found


def labels() -> Report:
    found = shared("purchase", "pairs")
    found |= {"base": {"auc": 0.61, "log-loss": 0.7, "ece": 0.2}, "tuned": {"auc": 0.74, "log-loss": 0.52, "ece": 0.03}}
    found["baselines"] = {"logistic": {"auc": 0.75, "log-loss": 0.51, "ece": 0.02}}
    found["ci"] = {name: around(found[name]) for name in ("base", "tuned")}
    found["paired"] = {"tuned - base": {"auc": difference(0.13, 0.02), "log-loss": difference(-0.18, 0.03)}}
    bins = [
        {
            "from": place / 10,
            "to": place / 10 + 0.1,
            "n": 40 * (place + 1),
            "confidence": place / 10 + 0.05,
            "share": share,
        }
        for place, share in enumerate((0.02, 0.11, 0.24, 0.33, 0.46, 0.55, 0.69, 0.7, 0.88, 0.97))
    ]
    raw = [{**part, "confidence": min(1, part["confidence"] * 1.2)} for part in bins if part["n"] > 80]
    found["calibration"] = {
        "kind": "isotonic",
        "rows": {"tuned": {"ece": 0.03, "bins": bins}, "uncalibrated": {"ece": 0.11, "bins": raw}},
    }
    return found


def values() -> Report:
    found = shared("rating", "pairs")
    found |= {"base": {"rmse": 1.4, "mae": 1.1}, "tuned": {"rmse": 0.91, "mae": 0.7}}
    found["baselines"] = {"mean": {"rmse": 1.02, "mae": 0.8}, "factors": {"rmse": 0.88, "mae": 0.68}}
    found["paired"] = {
        "tuned - base": {"rmse": difference(-0.49, 0.04)},
        "tuned - factors": {"rmse": difference(0.03, 0.01)},
    }
    return found


def several() -> Report:
    parts = {"next_item": ranking(), "purchase": labels()}
    whole = {key: parts["next_item"][key] for key in ("format", "name", "run", "data", "gates", "seconds")}
    for part in parts.values():
        for key in ("run", "data", "gates"):
            part.pop(key)
    return {**whole, "tasks": parts}


def minimal() -> Report:
    return {"base": {"ndcg@10": 0.5}, "tuned": {"ndcg@10": None}}


MAKERS: dict[str, Callable[[], Report]] = {
    make.__name__: make for make in (ranking, classes, labels, values, several, minimal)
}


@pytest.fixture
def reports() -> dict[str, Report]:
    """A report of each kind, as JSON brings it back."""
    return {name: json.loads(json.dumps(make())) for name, make in MAKERS.items()}


@pytest.fixture
def compared() -> Report:
    """What `compare` finds."""
    metrics = ("ndcg@10", "recall@20")
    names = ("chorus-lora (base)", "chorus-lora", "chorus-adalora <fast> 快", "x" * 300)
    rows = [
        {
            "run": name,
            "runs": 3,
            "n": 135,
            "scores": row(metrics, 0.85 + place / 100),
            "ci": around(row(metrics, 0.85 + place / 100)),
        }
        for place, name in enumerate(names)
    ]
    paired = {"chorus-lora - its base": {metric: difference(0.01, 0.004, 0.001) for metric in metrics}}
    return {"split": "test", "rows": rows, "paired": paired}
