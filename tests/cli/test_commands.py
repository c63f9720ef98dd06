"""Every command: what it hands to its verb, what it shows, and the code it leaves with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

import recft
from recft import cli, registry
from recft.errors import DataError, ExportError, GateError, ModelError, RecftError, RecipeError, TuneError

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]

REPORT: dict[str, Any] = {
    "name": "shop",
    "n": 96,
    "base": {"ndcg@10": 0.5, "recall@100": 0.61},
    "tuned": {"ndcg@10": 0.75, "recall@100": 0.87},
    "baselines": {"bm25": {"ndcg@10": 0.42, "recall@100": None}},
    "ci": {"base": {"ndcg@10": [0.45, 0.55]}, "tuned": {"ndcg@10": [0.7, 0.8]}},
    "paired": {
        "tuned - base": {"ndcg@10": {"mean": 0.25, "ci": [0.2, 0.3], "n": 96}},
        "tuned - bm25": {"ndcg@10": {"mean": 0.33, "ci": None, "n": 96}},
    },
    "protocol": {
        "split": "test",
        "split_by": "query",
        "n": 96,
        "counted": "records",
        "left_out": 3,
        "candidates": "all",
        "n_candidates": 800,
        "sampled": False,
        "history_masked": False,
        "gain": "linear",
        "interval": "95%, bootstrap clustered by query",
    },
    "gates": [{"gate": "ndcg@10 >= 0.7", "passed": True, "line": "ndcg@10 = 0.7500 is >= 0.7"}],
    "seconds": 1.5,
}

RECIPE = """\
name: shop
task: retrieval
data:
  items: {path: products.jsonl.gz, id: id, text: [title]}
  queries: {path: ratings.csv, query: query, item: docid, grade: rating}
method: lora
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: exit code, stdout, stderr."""

    def call(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as left:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Puts a stand-in where a verb is; what it was called with is noted in the dict that comes back."""

    def replace(name: str, gives: Any = None, raises: BaseException | None = None) -> dict[str, Any]:
        noted: dict[str, Any] = {}

        def stand_in(*args: Any, **options: Any) -> Any:
            noted["args"], noted["options"] = args, options
            if raises is not None:
                raise raises
            return gives

        monkeypatch.setitem(recft.__dict__, name, stand_in)
        return noted

    return replace


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_prepare_hands_on_its_options_and_shows_the_card(run: Run, verb: Any, recipe: Path, tmp_path: Path) -> None:
    card = {
        "counts": {"items": 800, "queries": 480},
        "split": {"by": "query", "train": {"records": 345}, "valid": {"records": 39}, "test": {"records": 96}},
        "dropped": {"duplicate judgements": 4},
        "quarantined": {"rows": 2},
    }
    noted = verb("prepare", SimpleNamespace(folder=tmp_path / "data", card=card))
    code, out, err = run("prepare", recipe, "--out", tmp_path / "data", "--set", "seed=7", "--set", "name=x", "--force")
    assert code == 0, err
    assert noted["args"][0].seed == 7
    assert noted["args"][0].name == "x"
    assert noted["options"]["out"] == tmp_path / "data"
    assert noted["options"]["force"] is True
    assert "345" in out
    assert "split by query" in out
    assert "duplicate judgements" in out
    assert "quarantine.jsonl" in out


def test_tune_hands_on_its_options_and_names_the_next_command(
    run: Run, verb: Any, recipe: Path, tmp_path: Path
) -> None:
    noted = verb("tune", {"steps": 72, "best": 0.75, "peak_memory_bytes": 2**30, "versions": {"torch": "2.13"}})
    code, out, _ = run("tune", recipe, "--run", tmp_path / "a run", "--resume", "--json", tmp_path / "tune.json")
    assert code == 0
    assert noted["options"]["run"] == tmp_path / "a run"
    assert noted["options"]["resume"] is True
    assert noted["options"]["force"] is False
    assert "1,024 MiB" in out
    assert "torch" not in out
    assert f"recft eval '{tmp_path / 'a run'}'" in out
    assert json.loads((tmp_path / "tune.json").read_text())["versions"] == {"torch": "2.13"}


