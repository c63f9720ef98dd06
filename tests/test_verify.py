"""Verify: the certificate again, from the folder alone or from the run, and nothing changed or added unseen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recft import registry
from recft.errors import ExportError
from recft.export import export
from recft.recipe import Recipe
from recft.run import hash_file, read_json, write_json
from recft.tune import tune
from recft.verify import open_export, verify

ToyRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def made(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, `out` and, without rows, `bare`."""
    folder = tmp_path_factory.mktemp("verify")
    tune(toy_recipe(method={"name": "lora", "rank": 4}, tune={"learning_rate": 0.05}), folder / "run")
    export(folder / "run", "merged", folder / "out")
    export(folder / "run", "merged", folder / "bare", rows=False)
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Iterator[Path]:
    """An export with rows that a test may spoil."""
    shutil.copytree(made / "out", tmp_path / "out")
    yield tmp_path / "out"


def figures(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description["certificate"].items() if key not in ("latency", "at_export")}


def test_the_folder_alone_gives_the_certificate_of_the_export(out: Path) -> None:
    old, found = read_json(out / "recft-export.json"), verify(out)
    assert figures(found) == figures(old)
    assert found["certificate"]["at_export"]["engine"] == "transformers"
    assert found["certificate"]["metrics"]["served"] and found["certificate"]["rows"] > 3
    assert {key: found[key] for key in old if key != "certificate"} == {
        key: old[key] for key in old if key != "certificate"
    }


def test_without_rows_the_run_gives_the_same_certificate(made: Path) -> None:
    assert not (made / "bare" / "certificate").exists()
    with pytest.raises(ExportError, match=r"was exported without rows .*fix: .*--run .*run\)"):
        verify(made / "bare")
    found = verify(made / "bare", run=made / "run")
    assert figures(found) == figures(verify(made / "out"))


def test_another_run_is_refused(made: Path, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ExportError, match=r"--run .*its adapter is not the export's: SHA-256 .*rule: SHA-256"):
        verify(made / "bare", run=tmp_path / "run")
    weights.unlink()
    with pytest.raises(ExportError, match=r"its adapter is not the export's: SHA-256 missing"):
        verify(made / "bare", run=tmp_path / "run")
    card = tmp_path / "run" / "data" / "card.json"
    write_json(card, read_json(card) | {"data_sha256": "0" * 64})
    with pytest.raises(ExportError, match=r"its data is not the export's: SHA-256 000000000000"):
        verify(made / "bare", run=tmp_path / "run")


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "modeling.py",
        "state.pkl",
        "adapter_config.json",
        "other.safetensors",
        "onnx/model.onnx",
        "chat_template.jinja",
        "vocab.txt",
        "items2.parquet",
        "library.so",
        "noending",
    ],
)
def test_an_added_file_that_an_engine_may_read_is_an_error(name: str, out: Path) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"{}")
    with pytest.raises(ExportError, match=rf"{name}: is no file of the export .*fix: remove it"):
        verify(out)


def test_rows_laid_beside_an_export_without_rows_are_not_taken(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "bare", tmp_path / "bare")
    shutil.copytree(made / "out" / "certificate", tmp_path / "bare" / "certificate")
    with pytest.raises(ExportError, match=r"rows.parquet: is no file of the export"):
        verify(tmp_path / "bare", run=made / "run")


def test_an_added_note_is_told_and_hidden_folders_are_passed_over(out: Path) -> None:
    (out / "NOTES.md").write_text("商品 🔥")
    (out / ".git").mkdir()
    (out / ".git" / "index").write_bytes(b"x")
    told: list[tuple[str, Mapping[str, Any]]] = []
    open_export(out, lambda event, values: told.append((event, values)))
    assert [event for event, _ in told] == ["warning"]
    assert "NOTES.md is no file of the export" in told[0][1]["text"]


def test_a_link_that_was_added_is_seen(out: Path, tmp_path: Path) -> None:
    (out / "model-2.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"model-2.safetensors: is no file of the export"):
        open_export(out)


@pytest.mark.parametrize("target", ["model.safetensors", "tokenizer.json", "certificate/rows.parquet"])
def test_one_changed_bit_is_found_in_every_file(target: str, out: Path) -> None:
    whole = (out / target).read_bytes()
    middle = len(whole) // 2
    (out / target).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ExportError, match=rf"{target}: has changed: SHA-256 .*fix: export again"):
        verify(out)


def restamped(out: Path, name: str) -> None:
    """Writes a file's hash anew, as whoever changes both would."""
    description = read_json(out / "recft-export.json")
    description["files"][name] = hash_file(out / name)
    write_json(out / "recft-export.json", description)


def test_a_changed_artefact_with_a_changed_hash_fails_by_its_scores(out: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(out / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.0.output.dense.weight"))
    tensors[name][:4] *= -1
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    restamped(out, "model.safetensors")
    with pytest.raises(ExportError, match=r"(?s)the certificate fails: scores differ by .* served"):
        verify(out)


def test_a_tokenizer_that_pads_left_fails(out: Path) -> None:
    path = out / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    restamped(out, "tokenizer_config.json")
    with pytest.raises(ExportError, match=r"pads on the left, the tuned model on the right"):
        verify(out)


def test_rows_that_were_changed_with_their_hash_fail_too(out: Path) -> None:
    path = out / "certificate" / "rows.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("outputs").list.eval(pl.element() * 1.01)).write_parquet(path)
    restamped(out, "certificate/rows.parquet")
    with pytest.raises(ExportError, match="scores differ by"):
        verify(out)


@pytest.mark.parametrize("key", ["files", "serving", "certificate", "target", "task"])
def test_a_description_that_lacks_a_part_is_an_error(key: str, out: Path) -> None:
    description = read_json(out / "recft-export.json")
    del description[key]
    write_json(out / "recft-export.json", description)
    with pytest.raises(ExportError, match=rf"says nothing of '{key}' .*fix: export again"):
        verify(out)


def test_an_older_certificate_is_an_error(out: Path) -> None:
    description = read_json(out / "recft-export.json")
    del description["certificate"]["asked"]
    write_json(out / "recft-export.json", description)
    with pytest.raises(ExportError, match=r"does not say what was asked .*fix: export again"):
        verify(out)


def test_trust_is_handed_to_the_target(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = registry.load("recft.exports", "merged")
    opened, seen = type(member).open, []

    def noted(self: Any, folder: Path, how: Any) -> Any:
        seen.append(how.trust)
        return opened(self, folder, how)

    monkeypatch.setattr(type(member), "open", noted)
    verify(out)
    verify(out, trust=True)
    assert seen == [False, True]
