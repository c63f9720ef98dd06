"""`recft eval` as CI calls it: exit codes, files, and a report that meets its schema."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

import recft
from recft import cli
from recft.errors import GateError
from recft.run import hash_file, read_json, write_json

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "recft" / "reports" / "report_schema.json").read_text(encoding="utf-8"))

TESTED = "ndcg@10 not worse than reference"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(toy_shop: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the toy shop, twelve queries in its test split."""
    recipe = {
        "name": "玩具店",
        "task": "retrieval",
        "data": {
            "items": {
                "path": "items.jsonl",
                "id": "sku",
                "text": ["brand", "title"],
                "title": "title",
                "columns": ["brand"],
            },
            "queries": {"path": "queries.csv", "query": "query", "item": "item", "grade": "grade"},
            "split": {"by": "query", "folds": 2},
        },
        "model": {"base": str(tiny_bert), "compute_dtype": "float32"},
        "method": {"name": "lora", "rank": 4},
        "tune": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "max_tokens": 32},
        "eval": {"bootstrap": 100, "baselines": ["bm25"], "slices": ["item_popularity", "brand"]},
    }
    folder = tmp_path_factory.mktemp("eval-command") / "run"
    recft.tune(recft.Recipe.from_mapping(recipe, folder=toy_shop), run=folder)
    return folder


