"""The real commands, as a shell runs them: the whole way, signals, a kill, two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recft import registry
from recft.errors import DataError
from recft.recipe import Recipe
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]

ROOT = Path(__file__).parents[1]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "adalora": {"rank": 3},
    "prefix": {"virtual_tokens": 4},
    "bottleneck": {"reduction_factor": 8},
}
QUICK = "lora"
"""The method whose whole way is walked in the default suite."""


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def recft(*words: object, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "recft", *map(str, words)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    return done


def begun(*words: object, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "recft", *map(str, words)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint is there."""
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < limit, f"{path} never came"
        time.sleep(0.002)


def written(recipe: Recipe, folder: Path) -> Path:
    path = folder / "toy.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    return path


def slow_unless_quick(methods: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.slow]) for name in methods]


@pytest.mark.parametrize("method", slow_unless_quick(registry.names("recft.methods")))
def test_the_whole_way(method: str, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = written(toy_recipe(method={"name": method, **METHODS.get(method, {})}, quantization="nf4"), tmp_path)
    recft("prepare", recipe, folder=tmp_path)
    assert (tmp_path / "runs" / "toy" / "data" / "card.json").is_file()
    tuned = recft("tune", recipe, "--json", "tuned.json", folder=tmp_path)
    assert "next: recft eval runs/toy" in tuned.stdout
    assert json.loads((tmp_path / "tuned.json").read_text())["exit_status"] == 0
    shown = recft("eval", "runs/toy", "--gate", "ndcg@10 >= 0", "--gate", "ndcg@10 >= 2", folder=tmp_path, code=3)
    assert "tuned" in shown.stdout and "base" in shown.stdout
    target = "merged" if registry.load("recft.methods", method).mergeable else "onnx"
    recft("export", "runs/toy", "--to", target, "--out", "served", folder=tmp_path)
    assert "passed" in recft("verify", "served", folder=tmp_path).stdout
    names = {path.name for path in (tmp_path / "runs" / "toy").iterdir()}
    assert {"recipe.yaml", "manifest.json", "data", "adapter", "checkpoints", "metrics.jsonl", "curves.png"} <= names


LONG: dict[str, Any] = {"max_steps": 400, "eval_every_steps": 400, "log_every_steps": 200}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_state_and_says_how_to_resume(
    number: signal.Signals, code: int, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    recipe = written(toy_recipe(tune={**LONG, "checkpoint_every_steps": 5}), tmp_path)
    with begun("tune", recipe, "--run", "my run", folder=tmp_path) as process:
        wait_for(tmp_path / "my run" / "checkpoints" / "step-00000005", process)
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
    assert process.returncode == code, message
    assert "state saved; resume with: recft tune" in message and "--run 'my run' --resume" in message
    assert "Traceback" not in message
    assert json.loads((tmp_path / "my run" / "manifest.json").read_text())["exit_status"] == code
    steps = sorted(path.name for path in (tmp_path / "my run" / "checkpoints").iterdir())
    assert steps[-1] > "step-00000005"


@pytest.mark.parametrize("method", slow_unless_quick(registry.names("recft.methods")))
def test_a_killed_run_is_resumed_to_the_same_bytes(method: str, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    settings = {"max_steps": 30, "eval_every_steps": 7, "checkpoint_every_steps": 3}
    made = toy_recipe(method={"name": method, **METHODS.get(method, {})}, quantization="nf4", tune=settings)
    recipe = written(made, tmp_path)
    with begun("tune", recipe, "--run", "killed", folder=tmp_path) as process:
        wait_for(tmp_path / "killed" / "checkpoints" / "step-00000006", process)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    recft("tune", recipe, "--run", "killed", "--resume", folder=tmp_path)
    recft("tune", recipe, "--run", "whole", folder=tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "killed" / "adapter" / name).read_bytes() == (
            tmp_path / "whole" / "adapter" / name
        ).read_bytes()


def test_two_processes_tune_what_one_does(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    """Gradients are summed over both; only the first writes and speaks."""
    settings = {"dropout": 0.0, "max_steps": 2, "eval_every_steps": 2}
    recipe = written(toy_recipe(method={"name": "lora", "rank": 4}, tune=settings), tmp_path)
    recft("tune", recipe, "--run", "one", folder=tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "recft", "tune", str(recipe), "--run", "two"],
                cwd=tmp_path,
                env=environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true", **variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert "adapter:" in said[0][0] and said[1][0] == ""
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    one, two = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-4), name
    losses = []
    for run in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_bad_data_leaves_no_run_behind_that_the_next_try_would_have_to_force(
    toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    broken = toy_recipe(tune={"max_steps": 1}).model_dump(mode="json")
    broken["data"]["items"]["path"] = str(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        tune(Recipe.from_mapping(broken), run=tmp_path / "run")
    assert tune(toy_recipe(tune={"max_steps": 1}), run=tmp_path / "run")["steps"] == 1


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_one_answer_alone_calibrates_nothing(
    kind: str, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction learned of yes alone would make every probability one half, or one."""
    monkeypatch.setattr(sys.modules["recft.tune"], "LEAST_CALIBRATION_PAIRS", 1)
    settings = {"max_steps": 1, "calibration": kind, "early_stopping": {"metric": "log_loss"}}
    recipe = toy_recipe("purchase", data={"labels": {"at_least": 0.0}}, tune=settings)
    notes: list[str] = []
    tune(
        recipe,
        tmp_path / "run",
        listen=lambda event, values: notes.append(values["text"]) if "text" in values else None,
    )
    assert any("one answer alone" in note for note in notes)
    assert json.loads((tmp_path / "run" / "serving.json").read_text())["purchase"]["calibration"] is None
