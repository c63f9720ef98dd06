"""The page of a report: whole, closed to the network, safe with any text, and silent on what is not there."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import tomllib
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.reports._html import el
from recft.reports._svg import Dot, bar, dots, reliability, ticks
from recft.reports._words import claims
from recft.reports.page import comparison_page, page

Report = dict[str, Any]
VOID = {"meta", "br", "line", "rect", "circle", "path", "wbr"}
KINDS = ("ranking", "classes", "labels", "values", "several", "minimal")


class Outline(HTMLParser):
    """What stands in a page: tags with attributes, headings, links, words."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]


def titles(text: str, level: int = 2) -> list[str]:
    return [title for found, title in Outline(text).headings if found == level]


@pytest.fixture
def texts(reports: dict[str, Report], compared: Report) -> dict[str, str]:
    return {name: page(report) for name, report in reports.items()} | {"compared": comparison_page(compared)}


def test_pages_are_well_formed_and_can_be_read_aloud(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        found = Outline(text)
        levels = [level for level, _ in found.headings]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), name
        ids = found.attributes("id")
        assert max(Counter(ids).values(), default=1) == 1, name
        assert {link.removeprefix("#") for link in found.attributes("href")} <= set(ids), name
        kinds = Counter(tag for tag, _ in found.tags)
        assert kinds["caption"] == kinds["table"], name
        assert all("scope" in attributes for tag, attributes in found.tags if tag == "th"), name
        plots = [attributes for tag, attributes in found.tags if tag == "svg"]
        assert all(part.get("role") == "img" or part.get("aria-hidden") == "true" for part in plots), name
        assert ("html", {"lang": "en"}) in found.tags