def test_tune_does_not_resume_and_begin_anew_at_once(run: Run, verb: Any, recipe: Path) -> None:
    noted = verb("tune", {})
    code, _, err = run("tune", recipe, "--resume", "--force")
    assert code == 2
    assert "one of them" in err
    assert not noted


def test_eval_shows_rows_intervals_differences_gates_and_the_protocol(run: Run, verb: Any, tmp_path: Path) -> None:
    noted = verb("evaluate", REPORT)
    code, out, _ = run("eval", tmp_path, "--split", "valid", "--gate", "ndcg@10 >= 0.7", "--reference", "old.json")
    assert code == 0
    assert noted["args"] == (tmp_path,)
    assert noted["options"]["split"] == "valid"
    assert noted["options"]["gates"] == ("ndcg@10 >= 0.7",)
    assert noted["options"]["reference"] == Path("old.json")
    assert "0.7500 [0.7000, 0.8000]" in out
    assert "+0.2500 [+0.2000, +0.3000] *" in out
    assert "PASS" in out
    for fact in ("test split by query", "n = 96", "3 without", "800 (all)", "history not masked", "nothing sampled"):
        assert fact in out


def test_a_failed_gate_leaves_with_3_and_still_shows_and_writes_everything(run: Run, verb: Any, tmp_path: Path) -> None:
    error = GateError("ndcg@10 = 0.7500 is not >= 0.9")
    failed = {"gate": "ndcg@10 >= 0.9 & <x>", "passed": False, "line": "ndcg@10 = 0.7500 is not >= 0.9 <&>"}
    error.report = {**REPORT, "gates": [*REPORT["gates"], failed]}  # type: ignore[attr-defined]
    verb("evaluate", raises=error)
    code, out, err = run("eval", tmp_path, "--json", tmp_path / "r.json", "--junit", tmp_path / "gates.xml")
    assert code == 3
    assert "0.7500 [0.7000, 0.8000]" in out
    assert "FAIL" in out
    assert err.strip().endswith("ndcg@10 = 0.7500 is not >= 0.9")
    assert json.loads((tmp_path / "r.json").read_text())["gates"][1] == failed
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()[0]
    assert suite.attrib["failures"] == "1"
    assert suite.findall("testcase")[1][0].attrib["message"] == failed["line"]


def test_json_to_stdout_takes_the_table_s_place(run: Run, verb: Any, tmp_path: Path) -> None:
    verb("evaluate", REPORT)
    code, out, _ = run("eval", tmp_path, "--json", "-")
    assert code == 0
    assert json.loads(out) == REPORT


def test_export_hands_on_its_options_and_shows_the_certificate(run: Run, verb: Any, tmp_path: Path) -> None:
    made = {"certificate": {"engine": "transformers", "largest_score_difference": 2.5e-7, "verdict": "passed"}}
    noted = verb("export", made)
    told = ["--set", "export.rows=9", "--no-rows"]
    code, out, _ = run("export", tmp_path, "--to", "sentence_transformers", "--out", "x", "--onto", "original", *told)
    assert code == 0
    assert noted["options"] | {"listen": None} == {
        "to": "sentence-transformers",
        "out": Path("x"),
        "onto": "original",
        "force": False,
        "task": None,
        "rows": False,
        "overrides": ["export.rows=9"],
        "listen": None,
    }
    assert "2.5e-07" in out
    assert "passed" in out


def test_export_knows_the_targets_before_it_loads_anything(run: Run, verb: Any, tmp_path: Path) -> None:
    noted = verb("export", {})
    code, _, err = run("export", tmp_path, "--to", "mergd", "--out", "x")
    assert code == 2
    assert "Did you mean 'merged'?" in err
    assert not noted


def test_verify_shows_the_verdict(run: Run, verb: Any, tmp_path: Path) -> None:
    verb("verify", {"certificate": {"verdict": "pass"}})
    code, out, _ = run("verify", tmp_path)
    assert code == 0
    assert "verdict" in out