def command(*words: object, **environment: str) -> tuple[int, str, str]:
    """The real command in a process of its own: exit code, stdout, stderr."""
    kept = {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"}
    done = subprocess.run(
        [sys.executable, "-m", "recft", "eval", *map(str, words)],
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same in this process, which spares an import of torch."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["eval", *map(str, words)])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def main_report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an earlier scoring of the same run, with its predictions beside it."""
    recft.evaluate(run)
    folder = tmp_path_factory.mktemp("main") / "eval"
    shutil.copytree(run / "eval", folder)
    return folder / "test.json"


def better_than(report: Path, folder: Path) -> Path:
    """A reference that found everything at once."""
    shutil.copytree(report.parent, folder)
    file = folder / "test.predictions.parquet"
    pl.read_parquet(file).with_columns(pl.lit(1.0).alias("tuned:ndcg@10")).write_parquet(file)
    changed = read_json(folder / "test.json")
    changed["tuned"]["ndcg@10"] = 1.0
    changed["predictions"]["sha256"] = hash_file(file)
    write_json(folder / "test.json", changed)
    return folder / "test.json"


def test_gates_that_hold_leave_with_0_and_every_file_is_written(run: Path, main_report: Path, tmp_path: Path) -> None:
    (tmp_path / "gates.txt").write_text(
        "# 门槛\nndcg@10 >= reference - 0.005\nndcg@10 not worse than reference  # tested\n\n"
        "ndcg@10[brand=oak] >= 0\nndcg@10[tail-item] not worse than reference by 0.01\n",
        encoding="utf-8",
    )
    step = tmp_path / "step.md"
    step.write_text("earlier step\n", encoding="utf-8")
    files = [tmp_path / name for name in ("gates.xml", "summary.md", "report.json")]
    code, out, err = command(
        run,
        *("--reference", main_report, "--gates", tmp_path / "gates.txt", "--gate", "ndcg@10 >= base - 1"),
        *("--junit", files[0], "--summary", files[1], "--json", files[2], "--quiet"),
        GITHUB_STEP_SUMMARY=str(step),
    )
    assert code == 0, err
    assert err == ""
    assert out.count("PASS") == 5
    report = read_json(files[2])
    assert report == read_json(run / "eval" / "test.json")
    assert not list(complaints(report, SCHEMA)), "the report does not meet its schema"
    tested = report["gates"][2]
    assert tested["gate"] == "ndcg@10 not worse than reference"
    assert tested["p"] == 1.0 and tested["mean"] == 0.0 and "p = 1.0000" in tested["line"]
    suite = ElementTree.parse(files[0]).getroot()[0]
    assert suite.attrib["name"] == "recft.玩具店.test"
    assert suite.attrib["tests"] == "5" and suite.attrib["failures"] == "0"
    text = files[1].read_text(encoding="utf-8")
    assert text.startswith("## recft eval: 玩具店, test split: 5 of 5 gates hold")
    assert step.read_text(encoding="utf-8") == f"earlier step\n{text}\n"


def test_every_broken_gate_has_a_line_and_the_code_is_3(run: Path, main_report: Path, tmp_path: Path) -> None:
    reference = better_than(main_report, tmp_path / "better")
    code, out, err = command(
        run,
        *("--reference", reference, "--junit", tmp_path / "gates.xml", "--summary", tmp_path / "summary.md"),
        *("--gate", "ndcg@10 >= base + 1", "--gate", "mrr@10 >= 0", "--gate", "ndcg@10 not worse than reference"),
        "--quiet",
    )
    assert code == 3
    first, second = err.splitlines()
    assert re.fullmatch(r"error: ndcg@10 = 0\.\d{4} is not >= base \+ 1 = 1\.\d{4}", first)
    assert re.search(r"ndcg@10 = 0\.\d{4} is worse than reference = 1\.0000: difference -0\.", second)
    assert re.search(r"\[-0\.\d{4}, -0\.\d{4}\], n = 12, p = 0\.\d{4} < 0\.05$", second)
    assert out.count("FAIL") == 2 and out.count("PASS") == 1
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()[0]
    assert [len(case.findall("failure")) for case in suite.findall("testcase")] == [1, 0, 1]
    assert "2 of 3 gates broken" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert [gate["passed"] for gate in read_json(run / "eval" / "test.json")["gates"]] == [False, True, False]


def test_a_gate_that_cannot_be_judged_leaves_with_1_and_is_an_error_in_junit(
    here: Command, run: Path, tmp_path: Path
) -> None:
    gates = ["--gate", "ndcg@10[tail_item] not worse than bm25", "--gate", "ndcg@10 >= 2"]
    # A run's own last report is a reference too: it is read before scoring replaces it.
    recft.evaluate(run)
    gates += ["--reference", str(run / "eval" / "test.json"), "--gate", TESTED]
    code, out, err = here(run, *gates, "--junit", tmp_path / "gates.xml", "--quiet")
    assert code == 1
    assert "hold no ndcg@10[tail_item] of bm25 record by record" in err.splitlines()[0]
    assert "is not >= 2" in err.splitlines()[1]
    assert (out.count("FAIL"), out.count("PASS")) == (2, 1)
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()[0]
    assert (suite.attrib["errors"], suite.attrib["failures"]) == ("1", "1")


def test_answers_are_gated_as_rankings_are(here: Command, toy_recipe: Callable[..., Any], tmp_path: Path) -> None:
    metrics = {"metrics": ["auc", "log_loss", "ece"]}
    recipe = toy_recipe("purchase", "causal", {"name": "lora", "rank": 4}, tune={"max_steps": 1}, eval=metrics)
    recft.tune(recipe, run=tmp_path / "run")
    gates = ["ece <= 1", "purchase:auc not worse than base by 0.9", "log_loss not worse than base by 9", "auc > 1"]
    code, out, err = here(tmp_path / "run", *(word for gate in gates for word in ("--gate", gate)), "--quiet")
    assert code == 3, err
    assert err.startswith("error: auc = ") and len(err.splitlines()) == 1
    assert out.count("PASS") == 3
    report = read_json(tmp_path / "run" / "eval" / "test.json")
    assert not list(complaints(report, SCHEMA))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, main_report: Path) -> Iterator[None]:
    """Whatever is asked for must be refused before a model is loaded."""
    monkeypatch.setattr(sys.modules["recft.evaluate"], "open_adapter", lambda *_: pytest.fail("a model was loaded"))
    yield


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("damage", "gate", "said"),
    [
        ("none named", TESTED, "there is no reference"),
        ("file", TESTED, "--reference: "),
        ("json", "ndcg@10 >= reference", "not JSON"),
        ("predictions", TESTED, "test.predictions.parquet is missing"),
        ("hash", TESTED, "is not the file that"),
        ("data", TESTED, "was scored with data 0000"),
        ("data", "ndcg@10 >= reference", "was scored with data 0000"),
        ("split", TESTED, "was scored with split valid, this run with test"),
        ("task", TESTED, "was scored with task rating, this run with retrieval"),
        ("metric", TESTED, "ndcg@10 of reference was not measured"),
        ("", "ndcg@20 >= 0.1", "ndcg@20 of tuned was not measured"),
        ("", "ndcg@10 >= bm52", "Did you mean 'bm25'"),
        ("", "rating:rmse <= 1", "there is no task 'rating'"),
        ("", "ndcg@10[tail_itme] >= 0", "there is no slice 'tail_itme' in this report. Did you mean 'tail_item'?"),
        ("", "ndcg@10[brand=elm] >= 0", "there is no slice 'brand=elm' in this report"),
    ],
)
def test_what_cannot_be_judged_is_told_before_anything_is_scored(
    damage: str, gate: str, said: str, here: Command, run: Path, main_report: Path, tmp_path: Path
) -> None:
    shutil.copytree(main_report.parent, tmp_path / "main")
    reference, file = tmp_path / "main" / "test.json", tmp_path / "main" / "test.predictions.parquet"
    report = read_json(reference)
    if damage == "file":
        reference.unlink()
    elif damage == "json":
        reference.write_text("{", encoding="utf-8")
    elif damage == "predictions":
        file.unlink()
    elif damage == "hash":
        pl.read_parquet(file).with_columns(pl.col("tuned:ndcg@10") / 2).write_parquet(file)
    elif damage in ("data", "split"):
        report["protocol"][damage] = {"data": "0" * 64, "split": "valid"}[damage]
        write_json(reference, report)
    elif damage == "task":
        write_json(reference, {**report, "task": "rating"})
    elif damage == "metric":
        write_json(reference, {**report, "tuned": {}})
    words = [] if damage == "none named" else ["--reference", reference]
    code, out, err = here(run, *words, "--gate", gate, "--quiet")
    assert (code, out) == (1, ""), err
    assert said in err
    assert "(rule: " in err and "fix: " in err


