"""Every recipe in recipes/ loads, says how it is run, and runs two steps on a toy base and toy tables."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from recft import Recipe, evaluate, tune
from recft.schema import DataSettings

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
WORDS = ["red", "blue", "steel", "bottle", "lamp", "chair", "杯子", "手机", "green", "wool", "scarf", "toner"]


def write_table(path: Path, rows: list[dict[str, Any]], suffixes: list[str]) -> None:
    """Rows as CSV or JSON lines, gzipped where the recipe's own file is."""
    if ".jsonl" in suffixes:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if ".gz" in suffixes else data)


def toy_tables(data: DataSettings, folder: Path) -> list[str]:
    """Writes small tables with a recipe's own column names; the overrides that name them come back."""
    ids = [str(100 + number) for number in range(30)]
    items = []
    for number, name in enumerate(ids):
        text = f"{WORDS[number % 12]} {WORDS[number * 5 % 12]} {number}"
        items.append({**dict.fromkeys(data.items.text, text), data.items.id: name})
    tables: dict[str, list[dict[str, Any]]] = {"items": items}
    if data.queries is not None and data.queries.item is not None:
        names = data.queries.query, data.queries.item, str(data.queries.grade)
        tables["queries"] = [
            dict(
                zip(
                    names,
                    (f"{WORDS[query % 12]} number {query}", ids[(query * 7 + place) % 30], place % 4),
                    strict=True,
                )
            )
            for query in range(25)
            for place in range(6)
        ]
    if (log := data.interactions) is not None:
        tables["interactions"] = [
            {
                log.user: f"u{user}",
                log.item: ids[(user * 3 + place * (user % 5 + 1)) % 30],
                log.time: 1_500_000_000 + place * 86_400 + user * 60,
                **({log.rating: 1 + (user + place) % 5} if log.rating else {}),
            }
            for user in range(25)
            for place in range(8)
        ]
    overrides = []
    for name, rows in tables.items():
        path = folder / f"{name}{''.join(Path(getattr(data, name).path).suffixes)}"
        write_table(path, rows, path.suffixes)
        overrides.append(f"data.{name}.path={path}")
    return overrides


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_does_and_loads_to_an_equal_one(path: Path) -> None:
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("recft tune" in line or "chorus.py" in line for line in comment), "the header names the command"
    assert any("measured" in line.lower() for line in comment), "the header says what was measured"
    recipe = Recipe.load(path)
    import ruamel.yaml

    again = Recipe.from_mapping(ruamel.yaml.YAML(typ="safe").load(recipe.to_yaml()))
    assert again == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps_on_a_toy_base(path: Path, tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> None:
    plain = Recipe.load(path)
    base = tiny_llama if "qwen" in path.stem else tiny_bert
    overrides = [
        *toy_tables(plain.data, tmp_path),
        f"model.base={base}",
        "model.quantization=none",
        "model.compute_dtype=float32",
        "method.layers=all",
        "tune.max_steps=2",
        "tune.max_tokens=64",
    ]
    recipe = Recipe.load(path, overrides)
    done = tune(recipe, run=tmp_path / "run")
    assert done["steps"] == 2
    report = evaluate(tmp_path / "run")
    assert report["n"] > 0
    assert set(report["tuned"]) == set(report["base"])
