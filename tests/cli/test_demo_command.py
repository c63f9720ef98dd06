"""The demo's own part: folders, the recipe, the order of verbs; what verbs do is tested elsewhere."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import recft
from recft import cli
from recft.recipe import Recipe

REPORT: dict[str, Any] = {
    "name": "demo",
    "base": {"ndcg@10": 0.46},
    "tuned": {"ndcg@10": 0.64},
    "baselines": {"bm25": {"ndcg@10": 0.42}, "popularity": {"ndcg@10": 0.01}},
    "ci": {"tuned": {"ndcg@10": [0.6, 0.68]}},
    "paired": {"tuned - base": {"ndcg@10": {"mean": 0.18, "ci": [0.15, 0.21], "n": 90}}},
    "protocol": {"split": "test", "split_by": "query", "n": 90, "candidates": "all", "n_candidates": 800},
    "gates": [],
}
PLACES = [{"rank": 1, "item": "4000", "score": 0.9, "title": "Larkfell Bottle S/S"}]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """The verbs, replaced by stand-ins that note their calls."""
    noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    results = {
        "prepare": SimpleNamespace(folder=Path("data"), card={}),
        "tune": {},
        "evaluate": REPORT,
        "export": {"certificate": {"verdict": "pass"}},
        "recommend": PLACES,
    }

    def stand_in(name: str) -> Any:
        def verb(*args: Any, **options: Any) -> Any:
            noted.append((name, args, options))
            return results[name]

        return verb

    for name in results:
        monkeypatch.setitem(recft.__dict__, name, stand_in(name))
    return noted


def leave(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return int(left.value.code or 0)


def test_the_whole_job_in_order(calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert leave("demo", "--out", out, "--seed", "3", "--json", tmp_path / "demo.json") == 0
    assert [name for name, _, _ in calls] == ["prepare", "tune", "evaluate", "export", "recommend"]
    recipe = Recipe.load(out / "recipe.yaml")
    assert calls[1][1][0] == recipe
    assert (recipe.seed, recipe.task.name, recipe.method.name) == (3, "retrieval", "lora")
    assert (recipe.model.base, recipe.model.quantization) == ("minilm", "nf4")
    assert set(recipe.eval.baselines or ()) == {"bm25", "popularity"}
    assert recipe.data.items is not None
    assert Path(recipe.data.items.path) == (out / "shop" / "products.jsonl.gz").resolve()
    with gzip.open(recipe.data.items.path, "rt", encoding="utf-8") as lines:
        assert set(recipe.data.items.text) <= set(json.loads(next(lines)))
    stdout, stderr = capsys.readouterr()
    typed = [line[2:] for line in stderr.splitlines() if line.startswith("$ ")]
    assert [line.split()[1] for line in typed] == ["prepare", "tune", "eval", "export", "recommend"]
    for part in (
        "0.6400 [0.6000, 0.6800]",
        "bm25",
        "popularity",
        "verdict",
        "Larkfell Bottle",
        str(out / "rows.png"),
        "curves.png",
    ):
        assert part in stdout
    assert (out / "rows.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "demo.json").read_text())["report"] == REPORT


def test_the_command_lines_it_shows_are_right(
    calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed by hand, they call the same verbs with the same values."""
    monkeypatch.chdir(tmp_path)
    leave("demo", "--out", "a demo")
    demo_calls = [(name, args, {**options, "listen": None}) for name, args, options in calls]
    typed = [line[2:] for line in capsys.readouterr().err.splitlines() if line.startswith("$ ")]
    calls.clear()
    for line in typed:
        leave(*shlex.split(line)[1:])
    for (name, args, options), (_, demo_args, demo_options) in zip(calls, demo_calls, strict=True):
        assert args == demo_args, name
        for key, value in demo_options.items():
            assert key == "listen" or options[key] == value, (name, key)


def test_it_can_be_run_again_but_touches_no_other_folder(
    calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert leave("demo", "--out", out, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert calls[1][2]["force"] is False
    calls.clear()
    assert leave("demo", "--out", out) == 0
    assert calls[1][2]["force"] is True
    assert "--force" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    calls.clear()
    assert leave("demo", "--out", tmp_path / "mine") == 1
    assert "holds something else" in capsys.readouterr().err
    assert not calls


def test_the_chorus_files_take_the_shop_s_place(calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "chorus's"
    data.mkdir()
    assert leave("demo", "--out", tmp_path / "x", "--data", data) == 1
    assert "has no products_compact.jsonl.gz and no Broad_Query_Set_rated.csv" in capsys.readouterr().err
    for name in ("products_compact.jsonl.gz", "Broad_Query_Set_rated.csv"):
        (data / name).write_bytes(b"")
    assert leave("demo", "--out", tmp_path / "x", "--data", data) == 0
    recipe = calls[1][1][0]
    assert Path(recipe.data.items.path) == data / "products_compact.jsonl.gz"
    assert recipe.eval.candidates == "judged"
    assert not (tmp_path / "x" / "shop").exists()