@pytest.mark.usefixtures("no_model")
def test_a_mistake_in_a_gates_file_names_file_and_line(here: Command, run: Path, tmp_path: Path) -> None:
    gates = tmp_path / "门槛.txt"
    gates.write_text("ndcg@10 >= base\n\nndgc@10 >= base\nndcg@10 => base\n", encoding="utf-8")
    code, _, err = here(run, "--gates", gates)
    assert code == 1
    assert f"{gates} line 3: gate 'ndgc@10 >= base'" in err and "Did you mean 'ndcg'" in err
    assert f"{gates} line 4: gate: 'ndcg@10 => base' is not understood" in err
    code, _, err = here(run, "--gates", tmp_path / "none.txt")
    assert code == 1 and "cannot be read" in err


def test_wrong_usage_leaves_with_2(here: Command, run: Path) -> None:
    assert here(run, "--split", "train")[0] == 2
    assert here()[0] == 2


def test_a_step_summary_that_cannot_be_written_hides_no_exit_code(
    here: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = GateError("auc = 0.7000 is not >= 0.8")
    error.report = {  # type: ignore[attr-defined]
        "name": "x",
        "tuned": {"auc": 0.7},
        "gates": [{"gate": "auc >= 0.8", "passed": False, "line": "auc = 0.7000 is not >= 0.8"}],
    }

    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setitem(recft.__dict__, "evaluate", failing)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    code, _, err = here(tmp_path)
    assert code == 3
    assert "warning: GITHUB_STEP_SUMMARY: nothing was appended" in err


def test_the_schema_is_shown(here: Command) -> None:
    code, out, _ = here("--schema")
    assert code == 0
    assert json.loads(out) == SCHEMA


# A validator of the part of JSON Schema that ours uses; a word that it does not know is an error.

KNOWN = {
    *("$schema", "$ref", "$defs", "title", "description", "type", "properties", "required", "additionalProperties"),
    *("items", "minItems", "maxItems", "enum", "const", "minimum", "maximum", "pattern", "anyOf"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def is_of(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def complaints(value: Any, schema: Any, place: str = "report") -> Iterator[str]:
    """Where a value does not meet a schema."""
    assert not set(schema) - KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        yield from complaints(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], place)
    types = schema.get("type", [])
    if types and not any(is_of(value, name) for name in ([types] if isinstance(types, str) else types)):
        yield f"{place}: {value!r} is no {types}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{place}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "anyOf" in schema and all(list(complaints(value, one, place)) for one in schema["anyOf"]):
        yield f"{place}: none of anyOf"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place}: {value!r} is not {schema['pattern']}"
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place}: {value} is out of range"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{place}: {len(value)} items"
        for number, inner in enumerate(value):
            yield from complaints(inner, schema.get("items", {}), f"{place}[{number}]")
    if isinstance(value, dict):
        yield from (f"{place}: no {name}" for name in schema.get("required", ()) if name not in value)
        for name, inner in value.items():
            more = schema.get("additionalProperties", {})
            yield from complaints(inner, schema.get("properties", {}).get(name, more), f"{place}.{name}")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("format",), 3, "is not 2"),
        (("tuned", "ndcg@10"), "0.7", "is no ['number', 'null']"),
        (("paired", "tuned - base", "ndcg@10", "ci"), [0.1], "1 items"),
        (("paired", "tuned - base", "ndcg@10", "p"), 1.5, "out of range"),
        (("slices", "tail_item", "n"), 1.5, "is no integer"),
        (("predictions", "sha256"), "abc", "is not ^[0-9a-f]{64}$"),
        (("protocol", "split"), "train", "is none of"),
        (("gates",), None, "is no array"),
        (("protocol",), ..., "none of anyOf"),
        (("seconds",), ..., "no seconds"),
    ],
)
def test_the_schema_refuses_what_is_none(path: tuple[str, ...], value: Any, said: str, main_report: Path) -> None:
    report = read_json(main_report)
    assert not list(complaints(report, SCHEMA))
    part = report
    for name in path[:-1]:
        part = part[name]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    found = list(complaints(report, SCHEMA))
    assert found and any(said in line for line in found), found