def test_recommend_takes_a_query_a_history_or_a_user(run: Run, verb: Any, tmp_path: Path) -> None:
    places = [
        {"rank": 1, "item": "42", "score": 0.9, "title": "保温瓶 🔥"},
        {"rank": 2, "item": "7", "score": 0.5, "title": "mug"},
    ]
    noted = verb("recommend", places)
    code, out, _ = run("recommend", tmp_path, "--history", "1, 2,3", "--top", "2")
    assert code == 0
    listen = noted["options"].pop("listen")
    assert callable(listen)
    asked = {"query": None, "history": ["1", "2", "3"], "user": None, "top": 2, "task": None, "explain": 0}
    asked |= {"items": None, "trust": False}
    assert noted["options"] == asked
    assert out.index("保温瓶") < out.index("mug")
    assert run("recommend", tmp_path, "--query", "mug", "--json", "-")[1].startswith("[")
    assert noted["options"]["query"] == "mug"


def test_recommend_says_why(run: Run, verb: Any, tmp_path: Path) -> None:
    word = {"kind": "word", "text": "保温", "effect": -0.25, "start": 0, "end": 2, "item": "7", "title": "mug"}
    item = {"kind": "item", "text": "mug, blue", "effect": 0.5, "start": 0, "end": 9, "item": "7", "title": "mug"}
    still = word | {"text": "still", "effect": 0.0}
    why = {"method": "leave-one-out", "effect": "score of the whole - score without", "parts": [item, word, still]}
    places = [
        {"rank": 1, "item": "42", "score": 0.9, "title": "flask", "explanation": why},
        {"rank": 2, "item": "7", "score": 0.5, "title": "mug", "explanation": why | {"parts": [still]}},
        {"rank": 3, "item": "8", "score": 0.4, "title": "pan"},
    ]
    noted = verb("recommend", places)
    code, out, err = run("recommend", tmp_path, "--history", "7", "--explain", "--json", tmp_path / "why.json")
    assert code == 0, err
    assert noted["options"]["explain"] == 3
    first, second = out.split("why ")[1:]
    assert first.startswith("1. flask")
    assert [line.split(maxsplit=2) for line in first.splitlines()[2:4]] == [
        ["+0.5000", "item", "mug (7)"],
        ["-0.2500", "word", "保温 (in mug)"],
    ]
    assert "leave-one-out: score of the whole" in first
    assert second.startswith("2. mug")
    assert "no part moves the score" in second
    assert "still" not in out
    assert json.loads((tmp_path / "why.json").read_text(encoding="utf-8")) == places


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--input", "a.csv", "--out", "b.parquet", "--explain"],
        ["--query", "a", "--user", "b"],
        ["--input", "a.csv"],
        ["--query", "a", "--out", "b.parquet"],
        ["--query", "a", "--top", "0"],
    ],
    ids=["nothing", "many explained", "two", "input without out", "out without input", "no place"],
)
def test_recommend_refuses_what_is_unclear(run: Run, verb: Any, words: list[str]) -> None:
    noted = verb("recommend", [])
    assert run("recommend", "runs/x", *words)[0] == 2
    assert not noted


@pytest.mark.parametrize("kind", [RecipeError, DataError, ModelError, TuneError, ExportError, RecftError])
def test_an_error_is_one_message_and_code_1(run: Run, verb: Any, tmp_path: Path, kind: type[RecftError]) -> None:
    verb("evaluate", raises=kind("place: value (rule: a; fix: b)\nsecond: mistake"))
    code, out, err = run("eval", tmp_path)
    assert code == 1
    assert out == ""
    assert err.splitlines() == ["error: place: value (rule: a; fix: b)", "       second: mistake"]


def test_a_bug_shows_its_traceback(verb: Any, tmp_path: Path) -> None:
    verb("evaluate", raises=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["eval", str(tmp_path)])


