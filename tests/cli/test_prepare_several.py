"""`recft prepare` of several tasks: each has data and a card of its own, and all are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recft import cli
from recft.data.store import Store
from recft.recipe import Recipe
from recft.run import read_json


def test_every_task_s_card_is_shown(
    toy_recipe: Callable[..., Recipe], toy_shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = toy_recipe("retrieval").model_dump(mode="json")
    raw.pop("task")
    log = {"path": str(toy_shop / "log.csv"), "user": "user", "item": "item", "time": "time"}
    raw["data"] |= {"interactions": log, "split": {"valid": 0.2, "test": 0.2}}
    recipe = Recipe.from_mapping(raw | {"tasks": ["retrieval", "next-item"]})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    asked = ["prepare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "data"), "--quiet"]
    with pytest.raises(SystemExit) as left:
        cli.main([*asked, "--json", str(tmp_path / "card.json")])
    assert not left.value.code
    shown, found = capsys.readouterr().out, read_json(tmp_path / "card.json")
    for name in ("retrieval", "next-item"):
        assert f"{name}: {tmp_path / 'data' / name}" in shown
        assert found["tasks"][name]["card"] == Store.open(tmp_path / "data" / name).card
    assert found["card"] == found["tasks"]["retrieval"]["card"], "what a reader of one task's card finds"
