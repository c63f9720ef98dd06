"""Every target with every method that `recft methods` says it carries, by the real commands; others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import cli, registry
from recft.export import DESCRIPTION
from recft.recipe import Recipe
from recft.recommend import recommend
from recft.reports.matrix import matrix
from recft.run import read_json
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]
Command = Callable[..., tuple[int, str, str]]

SIZES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "adalora": {"rank": 3},
    "prefix": {"virtual_tokens": 4},
    "bottleneck": {"reduction_factor": 8},
}
"""Small sizes; a new method needs no line here."""

MODULES = {"onnx": "onnxruntime", "sentence-transformers": "sentence_transformers", "index": "faiss", "gguf": "gguf"}
"""The module by which an optional extra is known to be installed."""


def cells() -> list[Any]:
    """Target, method, kind of base, and the reason where it is refused; the second kind of base is slow."""
    met: set[tuple[str, str]] = set()
    found = []
    for cell in matrix()["cells"]:
        for target, reason in cell["targets"].items() if cell["quantization"] == "none" else ():
            pair = target, cell["method"]
            slow = reason is None and pair in met
            met |= {pair} if reason is None else set()
            marks = [pytest.mark.slow] if slow else []
            found.append(pytest.param(target, cell["method"], cell["kind"], reason, marks=marks))
    return found


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def tuned(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tuned run, made once for each method, kind of base and task."""
    made: dict[tuple[str, str, str], Path] = {}

    def run(method: str, kind: str, task: str = "retrieval") -> Path:
        key = method, kind, task
        if key not in made:
            made[key] = tmp_path_factory.mktemp("-".join(key)) / "run"
            recipe = toy_recipe(
                task, kind, {"name": method, **SIZES.get(method, {})}, tune={"learning_rate": 0.03, "max_steps": 8}
            )
            tune(recipe, made[key])
        return made[key]

    return run


def told(target: str) -> list[str]:
    """What a target needs to be told besides: these toys are far from what real models are."""
    loose = {
        "code": ["export.trust_remote_code=true"],
        # An adapter of some steps on random weights has no shape that a LoRA of some steps could take.
        "distil": [
            "export.tolerances.distilled=2",
            "export.tolerances.quantized_metric=1",
            "export.tolerances.top_k_agreement=0.1",
            "export.targets.distil.steps=20",
        ],
        "gguf": ["export.dtype=float32"],
    }
    return [word for setting in loose.get(target, []) for word in ("--set", setting)]


@pytest.mark.parametrize(("target", "method", "kind", "reason"), cells())
def test_cell(
    target: str,
    method: str,
    kind: str,
    reason: str | None,
    tuned: Callable[..., Path],
    command: Command,
    tmp_path: Path,
) -> None:
    member = registry.load("recft.exports", target)
    if member.extra:
        pytest.importorskip(MODULES.get(member.extra, member.extra))
    run, out = tuned(method, kind), tmp_path / "out"
    code, shown, said = command("export", run, "--to", target, "--out", out, *told(target))
    if reason is not None:
        assert code == 1 and "cannot carry this run" in said and "fix: " in said, said
        assert not out.exists()
        return
    assert code == 0, said
    assert "passed" in shown
    description = read_json(out / DESCRIPTION)
    assert description["certificate"]["rows"] > 0 and description["certificate"]["effect_kl"] > 0
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.pkl")) and not list(out.rglob("*.pt"))
    trust = ["--trust-remote-code"] if target == "code" else []
    code, _, said = command("verify", out, *trust)
    assert code == 0, said
    code, _, said = command(
        "recommend", out, "--query", "red chair 打印机", "--top", 5, "--json", tmp_path / "list.json", *trust
    )
    assert code == 0, said
    served, ours = (
        json.loads((tmp_path / "list.json").read_text(encoding="utf-8")),
        recommend(run, query="red chair 打印机", top=5),
    )
    if target != "distil":
        np.testing.assert_allclose([one["score"] for one in served], [one["score"] for one in ours], atol=1e-3)
        assert served[0]["item"] == ours[0]["item"]


HEADS = [
    ("merged", "encoder", "purchase"),
    ("merged", "causal", "purchase"),
    ("merged", "causal", "reply"),
    ("adapter", "encoder", "purchase"),
    ("adapter", "causal", "purchase"),
    ("adapter", "causal", "reply"),
    ("onnx", "encoder", "purchase"),
    ("onnx", "encoder", "classify"),
    ("onnx", "causal", "purchase"),
    ("onnx", "causal", "reply"),
    ("sentence-transformers", "encoder", "purchase"),
    ("sentence-transformers", "encoder", "relevance"),
    ("sentence-transformers", "causal", "purchase"),
    ("gguf", "causal", "purchase"),
    ("gguf", "causal", "reply"),
    ("gguf-adapter", "causal", "reply"),
]


@pytest.mark.parametrize(("target", "kind", "task"), HEADS)
def test_other_heads(
    target: str, kind: str, task: str, tuned: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    extra = registry.load("recft.exports", target).extra
    if extra:
        pytest.importorskip(MODULES.get(extra, extra))
    run, out = tuned("lora", kind, task), tmp_path / "out"
    code, shown, said = command("export", run, "--to", target, "--out", out, *told(target))
    assert code == 0, said
    assert "passed" in shown
    code, _, said = command("verify", out)
    assert code == 0, said
