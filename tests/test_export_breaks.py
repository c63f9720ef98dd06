"""Exports interrupted, made twice at once, put in the wrong place or forged: one error, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recft.cli import main
from recft.errors import ExportError, RecftError
from recft.export import DESCRIPTION, ITEMS, ROWS, export
from recft.exports.adapter import Adapter
from recft.exports.merged import Merged
from recft.models.merging import PROGRESS
from recft.recipe import Recipe
from recft.recommend import recommend
from recft.run import hash_file, read_json, write_json
from recft.training.draft import MARKER, drafting, place
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def run(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("breaks") / "run"
    tune(toy_recipe(method={"name": "lora", "rank": 4}), folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for target in ("merged", "adapter"):
        export(run, target, folder / target)
    return folder


def files_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def describe(folder: Path, **changes: Any) -> None:
    write_json(folder / DESCRIPTION, read_json(folder / DESCRIPTION) | changes)


def seal(folder: Path) -> None:
    """A forger's work: a description that agrees with whatever lies in the folder."""
    describe(folder, files={name: hash_file(folder / name) for name in files_of(folder) - {DESCRIPTION}})


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Path, target: type, name: str, out: Path) -> None:
    """An export that ends when its artefact is written, as after a kill: its draft stays as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(target, "open", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("recft.training.draft.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            export(run, name, out)


@pytest.mark.parametrize(("first", "then"), [("merged", "adapter"), ("adapter", "merged")])
def test_nothing_of_an_interrupted_export_gets_into_another(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
) -> None:
    targets = {"merged": Merged, "adapter": Adapter}
    interrupt(monkeypatch, run, targets[first], first, tmp_path / "out")
    assert (tmp_path / "out.draft" / MARKER).is_file()
    export(run, then, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(exported / then)
    assert not (tmp_path / "out.draft").exists()


def test_the_same_export_goes_on_and_rows_of_the_interrupted_one_stay_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, run, Merged, "merged", tmp_path / "out")
    draft = tmp_path / "out.draft"
    assert (draft / PROGRESS).is_file()
    for name in (ROWS, ITEMS):
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_text("of the shop", encoding="utf-8")
    before = (draft / "model.safetensors").stat().st_mtime_ns
    export(run, "merged", tmp_path / "out", rows=False)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before  # not made again
    assert not {ROWS, ITEMS, MARKER, PROGRESS} & files_of(tmp_path / "out")
    assert not {MARKER, ROWS} & set(read_json(tmp_path / "out" / DESCRIPTION)["files"])


def test_one_export_at_a_time(run: Path, tmp_path: Path) -> None:
    with (
        drafting(tmp_path / "out", "of another"),
        pytest.raises(ExportError, match=r"out.draft: another export is writing it.*fix: wait"),
    ):
        export(run, "merged", tmp_path / "out")


@pytest.mark.parametrize("name", ["out.draft", "out.failed"])
def test_folders_beside_it_that_are_no_exports_are_left_alone(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(ExportError, match=rf"{name}: holds .*fix: move it away"):
        export(run, "merged", tmp_path / "out")
    assert (tmp_path / name / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_force_replaces_an_export_of_another_target_whole(run: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "打印机 🎒"
    shutil.copytree(exported / "merged", out)
    export(run, "adapter", out, force=True)
    assert files_of(out) == files_of(exported / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_what_stood_there_comes_back_if_the_new_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(FileNotFoundError):
        place(tmp_path / "no-draft", tmp_path / "out")
    assert files_of(tmp_path) == {"out/old"}


def test_outs_that_cannot_be(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused = {
        "..": True,
        ".": False,
        "/": True,
        "../file": True,
        "../file/x": False,
        "../link": False,
        "n" * 300: False,
    }
    for out, force in refused.items():
        with pytest.raises(ExportError, match=r"rule: .*fix: "):
            export(run, "merged", out, force=force)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "here"}


@pytest.mark.parametrize(
    "changes",
    [
        *({key: None} for key in ("target", "task", "serving", "table", "base", "onto", "files", "certificate")),
        {"format": 99},
        {"files": {"../run/manifest.json": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"config.json": 5}},
        {"task": {"name": "retrieval", "unheard": 1}},
        {"serving": {"head": "embedding"}},
        {"target": "../evil"},
    ],
    ids=str,
)
def test_a_forged_description_is_one_error(exported: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    shutil.copytree(exported / "merged", tmp_path / "out")
    describe(tmp_path / "out", **changes)
    for act in (verify, lambda folder: recommend(folder, query="椅子")):
        with pytest.raises(RecftError, match=r"rule: .*fix: "):
            act(tmp_path / "out")


def test_what_recommend_reads_is_what_was_certified(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "merged", tmp_path / "out")
    serving = read_json(tmp_path / "out" / DESCRIPTION)["serving"]
    describe(tmp_path / "out", serving=serving | {"max_tokens": 4})
    for act in (verify, lambda folder: recommend(folder, query="椅子")):
        with pytest.raises(ExportError, match=r"'serving' is not what the certificate was made for"):
            act(tmp_path / "out")


@pytest.mark.parametrize(("target", "name"), [("merged", "model"), ("adapter", "adapter_model")])
def test_a_pickle_is_refused_though_its_hash_is_right(exported: Path, tmp_path: Path, target: str, name: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported / target, out)
    (out / "sub").mkdir()
    torch.save(load_file(out / f"{name}.safetensors"), out / "sub" / "pytorch_model.bin")
    seal(out)
    with pytest.raises(ExportError, match=r"sub/pytorch_model.bin: is a pickle by its name"):
        verify(out)


def test_a_folder_cannot_trust_its_own_base(exported: Path, tiny_bert: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    shutil.copytree(exported / "adapter", out)
    shutil.copytree(tiny_bert, base)
    (base / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n", encoding="utf-8"
    )
    config = read_json(base / "config.json") | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_json(out / "base.json", read_json(out / "base.json") | {"base": str(base), "trust_remote_code": True})
    seal(out)
    for act in (verify, lambda folder: recommend(folder, query="椅子")):
        with pytest.raises(ExportError, match=r"base.json: its base .* brings model code.*--trust-remote-code"):
            act(out)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_one_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(sys.modules["recft.export"], "write_json", full)
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--to", "adapter", "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "error: disk: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.draft").exists()


def test_another_base_in_the_place_of_the_tuned_one_is_refused(
    toy_recipe: ToyRecipe, tiny_bert: Path, tmp_path: Path
) -> None:
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    shutil.copytree(tiny_bert, base)
    tune(toy_recipe(method={"name": "lora", "rank": 4}, model={"base": str(base)}), run)
    export(run, "adapter", out)
    assert recommend(out, query="椅子", top=1)
    weights = load_file(base / "model.safetensors")
    save_file({name: 1.3 * tensor for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"model.base: .*as they were when this run was tuned.*fix: put the base"):
        export(run, "merged", tmp_path / "merged")
    for act in (verify, lambda folder: recommend(folder, query="椅子")):
        with pytest.raises(ExportError, match=r"base .*: its weights are .*served over the base"):
            act(out)
