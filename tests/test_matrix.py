"""Every method on every base at every quantization: tuned, resumed to the same bytes, scored, exported, verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import recft.tune as tune_module
from recft import registry
from recft.errors import ExportError, RecipeError
from recft.evaluate import evaluate
from recft.export import export
from recft.recipe import Recipe
from recft.run import read_json
from recft.training.assemble import facts_of, load_adapter
from recft.tune import tune
from recft.verify import verify

QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
KINDS = ("encoder", "causal")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "adalora": {"rank": 3},
    "prefix": {"virtual_tokens": 4},
    "bottleneck": {"reduction_factor": 8},
}
"""Small sizes; a new method needs no line here."""

CELLS = list(product(registry.names("recft.methods"), QUANTIZATIONS, KINDS))


def method_of(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, **SETTINGS.get(name, {}), **settings}


def stop_at(step: int) -> Callable[[str, Mapping[str, Any]], None]:
    """A listener that is an interrupt in the middle of that step's end: logged, not yet saved."""

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "step" and values["step"] == step:
            raise KeyboardInterrupt

    return listen


def lines(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without times."""
    import json

    timed = ("examples_per_second", "tokens_per_second", "memory_bytes")
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def tuned_and_resumed(recipe: Recipe, folder: Path) -> Path:
    """A whole run, after a second one that was interrupted and resumed was found equal to it byte for byte."""
    whole, broken = folder / "whole", folder / "broken"
    summary = tune(recipe, whole)
    assert summary["exit_status"] == 0 and summary["steps"] == 4
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, broken, listen=stop_at(3))
    assert read_json(broken / "manifest.json")["exit_status"] == 130
    assert [path.name for path in sorted((broken / "checkpoints").iterdir())] == ["step-00000001", "step-00000002"]
    assert len([line for line in lines(broken) if "loss" in line]) == 3
    tune(recipe, broken, resume=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (broken / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes(), name
    assert lines(broken) == lines(whole)
    return whole


def scored(run: Path, recipe: Recipe) -> dict[str, Any]:
    """The test report, after a look at its rows."""
    report = evaluate(run)
    task = registry.load("recft.tasks", recipe.task.name)
    for row in ("base", "tuned"):
        assert set(report[row]) == set(task.metrics)
        assert all(value == value for value in report[row].values()), f"{row}: {report[row]}"
    assert report["n"] > 0 and read_json(run / "eval" / "test.json")["tuned"] == report["tuned"]
    return report


def served(run: Path, target: str, out: Path) -> dict[str, Any]:
    """What an export says of itself, after it was verified."""
    description = export(run, target, out)
    certificate = description["certificate"]
    assert certificate["verdict"] == "passed" and certificate["rows"] > 0
    assert certificate["effect_kl"] > 0
    assert verify(out)["certificate"]["verdict"] == "passed"
    return description


def slow_where(slow: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("method", "quantization", "kind"), CELLS)
def test_every_cell(method: str, quantization: str, kind: str, toy_recipe: Any, tmp_path: Path) -> None:
    recipe = toy_recipe(kind=kind, method=method_of(method), quantization=quantization)
    member = registry.load("recft.methods", method)
    assert registry.refused(member.refusals, facts_of(recipe)) is None, "this cell is refused: list it below"
    run = tuned_and_resumed(recipe, tmp_path)
    assert scored(run, recipe)["base"] != {}
    carried = [target for target in ("merged", "adapter") if carries(run, target)]
    for target in carried[:1]:
        served(run, target, tmp_path / target)


def carries(run: Path, target: str) -> bool:
    """Whether an export to this target is refused by the matrix."""
    from recft.evaluate import open_run
    from recft.export import _target

    folder, recipe, _ = open_run(run)
    try:
        _target(recipe, folder, target)
    except ExportError:
        return False
    return True
