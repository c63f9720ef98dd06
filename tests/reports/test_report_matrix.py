"""The matrix follows what members declare, and says every reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recft import registry
from recft.registry import Refusal
from recft.reports.matrix import matrix, matrix_sheet
from recft.schema import MethodSettings


class Settings(MethodSettings):
    """Settings of a made-up method."""

    deep: bool = False


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods and two targets, made up."""
    methods = {
        "plain": SimpleNamespace(Config=Settings, summary="plain", mergeable=True, refusals=()),
        "picky": SimpleNamespace(
            Config=Settings,
            summary="picky",
            mergeable=False,
            refusals=(
                Refusal(when={"model.quantization": ("int8", "fp4"), "kind": "causal"}, reason="crashes", fix="x"),
                Refusal(when={"method.deep": True, "kind": "encoder"}, reason="too deep", fix="y"),
            ),
        ),
    }
    exports = {
        "whole": SimpleNamespace(summary="", needs=("merge",), extra=None, refusals=()),
        "graph": SimpleNamespace(
            summary="",
            needs=(),
            extra=None,
            refusals=(
                Refusal(
                    when={"method.name": "plain", "target": "graph", "kind": "encoder"}, reason="no graph", fix="z"
                ),
            ),
        ),
    }
    members: dict[str, dict[str, Any]] = {"recft.methods": methods, "recft.exports": exports}
    monkeypatch.setattr(registry, "names", lambda package: sorted(members[package]))
    monkeypatch.setattr(registry, "load", lambda package, name: members[package][name])


@pytest.mark.usefixtures("families")
def test_refusals_decide_the_cells() -> None:
    cells = {(cell["method"], cell["kind"], cell["quantization"]): cell for cell in matrix()["cells"]}
    assert len(cells) == 2 * 2 * 4
    refused = {key for key, cell in cells.items() if cell["refused"]}
    assert refused == {("picky", "causal", "int8"), ("picky", "causal", "fp4")}
    assert cells["plain", "encoder", "nf4"]["targets"] == {"whole": None, "graph": "no graph"}
    assert cells["plain", "causal", "nf4"]["targets"] == {"whole": None, "graph": None}
    assert "no weights to merge" in cells["picky", "encoder", "none"]["targets"]["whole"]


@pytest.mark.usefixtures("families")
def test_what_needs_a_setting_is_a_condition() -> None:
    conditions = matrix()["conditions"]
    assert [(one["when"], one["reason"]) for one in conditions] == [("method.deep: true, kind: encoder", "too deep")]


@pytest.mark.usefixtures("families")
def test_the_sheet_numbers_its_reasons() -> None:
    sheet = matrix_sheet(matrix())
    rows = {(row[0], row[1]): dict(zip(sheet.columns[2:], row[2:], strict=True)) for row in sheet.rows}
    assert rows["picky", "causal"]["none"] == "yes"
    reason = next(note for note in sheet.notes if note.endswith("crashes"))
    assert rows["picky", "causal"]["int8"] == f"no {reason.split()[0]}"
    assert rows["plain", "encoder"]["to whole"] == "yes"
    assert rows["plain", "encoder"]["to graph"].startswith("no [")


def test_the_real_members_are_all_in_it() -> None:
    found = matrix()
    assert {cell["method"] for cell in found["cells"]} == set(registry.names("recft.methods"))
    for cell in found["cells"]:
        assert sorted(cell["targets"]) == registry.names("recft.exports")
        assert cell["refused"] or None in cell["targets"].values(), "a combination that tunes but cannot be served"
