"""The Markdown of a report: all that matters in it, and nothing of a shop's texts read as Markdown."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from recft.reports.summary import MOST_SLICES, summary

DIFFERENCE = {"mean": 0.25, "ci": [0.2, 0.3], "n": 96, "p": 0.001, "p_holm": 0.002}
REPORT: dict[str, Any] = {
    "format": 2,
    "name": "店 <b>shop</b>",
    "task": "retrieval",
    "n": 96,
    "base": {"ndcg@10": 0.5},
    "tuned": {"ndcg@10": 0.75},
    "baselines": {"bm25": {"ndcg@10": None}},
    "ci": {"tuned": {"ndcg@10": [0.7, 0.8]}},
    "paired": {"tuned - base": {"ndcg@10": DIFFERENCE}},
    "verdicts": ["The tuned model beats the base: +0.2500."],
    "protocol": {"split": "test", "n": 96, "split_by": "query"},
    "slices": {
        "cold_item": {"n": 9, "rows": {"base": {"ndcg@10": 0.1}, "tuned": {"ndcg@10": 0.2}}},
        "brand=打|印机 [x](http://y) `*z*`\n# head": {"n": 3, "rows": {"tuned": {"ndcg@10": 0.3}}},
    },
    "gates": [
        {"gate": "ndcg@10 >= 0.7", "passed": True, "line": "ndcg@10 = 0.7500 is >= 0.7"},
        {"gate": "ndcg@10 >= 0.8", "passed": False, "line": "ndcg@10 = 0.7500 is not >= 0.8"},
        {"gate": "mrr >= 0.8", "passed": False, "line": "mrr of tuned was not measured", "error": True},
    ],
}


def cells(line: str) -> list[str]:
    """The cells of a table's line: a bar after a backslash is no border."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_verdicts_gates_and_tables_are_there() -> None:
    text = summary(REPORT)
    lines = text.splitlines()
    assert lines[0] == r"## recft eval: 店 \<b>shop\</b>, test split: 2 of 3 gates broken"
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert ["✅", "ndcg@10 = 0.7500 is >= 0.7"] in rows
    assert ["❌", "ndcg@10 = 0.7500 is not >= 0.8"] in rows
    assert ["⚠️", "mrr of tuned was not measured"] in rows
    assert "- The tuned model beats the base: +0.2500." in lines
    assert ["tuned", "0.7500 [0.7000, 0.8000]"] in rows
    assert ["bm25", "-"] in rows
    assert any(row[0] == "tuned - base" and row[1].startswith(r"+0.2500 [+0.2000, +0.3000] \*") for row in rows)
    assert any(row[0] == "cold_item" for row in rows)
    assert any("test split by query; n = 96" in line for line in lines)
    assert text.endswith("\n") and "\n\n\n" not in text


def test_texts_of_the_shop_stay_in_their_cell() -> None:
    (line,) = [line for line in summary(REPORT).splitlines() if "打" in line]
    assert cells(line)[0] == r"brand=打\|印机 [x]\(http://y) \`\*z\*\` # head"
    assert len(cells(line)) == 4


def test_states_of_the_gates() -> None:
    assert "gates" not in summary({**REPORT, "gates": []}).splitlines()[0]
    assert summary({**REPORT, "gates": REPORT["gates"][:1]}).splitlines()[0].endswith(": 1 of 1 gates hold")


def test_several_tasks_have_a_part_each() -> None:
    rating = {"task": "rating", "base": {"mae": 0.75}, "tuned": {"mae": 0.5}}
    text = summary({**REPORT, "tasks": {"retrieval": REPORT, "rating": rating}})
    assert (
        text.index("### retrieval") < text.index("| cold_item") < text.index("### rating") < text.index("| tuned | 0.5")
    )
    assert text.count("✅") == 1


def test_many_slices_are_cut_and_counted() -> None:
    part = {"n": 9, "rows": {"tuned": {"ndcg@10": 0.2}}}
    text = summary({**REPORT, "slices": {f"brand={number}": part for number in range(1000)}})
    assert text.count("| brand=") == MOST_SLICES
    assert "960 more slices are in the report." in text


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_keeps_the_table_whole(name: str, line: str) -> None:
    report = {
        **REPORT,
        "name": name,
        "slices": {f"brand={name}": {"n": 3, "rows": {"tuned": {"ndcg@10": 0.3}}}},
        "gates": [{"gate": name, "passed": False, "line": line}],
    }
    lines = summary(report).split("\n")
    assert lines[0].startswith("## recft eval: ")
    assert all(sign.isprintable() for sign in "".join(lines))
    gates = lines[2:5]
    assert [len(cells(line)) for line in gates] == [2, 2, 2]
