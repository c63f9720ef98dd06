"""Families, names and refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recft import registry
from recft.errors import RecipeError
from recft.registry import Refusal


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "toy_family"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "_base.py").write_text("raise RuntimeError('imported')")
    (folder / "cold_start.py").write_text("MEMBER = 'cold'")
    (folder / "broken.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_family"
    for name in [name for name in sys.modules if name.startswith("toy_family")]:
        del sys.modules[name]


def test_names_are_the_files_without_importing_them(family: str) -> None:
    assert registry.names(family) == ["broken", "cold-start"]


def test_load_takes_hyphens_and_underscores(family: str) -> None:
    assert registry.load(family, "cold-start") == registry.load(family, "cold_start") == "cold"


def test_wrong_name_is_answered_with_the_nearest_and_all(family: str) -> None:
    with pytest.raises(RecipeError, match=r"toy_family: there is no 'cold-stat'\. Did you mean 'cold-start'\?.*broken"):
        registry.load(family, "cold-stat")


@pytest.mark.parametrize(
    ("facts", "holds"),
    [
        ({"method.name": "prefix", "method.layers": "all"}, False),
        ({"method.name": "prefix", "method.layers": "last 2"}, True),
        ({"method.name": "prefix", "method.layers": (0, 1)}, True),
        ({"method.name": "prefix"}, True),
        ({"method.name": "prefix", "method.layers": "last 2", "target": "onnx"}, False),
        ({"method.name": "lora", "method.layers": "last 2"}, False),
        ({}, False),
    ],
)
def test_refusal_holds_unless_a_fact_lifts_it(facts: dict[str, object], holds: bool) -> None:
    refusal = Refusal(
        when={"method.name": ("prefix", "soft")}, reason="r", fix="f", unless={"method.layers": "all", "target": "onnx"}
    )
    assert refusal.holds(facts) is holds
    assert registry.refused([refusal], facts) is (refusal if holds else None)


def test_every_condition_must_be_met() -> None:
    refusal = Refusal(when={"a": 1, "b": frozenset({2, 3})}, reason="r", fix="f")
    assert refusal.holds({"a": 1, "b": 3})
    assert not refusal.holds({"a": 1, "b": 4})
    assert not refusal.holds({"a": 1})
