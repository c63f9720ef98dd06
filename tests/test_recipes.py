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
from recft.schema import DataSettings, TextsTable

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
WORDS = ["red", "blue", "steel", "bottle", "lamp", "chair", "杯子", "手机", "green", "wool", "scarf", "toner"]


def write_table(path: Path, rows: list[dict[str, Any]], suffixes: list[str]) -> None:
    """Rows as CSV or JSON lines, gzipped where the recipe's own file is."""
    if ".jsonl" in suffixes:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if ".tsv" in suffixes else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if ".gz" in suffixes else data)


def toy_tables(data: DataSettings, folder: Path) -> list[str]:
    """Writes small tables with a recipe's own column names; the overrides that name them come back."""
    ids = [str(100 + number) for number in range(30)]
    tables: dict[str, list[dict[str, Any]]] = {}
    if data.items is not None:
        texts = [f"{WORDS[number % 12]} {WORDS[number * 5 % 12]} {number}" for number in range(30)]
        tables["items"] = [
            {**dict.fromkeys(data.items.text, text), data.items.id: name} for name, text in zip(ids, texts, strict=True)
        ]
    if data.texts is not None:
        tables |= {name: text_rows(data.texts) for name in ("texts.path", "texts.valid", "texts.test")}
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
        key = name if "." in name else f"{name}.path"
        if key in data.files():
            suffixes = Path(data.files()[key]).suffixes
            path = folder / f"{key}{''.join(suffixes)}"
            write_table(path, rows, suffixes)
            overrides.append(f"data.{key}={path}")
    return overrides


def text_rows(table: TextsTable) -> list[dict[str, Any]]:
    """60 texts, answered as a recipe has it: by a label, a reply, a chosen and rejected ones, or in conversations."""
    rows = []
    for number in range(60):
        answer, asked = WORDS[number % 4], f"{WORDS[number % 4]} {number}?"
        row: dict[str, Any] = dict.fromkeys(table.text, asked)
        row |= {str(column): answer for column in (table.label, table.reply, table.chosen) if column}
        worse = (table.rejected,) if isinstance(table.rejected, str) else table.rejected or ()
        row |= dict.fromkeys(worse, WORDS[4 + number % 4])
        if table.messages:
            row[table.messages] = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        rows.append(row | ({table.group: f"g{number % 30}"} if table.group else {}))
    return rows


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
