"""Checkpoints and logs: what is damaged or of another run is said, and a resume forgets what came after."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from recft.errors import TuneError
from recft.recipe import Recipe
from recft.run import read_json
from recft.training import checkpoint, loop
from recft.training.checkpoint import Progress
from recft.training.signals import Terminated, waiting
from recft.training.step import gradients
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]


def stop_after(step: int) -> Callable[[str, Mapping[str, Any]], None]:
    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "step" and values["step"] == step:
            raise KeyboardInterrupt

    return listen


@pytest.fixture
def stopped(toy_recipe: ToyRecipe, tmp_path: Path) -> Path:
    """A run folder whose run was interrupted after its second checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        tune(toy_recipe(), tmp_path / "run", listen=stop_after(3))
    return tmp_path / "run"


def test_a_checkpoint_is_read_as_it_was_written_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    tensors = {"parameter/a": torch.randn(3, 2), "method/kept.x": torch.tensor([True, False])}
    for step in (1, 2, 3):
        progress = Progress(step=step, micro_batch=7, best=0.5, fingerprint="f", optimizer={"a/b": 1.5})
        checkpoint.save(tmp_path, progress, tensors)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    found, loaded = checkpoint.load(newest, "f")
    assert found == progress and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert checkpoint.latest(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", ["cut", "missing", "not JSON", "keys"])
def test_a_damaged_checkpoint_says_to_take_the_one_before(damage: str, stopped: Path, toy_recipe: ToyRecipe) -> None:
    newest = checkpoint.latest(stopped / "checkpoints")
    assert newest is not None
    state, progress = newest / "state.safetensors", newest / "progress.json"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:100])
    elif damage == "missing":
        state.unlink()
    elif damage == "not JSON":
        progress.write_text("{")
    else:
        progress.write_text(json.dumps({"steps": 3}))
    with pytest.raises(TuneError, match=r"step-00000002: is damaged .*fix: remove this folder") as caught:
        tune(toy_recipe(), stopped, resume=True)
    assert str(newest) in str(caught.value)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert tune(toy_recipe(), stopped, resume=True)["steps"] == 4


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Progress(step=1, fingerprint="old"), {"parameter/a": torch.zeros(1)})
    with pytest.raises(TuneError, match=r"another recipe or from other data.*fix: restore the recipe"):
        checkpoint.load(tmp_path / "step-00000001", "new")


def test_a_run_is_resumed_with_its_own_recipe_and_data_only(
    stopped: Path, toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path
) -> None:
    with pytest.raises(TuneError, match=r"recipe.yaml: differs from the recipe given.*fix: restore"):
        tune(toy_recipe(tune={"learning_rate": 1e-4}), stopped, resume=True)
    queries = toy_shop / "queries.csv"
    text = queries.read_text(encoding="utf-8")
    try:
        queries.write_text(text.replace(",3\n", ",2\n"), encoding="utf-8")
        with pytest.raises(TuneError, match=r"another recipe or from other data"):
            tune(toy_recipe(), stopped, resume=True)
    finally:
        queries.write_text(text, encoding="utf-8")
    assert tune(toy_recipe(), stopped, resume=True)["steps"] == 4


def test_half_a_line_in_the_log_and_lines_after_the_checkpoint_are_cut(stopped: Path, toy_recipe: ToyRecipe) -> None:
    log = stopped / "metrics.jsonl"
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "metr')
    tune(toy_recipe(), stopped, resume=True)
    steps = [(line["step"], "loss" in line) for line in map(json.loads, log.read_text().splitlines())]
    assert steps == [(1, True), (2, True), (2, False), (3, True), (4, True), (4, False)]


def test_tensorboards_file_is_written_again_on_resume(stopped: Path, toy_recipe: ToyRecipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = {file.name for file in stopped.glob("events.out.tfevents*")}
    tune(toy_recipe(), stopped, resume=True)
    (file,) = stopped.glob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("valid/ndcg@10")] == [2, 4]
    assert len(before) == 1


def test_a_finished_run_is_left_alone_and_a_claimed_folder_too(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TuneError, match=r"holds no run.*fix: leave --resume out"):
        tune(toy_recipe(), run, resume=True)
    done = tune(toy_recipe(), run)
    times = {file: file.stat().st_mtime_ns for file in (run / "adapter").iterdir()}
    again = tune(toy_recipe(), run, resume=True)
    assert again == {**done} and times == {file: file.stat().st_mtime_ns for file in times}
    with pytest.raises(TuneError, match=r"holds a run already.*fix: .*--resume.*--force"):
        tune(toy_recipe(), run)
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / "test.json").write_text("{}")
    assert tune(toy_recipe(tune={"max_steps": 2}), run, force=True)["steps"] == 2
    assert not (run / "eval").exists(), "scores of another adapter"
    assert [path.name for path in (run / "checkpoints").iterdir()] != []
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("number", "error", "status"), [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]
)
def test_a_signal_waits_for_the_end_of_the_step_and_saves_it(
    number: signal.Signals,
    error: type[BaseException],
    status: int,
    toy_recipe: ToyRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return gradients(*args)

    monkeypatch.setattr(loop, "gradients", interrupted)
    recipe = toy_recipe(tune={"checkpoint_every_steps": 100})
    with pytest.raises(error):
        tune(recipe, tmp_path / "run")
    assert read_json(tmp_path / "run" / "manifest.json")["exit_status"] == status
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    tune(recipe, tmp_path / "run", resume=True)
    assert len(calls) == 4, "a step was done twice or not at all"


def test_a_second_signal_does_not_wait() -> None:
    with pytest.raises(Terminated), waiting() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