def test_all_of_a_recipe_s_mistakes_are_shown(run: Run, recipe: Path) -> None:
    code, _, err = run("tune", recipe, "--set", "tune.epoch=1", "--set", "modle.base=x")
    assert code == 1
    assert "tune.epoch" in err
    assert "did you mean" in err.lower()
    assert "modle" in err


@pytest.mark.parametrize(
    "words",
    [["tun"], ["tune"], ["tune", "a", "b"], ["eval", "x", "--split", "trian"], ["--nope"], ["prepare", "x", "--nope"]],
)
def test_wrong_usage_is_2(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert "Usage: recft" in err


@pytest.mark.parametrize("listing", ["methods", "tasks", "exports"])
def test_listings_name_every_member(run: Run, listing: str) -> None:
    code, out, _ = run(listing)
    assert code == 0
    for name in registry.names(f"recft.{listing}"):
        assert name in out
    found = json.loads(run(listing, "--json", "-")[1])
    named = found[listing] if listing == "methods" else found
    assert sorted(named) == registry.names(f"recft.{listing}")


def test_tasks_say_what_they_read_and_on_which_bases(run: Run) -> None:
    found = json.loads(run("tasks", "--json", "-")[1])
    assert found["purchase"]["bases"] == {"encoder": "classifier", "causal": "answers"}
    assert list(found["reply"]["bases"]) == ["causal"], "no encoder writes a reply"
    assert found["retrieval"]["reads"] == "towers" and found["purchase"]["reads"] == "pairs"
    out = run("tasks")[1]
    for task in found.values():
        assert all(f"data.{table}" in out for table in task["tables"]) and task["output"] in out


def test_compare_shows_runs_and_differences(run: Run, verb: Any, tmp_path: Path) -> None:
    found = {
        "split": "valid",
        "rows": [
            {"run": "a", "runs": 3, "n": 116, "scores": {"ndcg@10": 0.7}, "ci": {"ndcg@10": [0.6, 0.8]}},
            {"run": "b", "runs": 3, "n": 116, "scores": {"ndcg@10": 0.8, "mrr": 0.4}, "ci": {"ndcg@10": None}},
        ],
        "paired": {"b - a": {"ndcg@10": {"mean": 0.1, "ci": [0.05, 0.15], "n": 9}}},
    }
    noted = verb("compare", found)
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b", "--split", "valid")
    assert code == 0
    assert noted["args"] == ([tmp_path / "a", tmp_path / "b"],)
    assert noted["options"] == {"split": "valid"}
    assert "0.7000 [0.6000, 0.8000]" in out
    assert "+0.1000 [+0.0500, +0.1500] *" in out


def test_recommend_scores_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []

    def many(source: Path, table: Path, out: Path, top: int, **options: Any) -> dict[str, Any]:
        noted.append((source, table, out, top, options["items"]))
        return {"rows": 1234, "out": str(out), "top": top}

    module = ModuleType("recft.recommend")
    module.recommend_file = many  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recft.recommend", module)
    code, out, _ = run(
        "recommend", tmp_path, "--input", "q.csv", "--out", "r.parquet", "--top", "3", "--items", "i.csv"
    )
    assert code == 0
    assert noted == [(tmp_path, Path("q.csv"), Path("r.parquet"), 3, Path("i.csv"))]
    assert out == "1,234 lists: r.parquet\n"


def test_every_other_process_of_a_launch_is_silent(
    run: Run, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    verb("evaluate", REPORT)
    code, out, err = run("eval", tmp_path, "--json", tmp_path / "r.json")
    assert (code, out, err) == (0, "", "")
    assert not (tmp_path / "r.json").exists()


def test_a_reader_that_goes_away_does_not_change_the_code(
    verb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Gone:
        """A pipe whose reader has left."""

        def isatty(self) -> bool:
            return False

        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    verb("evaluate", REPORT)
    for words in ([], ["--json", "-"]):
        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(SystemExit) as left:
            cli.main(["eval", str(tmp_path), *words])
        sys.stdout.close()
        assert not left.value.code