def test_pages_hold_no_way_to_a_network_or_to_a_script(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        found = Outline(text)
        assert not {tag for tag, _ in found.tags} & {"script", "img", "link", "iframe", "object", "form", "base"}, name
        names = {key for _, attributes in found.tags for key in attributes}
        assert not {key for key in names if key.startswith("on")} | (names & {"src", "style"}), name
        style = re.search("<style>(.*?)</style>", text, re.DOTALL)
        assert style
        assert "url(" not in style[1]
        assert "@import" not in style[1]
        digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        policy = next(
            part["content"] for tag, part in found.tags if part.get("http-equiv") == "Content-Security-Policy"
        )
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        assert f"'sha256-{digest}'" in policy, "another style would not be applied"


def test_the_style_is_shipped() -> None:
    root = Path(__file__).parents[2]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["recft"]
    others = [path for path in (root / "recft").rglob("*") if path.suffix not in (".py", ".pyc") and path.is_file()]
    assert (root / "recft/reports/_page.css") in others
    for path in others:
        assert any(path.relative_to(root / "recft").match(pattern) for pattern in packaged), path


SECTIONS = {
    "slices": "Where it is good, and where not",
    "robustness": "Under misspelt and changed texts",
    "examples": "Where tuned and untuned differ most",
    "explanations": "Why this item",
    "gates": "Gates",
    "paired": "Differences, record by record",
    "data": "What happened to the data",
    "run": "What it cost",
    "protocol": "How it was measured",
}


def test_every_section_stands_and_falls_with_its_key(reports: dict[str, Report]) -> None:
    whole = titles(page(reports["ranking"]))
    for key, title in SECTIONS.items():
        assert title in whole
        fewer = copy.deepcopy(reports["ranking"])
        del fewer[key]
        # What else feeds the same section.
        also = {"slices": ["gaps"], "run": ["seconds"], "protocol": ["run", "predictions"]}.get(key, [])
        for other in also:
            fewer.pop(other, None)
        gone = set(whole) - set(titles(page(fewer)))
        assert title in gone, key
        assert gone <= {title} | {SECTIONS[other] for other in also if other in SECTIONS}, key
    assert "Class by class" in titles(page(reports["classes"]))
    assert "Can its probabilities be trusted?" in titles(page(reports["labels"]))
    assert not {"Class by class", "Can its probabilities be trusted?"} & set(whole)
    assert titles(page(reports["minimal"])) == ["In short", "Scores"]
    assert titles(page({})) == ["In short"]


def test_several_tasks_have_a_section_each(reports: dict[str, Report]) -> None:
    text = page(reports["several"])
    assert [title for title in titles(text) if title.startswith("Task")] == ["Task: next_item", "Task: purchase"]
    assert titles(text, 3).count("Scores") == 2
    assert titles(text).count("What it cost") == 1
    assert "Why this item" in titles(text, 3)
    assert "Can its probabilities be trusted?" in titles(text, 3)


def test_the_headline_says_what_was_tuned_and_how_sure_it_is(reports: dict[str, Report]) -> None:
    words = Outline(page(reports["ranking"])).text
    assert (
        "The base model minilm, its weights held in 4 bits (nf4), was tuned with lora for the task next_item" in words
    )
    assert "97,123 training records of a shop with 19,406 items" in words
    found = {claim.kind: claim.text for claim in claims(reports["ranking"])}
    assert "untuned base 0.3500: better by 0.0710" in words
    assert "best classic row (ease) 0.4490: worse by 0.0280" in found["worse"]
    assert "-0.0400 to -0.0160: clear of zero" in found["worse"]
    assert "p\u00a0=\u00a00.008" in found["worse"], "the corrected one"
    assert [claim.kind for claim in claims(reports["ranking"])] == ["better", "worse", "better"]
    assert [claim.kind for claim in claims(reports["classes"])] == ["better", "unclear"]
    assert reports["ranking"]["verdicts"][1] in words


def test_less_error_is_better(reports: dict[str, Report]) -> None:
    first, second = claims(reports["values"])
    assert (first.kind, second.kind) == ("better", "worse")
    assert "rmse, the untuned base 1.4000: better by 0.4900" in first.text
    assert "(factors) 0.8800: worse by 0.0300" in second.text, "the best is the lowest"


def test_a_difference_without_an_interval_is_never_certain() -> None:
    report = {
        "base": {"auc": 0.5},
        "tuned": {"auc": 0.9},
        "paired": {"tuned - base": {"auc": {"mean": 0.4, "ci": None}}},
    }
    (claim,) = claims(report)
    assert claim.kind == "unclear"
    assert "too few records" in claim.text


def test_scores_on_the_split_that_chose_the_step_are_called_so(reports: dict[str, Report]) -> None:
    reports["ranking"]["protocol"]["split"] = "valid"
    assert "which also chose the step" in Outline(page(reports["ranking"])).text
    assert "never saw" not in page(reports["ranking"])


def test_findings_of_the_data_are_told_in_words(reports: dict[str, Report]) -> None:
    words = Outline(page(reports["ranking"])).text
    assert "165 of 19,406 texts (0.9%) are cut at 64 tokens" in words
    assert "None of 135 texts are cut" in words
    assert "in test the order of candidates or their numbers go along" in words
    assert "set aside: data.items: every item needs a title" in words
    assert "6 min 3 s" in words
    assert "2.28 GiB" in words
    clean = reports["ranking"]
    clean["data"] |= {"dropped": {}, "quarantined": {"rows": 0, "by_rule": {}}}
    clean["data"]["order"]["test"]["item_number_auc"] = 0.51
    words = Outline(page(clean)).text
    assert "No row was dropped or set aside." in words
    assert "no target is told" in words


def test_effects_have_signs_and_not_colour_alone(reports: dict[str, Report]) -> None:
    text = page(reports["ranking"])
    assert re.search(r'<span class="part up4">Maus<sup>\+</sup></span>', text)
    assert re.search(r'<span class="part down1">leise<sup>−</sup></span>', text)
    assert re.search(r'<span class="part">&lt;b&gt;für&lt;/b&gt;</span>', text)
    assert "leave-one-out" in text
    assert "Maus: +0.3100" in Outline(text).text


def test_what_was_wanted_is_marked_in_words(reports: dict[str, Report]) -> None:
    text = page(reports["ranking"])
    assert text.count("✓ wanted: ") == 6, "two places of each of three examples"
    assert "(no title)" in text


def test_a_megabyte_of_title_is_cut(reports: dict[str, Report]) -> None:
    plain_size = len(page(reports["ranking"]))
    report = reports["ranking"]
    report["name"] = "n" * 1_000_000
    report["examples"][0]["tuned"] = ["保" * 1_000_000] * 1000
    report["explanations"][0]["parts"] = [{"text": "<" * 1000, "effect": 1.0}] * 100_000
    report["slices"] = {f"brand={number}": report["slices"]["cold_item"] for number in range(3000)}
    text = page(report)
    assert len(text) < plain_size + 1_500_000
    assert "2920 more slices are in the JSON report." in text


def test_matrices_of_many_classes_show_the_most_frequent(reports: dict[str, Report]) -> None:
    n = 200
    names = [f"class-{number}" for number in range(n)]
    counts = [[one if one == other else 0 for other in range(n)] for one in range(n)]
    report = {name: {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 1} for name in names}
    reports["classes"]["classes"] = {"labels": names, "rows": {"tuned": {"confusion": counts, "report": report}}}
    text = page(reports["classes"])
    heat = text.partition('class="heat"')[2].partition("</table>")[0]
    assert "class-199" in heat
    assert "class-169" not in heat
    assert "170 rarer classes are left out here." in text
    assert "50 more classes are in the JSON report." in text


def test_cells_of_a_matrix_are_as_dark_as_their_share(reports: dict[str, Report]) -> None:
    rows = {"tuned": {"confusion": [[3, 1], [0, 0]], "report": {}}}
    reports["classes"]["classes"] = {"labels": ["yes", "no"], "rows": rows}
    heat = page(reports["classes"]).partition('class="heat"')[2]
    assert re.findall(r'class="n (h\d)', heat)[:4] == ["h6", "h2", "h0", "h0"]


def test_pages_are_the_same_every_time(reports: dict[str, Report]) -> None:
    assert page(reports["several"]) == page(copy.deepcopy(reports["several"]))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_figures_never_break_a_page(reports: dict[str, Report], kind: str) -> None:
    def emptied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: emptied(part) for key, part in value.items()}
        if isinstance(value, float):
            return None
        return value

    def bare(value: Any) -> Any:
        """Without intervals and figures, as a split of one record leaves it."""
        emptied_ = emptied(value)
        for part in (emptied_, *(emptied_.get("tasks") or {}).values()):
            part["ci"] = dict.fromkeys(("base", "tuned"))
            for pair in (part.get("paired") or {}).values():
                for metric in pair:
                    pair[metric] = {"mean": None, "ci": None, "n": 0, "p": None, "p_holm": None}
        return emptied_

    Outline(page(bare(reports[kind])))


