"""Recipes: YAML 1.2, overrides, every mistake at once, and a reference in the README that cannot drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from recft import registry
from recft.errors import RecipeError
from recft.recipe import Recipe, _settings_in
from recft.schema import MethodSettings, TaskSettings

README = Path(__file__).parents[1] / "README.md"
TEXT = """
name: shop
task: retrieval
data:
  items: {path: items.csv, id: no, text: [title]}
  queries: {path: q.csv, query: query, item: item, grade: grade}
method: lora
tune: {learning_rate: 3e-4}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "shop.yaml"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_yaml_1_2_numbers_and_words(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.tune.learning_rate == 3e-4
    assert recipe.data.items is not None and recipe.data.items.id == "no"


def test_paths_are_taken_from_the_recipe_s_folder(path: Path) -> None:
    items = Recipe.load(path).data.items
    assert items is not None and items.path == str(path.parent / "items.csv")


def test_overrides_come_last_and_make_room_in_a_short_form(path: Path) -> None:
    recipe = Recipe.load(path, ["method.rank=4", "task.temperature=0.1", "tune.learning_rate=1e-3", "tune.epochs=1"])
    assert recipe.method.model_dump()["rank"] == 4
    assert recipe.task.model_dump()["temperature"] == 0.1
    assert (recipe.tune.learning_rate, recipe.tune.epochs) == (1e-3, 1)


def test_a_resolved_recipe_loads_to_an_equal_one(path: Path) -> None:
    recipe = Recipe.load(path, ["method={name: adalora, layers: [0, 2]}", "model.quantization=nf4"])
    assert Recipe.from_mapping(ruamel.yaml.YAML(typ="safe").load(recipe.to_yaml())) == recipe


@example(seed=0, rate=1.0, name="0", prompt="\x85 a\u2028b")
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(1e-9, 1e3, allow_nan=False),
    name=st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}\Z"),
    prompt=st.text(max_size=30),
)
def test_any_values_survive_writing_and_reading(seed: int, rate: float, name: str, prompt: str) -> None:
    raw = ruamel.yaml.YAML(typ="safe").load(TEXT)
    raw |= {"seed": seed, "name": name, "task": {"name": "retrieval", "query_prompt": prompt}}
    raw["tune"] = {"learning_rate": rate}
    recipe = Recipe.from_mapping(raw)
    assert Recipe.from_mapping(ruamel.yaml.YAML(typ="safe").load(recipe.to_yaml())) == recipe


def test_all_mistakes_come_at_once_each_with_place_rule_and_fix(path: Path) -> None:
    path.write_text(
        TEXT.replace("lora", "lara").replace("learning_rate", "lerning_rate") + "sede: 1\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, ["tune.batch_size=none"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for words in (
        ("tune.lerning_rate", "Did you mean 'learning_rate'?"),
        ("tune.batch_size", "'none'"),
        ("method.name", "Did you mean 'lora'?"),
        ("sede", "Did you mean 'seed'?"),
    ):
        assert any(all(word in line for word in words) and "rule:" in line and "fix:" in line for line in lines), words


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune"], r"--set: 'tune'.*key=value"),
        (["=3"], r"--set: '=3'"),
        (["name.first=x"], r"'name' holds 'shop', not a mapping"),
        (["tune.epochs=[1"], r"--set tune.epochs.*not YAML"),
        (["tune.learning_rate=.nan"], r"tune.learning_rate"),
    ],
)
def test_bad_overrides_name_themselves(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(path, overrides)


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"a: [1\n", b"\xff\xfe\x00", b"name: \xe5\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        Recipe.load(file)


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a group of settings."""
    found = []
    for name, field in model.model_fields.items():
        inner = _settings_in(field.annotation)
        if inner is not None and not issubclass(inner, TaskSettings | MethodSettings):
            found += keys(inner, f"{prefix}{name}.")
        elif inner is None:
            found.append(prefix + name)
    return found


def test_the_readme_s_reference_has_every_key_and_no_other() -> None:
    expected = set(keys(Recipe))
    members: list[tuple[str, Any]] = [
        (family, registry.load(f"recft.{family}s", name))
        for family in ("task", "method")
        for name in registry.names(f"recft.{family}s")
    ]
    for family, member in members:
        expected |= {f"{family}.{key}" for key in keys(member.Config) if key != "name"}
    for name in registry.names("recft.exports"):
        expected |= {f"export.targets.{name}.{key}" for key in keys(registry.load("recft.exports", name).Config)}
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows if " | " in row and "." in row.split("`")[1]} | {
        "name",
        "seed",
    } == expected
