"""Everything that makes a served model another one than was tuned is caught: at export, and by `verify` later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recft import registry
from recft.errors import RecftError
from recft.export import DESCRIPTION, export
from recft.recipe import Recipe
from recft.run import hash_file, read_json, write_json
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change(path: Path, how: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    how(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def flip_one_delta(folder: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if "lora_B" in name)
        tensors[name] = -tensors[name]

    change(folder / "adapter_model.safetensors", flip)


def flip_one_weight(folder: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("layer.0.output.dense.weight"))
        row, column = divmod(int(tensors[name].abs().argmax()), tensors[name].shape[1])
        tensors[name][row, column] *= -1

    change(folder / "model.safetensors", flip)


def lose_the_head(folder: Path) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["classifier.weight"]

    change(folder / "model.safetensors", lose)


def pool_the_first_token(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {
        key: (key == "pooling_mode_cls_token") if key.startswith("pooling_mode_") else value
        for key, value in config.items()
    }
    config |= {"pooling_mode": "cls"} if "pooling_mode" in config else {}
    path.write_text(json.dumps(config), encoding="utf-8")


def pad_on_the_left(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", padding_side="left")


def untie_the_embedding(folder: Path) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()

    edit(folder / "config.json", tie_word_embeddings=False)
    change(folder / "model.safetensors", untie)


def change_the_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("<|", "["), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A run, a target, what is done to it, and a word of what is said."""

    recipe: dict[str, Any]
    target: str
    spoil: Callable[[Path], None]
    word: str


LORA = {"name": "lora", "rank": 4}
CASES = {
    "flipped sign in a delta": Case({"method": LORA}, "adapter", flip_one_delta, "scores differ"),
    "flipped sign in a weight": Case({"method": LORA}, "merged", flip_one_weight, "scores differ"),
    "lost head": Case({"task": "purchase", "method": LORA}, "merged", lose_the_head, "scores differ"),
    "wrong pooling": Case({"method": LORA}, "sentence-transformers", pool_the_first_token, "scores differ"),
    "right for left padding": Case({"kind": "causal", "method": LORA}, "merged", pad_on_the_left, "left"),
    "untied embedding": Case(
        {"task": "purchase", "kind": "causal", "method": LORA}, "merged", untie_the_embedding, "scores differ"
    ),
    "changed template": Case(
        {"task": "reply", "kind": "causal", "method": LORA}, "merged", change_the_template, "tokenized differently"
    ),
}


def rehashed(folder: Path) -> None:
    """The files' hashes as whoever changed them would leave them."""
    description = read_json(folder / DESCRIPTION)
    description["files"] = {name: hash_file(folder / name) for name in description["files"]}
    write_json(folder / DESCRIPTION, description)


@pytest.mark.parametrize("name", CASES)
def test_it_is_caught(name: str, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    tune(toy_recipe(**case.recipe, tune={"learning_rate": 0.05}), tmp_path / "run")
    export(tmp_path / "run", case.target, tmp_path / "good")
    assert verify(tmp_path / "good")["certificate"]["verdict"] == "passed"
    case.spoil(tmp_path / "good")
    with pytest.raises(RecftError, match="has changed: SHA-256"):
        verify(tmp_path / "good")
    rehashed(tmp_path / "good")
    with pytest.raises(RecftError, match=case.word):
        verify(tmp_path / "good")

    target = type(registry.load("recft.exports", case.target))
    write = target.write

    def spoilt(self: Any, source: Any, folder: Path) -> None:
        write(self, source, folder)
        case.spoil(folder)

    monkeypatch.setattr(target, "write", spoilt)
    with pytest.raises(RecftError, match=case.word):
        export(tmp_path / "run", case.target, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_stale_index_is_caught(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    for seed in (0, 1):
        tune(toy_recipe(method=LORA, seed=seed, tune={"learning_rate": 0.05}), tmp_path / f"run{seed}")
        export(tmp_path / f"run{seed}", "index", tmp_path / f"index{seed}")
    shutil.rmtree(tmp_path / "index0" / "tower")
    shutil.copytree(tmp_path / "index1" / "tower", tmp_path / "index0" / "tower")
    with pytest.raises(RecftError, match="has changed: SHA-256"):
        verify(tmp_path / "index0")
    rehashed(tmp_path / "index0")
    with pytest.raises(RecftError, match="tower"):
        verify(tmp_path / "index0")