def test_runs_compared_are_a_table_a_plot_and_differences(compared: Report) -> None:
    text = comparison_page(compared)
    assert titles(text) == ["Scores", "Differences, record by record"]
    found = Outline(text)
    assert sum(tag == "svg" for tag, _ in found.tags) == 2
    assert "chorus-adalora <fast> 快" in found.text
    assert titles(comparison_page({"split": "test", "rows": [], "paired": {}})) == []


@given(st.text(st.characters(), max_size=200), st.text(max_size=50))
def test_any_text_comes_back_as_text(text: str, other: str) -> None:
    markup = el("p", text, class_=other)
    markup.encode("utf-8")
    found = Outline(markup)
    assert [tag for tag, _ in found.tags] == ["p"]
    whole = found.text
    kept = [sign for sign in text if sign.isprintable() and not 0xD800 <= ord(sign) < 0xE000]
    assert [sign for sign in whole if sign in kept] == [sign for sign in text if sign in kept]


@pytest.mark.parametrize("text", ["\x00", "\u202e", "\x85", "\u2066", "\ufffe"])
def test_signs_that_break_or_turn_a_page_are_left_out(text: str) -> None:
    assert el("b", f"a{text}b") == "<b>ab</b>"


def test_half_a_pair_becomes_a_question_mark() -> None:
    assert el("b", "a\ud83db").encode("utf-8") == b"<b>a?b</b>"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    high = low + span
    found = ticks(low, high)
    assert len(found) <= 6
    assert found == sorted(set(found))
    # They are rounded to the decimals of their distance.
    assert all(low - 1e-6 * span - 1e-9 <= tick <= high + 1e-6 * span + 1e-9 for tick in found)


def test_dots_stand_on_one_scale() -> None:
    drawn = dots([Dot("a", 0.2, [0.1, 0.3], True), Dot("b", 0.6), Dot("nan", float("nan"))], "t")
    across = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    ends = [float(x) for pair in re.findall(r'x1="([\d.]+)" x2="([\d.]+)"[^>]*range', drawn) for x in pair]
    assert len(across) == 2
    assert across[0] == pytest.approx(sum(ends) / 2, abs=0.1)
    # 0.4 lies between the dots, 0.2 between the interval's ends.
    assert across[1] - across[0] == pytest.approx(2 * (ends[1] - ends[0]), abs=0.5)
    assert dots([Dot("nan", float("nan"))], "t") == ""
    assert "nan" not in dots([Dot("one", 0.0)], "t")


def test_a_bar_is_as_long_as_its_value() -> None:
    drawn = bar(0.25, 0.5, 1.0)
    assert re.search(r'width="30" height="10" class="filled"', drawn)
    assert bar(None, 0.5, 1.0) == bar(0.5, 0.5, 0.0) == ""


def test_reliability_leaves_empty_bins_out() -> None:
    bins = [{"from": 0, "to": 0.5, "n": 0, "confidence": None, "share": None}]
    assert reliability({"tuned": bins}, "t") == ""
    bins.append({"from": 0.5, "to": 1, "n": 4, "confidence": 1.0, "share": 0.0})
    drawn = reliability({"tuned": bins}, "t")
    assert re.search(r'<circle cx="350" cy="304" r="7.5" class="dot own"/>', drawn), "right below, and large"
