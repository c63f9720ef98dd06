"""The model card: front matter that parses, and all that a person needs to serve and to judge a model."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ruamel.yaml import YAML

from recft.exports._base import Serve
from recft.models.text_model import Serving
from recft.reports.model_card import model_card

RECIPE = """\
name: 店 🛒
data:
  items:
    path: /home/jane/secret shop/products.csv
  queries:
    path: 'D:\\data\\queries.csv'
  texts: null
model:
  base: /home/jane/bases/my-bert
task:
  before: '/ not a path: '
eval:
  beside:
  - /home/jane/runs/other
"""

SERVES = (
    Serve("transformers", 'AutoModel.from_pretrained("shop")', "python"),
    Serve("vLLM", "vllm serve shop --runner pooling", tried=False),
    Serve("Ollama", refused="it has no rerankers: take onnx"),
)

CARD: dict[str, Any] = {
    "counts": {"items": 19406, "by_grade": {"0": 1}},
    "split": {
        "by": "query",
        "folds": 5,
        "train": {"records": 97123, "cold_item_share": 0.0},
        "test": {"records": 1027, "cold_item_share": 0.125},
    },
    "lengths": {
        "max_tokens": 48,
        "items": {"texts": 100, "rows_losing_tokens": 30},
        "queries": {"texts": 100, "rows_losing_tokens": 0},
        "columns": {"title": {"filled": 9, "rows_losing_tokens": 8}},
    },
    "dropped": {"exact duplicates | of events": 5268},
    "quarantined": {"rows": 17, "by_rule": {"data.items: every item needs a title": 17}},
}


def serving(head: str = "embedding", **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"task": "retrieval", "kind": "encoder", "pooling": "mean", "normalize": True}
    return Serving(head=head, max_tokens=48, **{**settings, **changes}).to_json()


def described(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": 2,
        "recft": "0.1.0",
        "name": "店 🛒 <script>",
        "target": "merged",
        "dtype": "float32",
        "source_run": "/home/jane/runs/shop",
        "task": {"name": "retrieval", "query_prompt": "query: ", "item_prompt": "", "before": "not read"},
        "base": {
            "model": {"base": "/home/jane/bases/my-bert", "revision": None, "quantization": "nf4"},
            "hash": "f33948fd",
        },
        "method": {"name": "lora", "rank": 16, "dora": True, "rslora": False, "alpha": None},
        "data": "bb75d63c",
        "onto": {"weights": "dequantized", "reason": "validation ndcg@10: dequantized 0.42; original 0.40"},
        "serving": serving(),
        "certificate": {
            "engine": "ONNX Runtime",
            "version": "1.27",
            "rows": 200,
            "split": "test",
            "dtype": "float32",
            "verdict": "passed",
            "wrong": [],
            "largest_score_difference": 2e-6,
            "kl": 1e-9,
            "tolerances": {"score": 1e-4},
            "k_bit": {"kl": 3e-4, "effect_kl": 0.07, "bound": 7e-4},
        },
    }
    return {**found, **changes}


def made(
    description: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    licences: Mapping[str, str] | None = None,
    serves: Sequence[Serve] = SERVES,
) -> str:
    return model_card(description or described(), report, CARD, RECIPE, licences or {}, serves)


def front(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return dict(YAML(typ="safe", pure=True).load(card.split("---\n")[1]))


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def tables_in(card: str) -> list[list[list[str]]]:
    """The cells of every table outside code blocks."""
    found: list[list[list[str]]] = []
    open_fence = inside = False
    for line in card.splitlines():
        open_fence ^= line.startswith("```")
        row = line.startswith("|") and not open_fence
        if row and not inside:
            found.append([])
        inside = row
        if row:
            found[-1].append(re.split(r"(?<!\\)\|", line)[1:-1])
    return found


def test_the_hub_reads_the_front_matter() -> None:
    hub = front(
        made(described(base={"model": {"base": "minilm"}, "hash": "f3"}), licences={"base": "apache-2.0"}),
    )
    assert hub["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (hub["license"], hub["pipeline_tag"], hub["library_name"]) == ("apache-2.0", "sentence-similarity", "onnx")
    assert hub["tags"] == ["recft", "retrieval", "lora", "merged"]
    # A folder of this machine is no name at the hub; a licence in words is no identifier there.
    local = front(made(licences={"base": 'My: "own" #licence (https://x.example)'}))
    assert "base_model" not in local
    assert (local["license"], local["license_name"]) == ("other", 'My: "own" #licence (https://x.example)')
    assert "license" not in front(made())


def test_nothing_of_the_users_machine_is_in_it(reports: dict[str, Any]) -> None:
    report = copy.deepcopy(reports["ranking"])
    report["run"]["base"] = "/home/jane/bases/my-bert"
    serves = [Serve("PEFT", 'AutoModel.from_pretrained("/home/jane/bases/my-bert")', "python")]
    card = made(report=report, serves=serves)
    assert "jane" not in card
    assert "D:" not in card
    recipe = section(card, "Recipe")
    for line in ("path: products.csv", "path: 'queries.csv'", "base: my-bert", "- other", "before: '/ not a path: '"):
        assert line in recipe, line
    assert 'from_pretrained("my-bert")' in card


def test_how_to_serve_is_exact_and_refusals_say_what_to_take() -> None:
    found = section(made(), "How to serve it")
    assert '### transformers\n\n```python\nAutoModel.from_pretrained("shop")\n```\n' in found
    untried = found.split("### vLLM")[1]
    assert "vllm serve shop --runner pooling" in untried
    assert "Not tried by recft's tests" in untried
    assert "Not tried" not in found.split("### vLLM")[0]
    assert "- **Ollama**: it has no rerankers: take onnx" in found
    ticks = section(made(serves=[Serve("x", "cat <<E\n````\nE")]), "How to serve it")
    assert "`````sh\ncat <<E\n````\nE\n`````" in ticks


def test_what_it_is_and_which_weights_it_lies_on() -> None:
    found = section(made(), "What it is")
    for words in ("lora: rank 16, dora", "quantized to nf4", "read back into float32", "original 0.40", "f33948fd"):
        assert words in found, words


def test_an_embedding_in_words() -> None:
    found = section(made(), "How text becomes numbers")
    for words in (
        "mean of the last hidden states",
        "length 1",
        "after 48 tokens",
        "right",
        '`"query: "` stands before',
    ):
        assert words in found, words
    assert "not read" not in found
    assert "before every item" not in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": "classifier", "labels": ("退款 🔥", "a|b`c"), "n_outputs": 2}, ["2 logits", '"退款 🔥"', '"a|b`c"']),
        ({"head": "classifier", "n_outputs": 5, "columns": (1, 3)}, ["2 logits", "columns 1, 3"]),
        (
            {"head": "answers", "kind": "causal", "labels": (" yes", " no"), "label_ids": (9891, 645)},
            ['`" yes"` (token 9891)', '`" no"` (token 645)', "last real token", "one string"],
        ),
        ({"head": "likelihood", "kind": "causal", "chat": True}, ["sum of log p", "chat template", "loses its start"]),
        (
            {"head": "classifier", "calibration": {"kind": "temperature", "temperature": 1.51234}},
            ["temperature 1.512", "log-odds"],
        ),
        ({"head": "classifier", "calibration": {"kind": "isotonic", "from": [0, 1], "to": [0, 1]}}, ["2 points"]),
        ({"head": "embedding", "pooling": "last", "normalize": False}, ["last real token", "keep their length"]),
    ],
)
def test_every_head_in_words(changes: dict[str, Any], words: list[str]) -> None:
    task = {
        "name": "purchase",
        "before": "历史\n",
        "between": " item: ",
        "after": " answer:",
        "query_prompt": "Frage: ",
    }
    card = made(described(serving=serving(**changes), task=task))
    found = section(card, "How text becomes numbers")
    for word in words:
        assert word in found, (word, found)
    assert ("Frage: " in found) == (changes["head"] == "embedding")
    assert (r'`"历史\n"`' in found) == (changes["head"] != "embedding")


def test_many_labels_are_cut_short() -> None:
    labels = tuple(f"class {number}" for number in range(500))
    found = section(made(described(serving=serving("classifier", labels=labels))), "How text becomes numbers")
    assert "460 more" in found
    assert len(found) < 3000


def test_scores_with_intervals_the_best_classic_row_and_slices(reports: dict[str, Any]) -> None:
    report = reports["ranking"]
    found = section(made(report=report), "How good it is")
    scores = tables_in(found)[0]
    names = [row[0].strip() for row in scores]
    assert names[2:] == ["base", "tuned", "fused", "fused without the model", "ease (best classic)"]
    assert "0.4210 [0.4010, 0.4410]" in scores[3][1]
    assert "0.4490 [0.4290, 0.4690]" in scores[6][1]
    assert "popularity" not in names
    assert "Protocol: test split by time; n = 1,027 records" in found
    assert "+0.0710 [+0.0600, +0.0820] * p < 0.001" in found
    assert "popularity" not in "".join(cell for row in tables_in(found)[1] for cell in row)
    assert "**Better.**" in found
    assert "**Worse.**" in found
    assert "marke=Büro & Co \\<b>" in found
    assert "cold_item" in found


def test_without_a_report_it_says_how_to_make_one() -> None:
    card = made()
    assert "`recft eval RUN`" in section(card, "How good it is")
    assert "unknown" in section(card, "Limits")


@pytest.mark.parametrize("name", ["ranking", "classes", "labels", "values", "minimal"])
def test_every_kind_of_report_makes_whole_tables(reports: dict[str, Any], name: str) -> None:
    card = made(report=reports[name])
    for rows in tables_in(card):
        assert len({len(row) for row in rows}) == 1, rows
        assert all(cell.strip(" -:") or place for place, cell in enumerate(rows[2])), rows[2]
    assert "<script>" not in re.sub(r"\\<script>", "", card)


def test_only_the_widest_slices(reports: dict[str, Any]) -> None:
    report = copy.deepcopy(reports["ranking"])
    one = report["slices"].pop("cold_item")
    report["slices"] = {f"brand={number}|\n茶": {**one, "n": number} for number in range(300)}
    found = section(made(report=report), "How good it is")
    assert "The 30 widest of 300." in found
    assert "brand=299\\| 茶" in found
    assert "brand=269" not in found


def test_the_certificate_in_words_and_figures() -> None:
    found = section(made(), "How close it is to the tuned model")
    assert "ONNX Runtime 1.27 on 200 held-out inputs of the test split" in found
    assert "**passed**" in found
    assert "largest score difference" in found
    failed = described()
    failed["certificate"] |= {"verdict": "failed", "wrong": ["scores differ by 1e-2"]}
    words = section(made(failed), "How close it is to the tuned model")
    assert "**FAILED**" in words
    assert "- scores differ by 1e-2\n\n" in words
    fitted = described()
    fitted["certificate"] |= {"own": {"fit": {"texts": 900, "steps": 200, "rank": 32, "missing_share": 0.0123}}}
    assert "1.2% of the adapter's effect is missing" in section(made(fitted), "How close it is to the tuned model")


def test_data_and_limits_say_what_was_lost(reports: dict[str, Any]) -> None:
    report = copy.deepcopy(reports["ranking"])
    report["n"] = 20
    report["slices"]["tail_item"]["paired"]["tuned - base"]["ndcg@10"] = {"mean": -0.1, "ci": [-0.2, -0.05]}
    card = made(report=report)
    data, limits = section(card, "Data"), section(card, "Limits")
    for words in (
        "bb75d63c",
        "19,406",
        "97,123",
        "exact duplicates \\| of events",
        "5,268",
        "every item needs a title",
    ):
        assert words in data, words
    for words in (
        "30.0% of the items",
        "12.5% of the test split's wanted items",
        "20 records only",
        "tail_item (n = 300) it is worse",
        "cold_item",
        "3.0e-04 (KL)",
    ):
        assert words in limits, words
    assert "queries are longer" not in limits
    assert "columns" not in limits


def test_an_unknown_licence_is_said_to_be_unknown() -> None:
    found = section(made(licences={"data": "CC BY 4.0"}), "Licence")
    assert "- Base: not stated: find out before you publish" in found
    assert "- Data: CC BY 4.0" in found


def test_it_says_how_to_verify() -> None:
    assert "recft verify FOLDER" in section(made(), "How to verify it")
