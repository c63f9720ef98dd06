"""Certificates: their figures by their formulas, and engines that serve something else, each told apart in words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.data.store import Records
from recft.exports import _certificate as certificate
from recft.exports._base import Engine, Opening
from recft.exports._rows import Rows
from recft.models.encoder import encode
from recft.models.text_model import TextModel
from recft.schema import EvalSettings, Tolerances
from recft.training.certifying import Asked, certify
from recft.training.exam import Exam
from recft.training.held_out import held_out, rows_of

WORDS = (
    "red",
    "leather",
    "office",
    "chair",
    "oak",
    "desk",
    "lamp",
    "usb",
    "cable",
    "黑色",
    "打印机",
    "墨盒",
    "🎒",
    "a",
)
TASK_OF = {"embedding": "retrieval", "classifier": "purchase", "answers": "relevance", "likelihood": "reply"}
METRIC_OF = {"embedding": "ndcg@10", "classifier": "auc", "answers": "ndcg@10", "likelihood": "nll"}

Make = Callable[..., Any]


def texts(n: int, seed: int, longest: int = 9) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) + f" {number}" for number in range(n)]


def records(n: int, pairs: int, n_items: int, **more: Any) -> Records:
    rng = np.random.default_rng(5)
    grades = np.tile([2.0] + [0.0] * (pairs - 1), n)
    return Records(
        keys=[f"u{row // 2}" for row in range(n)],
        queries=[*texts(n - 1, 1, 20), ""],
        users=None,
        starts=np.arange(n, dtype=np.int64) * 2,
        cuts=np.arange(n, dtype=np.int64) * 2 + 2,
        times=None,
        offsets=np.arange(n + 1, dtype=np.int64) * pairs,
        items=np.concatenate([rng.choice(n_items, pairs, replace=False) for _ in range(n)]).astype(np.int32),
        grades=grades.astype(np.float32),
        log_items=rng.integers(0, n_items, 2 * n).astype(np.int32),
        **more,
    )


@dataclasses.dataclass(frozen=True)
class Held:
    """A tuned model, its rows, what is asked of an artefact of it, and a faithful engine."""

    rows: Rows
    asked: Asked
    engine: Engine
    model: TextModel
    tokenizer: Any

    def but(self, **changes: Any) -> dict[str, Any]:
        """The certificate of the engine with something changed."""
        return certify(dataclasses.replace(self.engine, **changes), self.rows, self.asked)


@pytest.fixture
def make_held(make_case: Make) -> Make:
    """`make_held(case)`: `case` as of `make_case`; the engine is the tuned model itself, padded as it was tuned."""

    def make(case: str, distilled: bool = False, temperature: float = 0.05, **tolerances: float) -> Held:
        source = make_case(case).source
        name = TASK_OF[source.serving.head]
        settings: dict[str, Any] = {"name": name}
        if name in ("purchase", "relevance"):
            settings |= {"before": "history: ", "between": " item: ", "after": " answer:"}
        task = registry.load("recft.tasks", name)
        config = task.Config.model_validate(settings)
        serving = dataclasses.replace(
            source.serving,
            task=name,
            max_tokens=48,
            temperature=temperature if source.serving.head == "embedding" else 1.0,
        )
        model, tokenizer = TextModel(source.tuned().base, serving).eval(), source.tokenizer
        tokenizer.model_max_length = 48
        answer = partial(encode, model, tokenizer)
        kept: dict[str, Any] = {"candidates": "judged"} if task.reads(config) == "pairs" else {}
        exam = Exam(task, config, records(24, 4, 60), texts(60, 2), (METRIC_OF[serving.head],), EvalSettings(), **kept)
        rows = rows_of(held_out(exam, 200), answer, serving, tokenizer)
        asked = Asked(
            serving=serving,
            task=config,
            metrics=exam.names,
            metric=exam.names[0],
            gain="linear",
            tolerances=Tolerances(**tolerances),
            effect_kl=0.5,
            distilled=distilled,
        )
        return Held(rows, asked, Engine("toy", "1.0", answer, tokenizer, "float32"), model, tokenizer)

    return make


@pytest.mark.parametrize("case", ["bert-mean", "bert-head", "llama-last", "llama-answers"])
def test_the_tuned_model_itself_passes(case: str, make_held: Make) -> None:
    held = make_held(case)
    found = held.but()
    assert found["verdict"] == "passed" and not found["wrong"], found["wrong"]
    assert found["largest_score_difference"] <= 1e-6 and found["kl"] <= 1e-9
    assert found["metric_change"] == pytest.approx(0, abs=1e-9) and found["tokenization_differs"] == 0
    assert found["rows"] == len(held.rows.contexts) > 20
    assert found["latency"]["one_ms"] > 0 and found["latency"]["texts_per_second"] > 0
    assert found["max_tokens"] == {"tuned": 48, "artefact": 48}
    assert {"reference", "served"} == set(found["metrics"]) and found["metric_interval"] == pytest.approx([0, 0])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    expected = 1.0 if case != "bert-head" else None  # yes or no is no list
    assert found["top_k_agreement"] == expected


def test_rows_from_a_file_give_the_same_certificate(make_held: Make, tmp_path: Path) -> None:
    held = make_held("bert-mean")
    held.rows.write(tmp_path / "rows.parquet")
    again = Asked.from_json(json.loads(json.dumps(held.asked.to_json())))
    assert again == held.asked
    ours, theirs = held.but(), certify(held.engine, Rows.read(tmp_path / "rows.parquet"), again)
    for told in (ours, theirs):
        del told["latency"]
    assert ours == theirs


# -- sabotage ---------------------------------------------------------------------------------------------------------


def otherwise(held: Held, **serving: Any) -> Callable[[Sequence[Any]], np.ndarray]:
    model = TextModel(held.model.base, dataclasses.replace(held.model.serving, **serving)).eval()
    return partial(encode, model, held.tokenizer)


def pools_otherwise(held: Held) -> dict[str, Any]:
    return {"encode": otherwise(held, pooling="last")}


def does_not_normalize(held: Held) -> dict[str, Any]:
    return {"encode": otherwise(held, normalize=False)}


def scales(held: Held) -> dict[str, Any]:
    return {"encode": lambda some: 1.01 * held.engine.encode(some)}


def shuffles_items(held: Held) -> dict[str, Any]:
    def shuffled(some: Sequence[Any]) -> np.ndarray:
        found = held.engine.encode(some)
        return np.roll(found, 1, axis=0) if list(some) == list(held.rows.items) else found

    return {"encode": shuffled}


def cuts_texts_short(held: Held) -> dict[str, Any]:
    return {"encode": lambda some: held.engine.encode([text[:20] for text in some])}


def flips_a_sign(held: Held) -> dict[str, Any]:
    name = next(name for name, _ in held.model.base.named_parameters() if "layer.0.output.dense.base" in name)
    weight = held.model.base.get_parameter(name)
    row, column = divmod(int(weight.detach().abs().argmax()), weight.shape[1])

    def flipped(some: Sequence[Any]) -> np.ndarray:
        with torch.no_grad():
            weight[row, column] *= -1
        try:
            return held.engine.encode(some)
        finally:
            with torch.no_grad():
                weight[row, column] *= -1

    return {"encode": flipped}


@pytest.mark.parametrize(
    "sabotage", [pools_otherwise, does_not_normalize, scales, shuffles_items, cuts_texts_short, flips_a_sign]
)
def test_other_scores_fail_and_the_rows_that_differ_are_told(
    sabotage: Callable[[Held], dict[str, Any]], make_held: Make
) -> None:
    held = make_held("bert-mean")
    found = held.but(**sabotage(held))
    assert found["verdict"] == "failed"
    assert found["wrong"][0].startswith("scores differ by ")
    assert "export.tolerances.score: 0.0001; export again" in found["wrong"][0]
    assert found["worst_rows"] and all(" tuned, " in line and line.endswith(" served") for line in found["worst_rows"])


def test_order_alone_is_seen_where_scores_are_near(make_held: Make) -> None:
    held = make_held("bert-mean", score=10.0, metric=1.0)
    found = held.but(**shuffles_items(held))
    assert len(found["wrong"]) == 1 and found["wrong"][0].startswith("the first 10 agree in ")
    assert "export.tolerances.top_k_agreement: 0.99" in found["wrong"][0]


def test_another_tokenization_is_told_with_its_first_text(make_held: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    held = make_held("bert-mean")
    held.tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    words = whole["model"]["vocab"]
    words["oak"], words["chair"] = words["chair"], words["oak"]
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    other = AutoTokenizer.from_pretrained(tmp_path)
    found = held.but(tokenizer=other)  # its scores are as they were: tokens alone are other
    every = [*held.rows.contexts, *held.rows.items]
    named = [text for text in every if {"oak", "chair"} & set(text.split())]
    cut = [
        text
        for text in named
        if held.asked.serving.tokens(other, [text]) != held.asked.serving.tokens(held.tokenizer, [text])
    ]
    assert found["tokenization_differs"] == len(cut) > 0
    first = found["first_other_tokens"]
    assert first["text"].strip("'") in cut[0] and first["tuned"] != first["served"]
    assert f"{len(cut)} of {len(every)} texts are tokenized differently, the first " in found["wrong"][0]
    assert found["largest_score_difference"] <= 1e-6


def test_the_engines_own_tokens_are_asked_for_where_it_has_any(make_held: Make) -> None:
    held = make_held("llama-last")

    def ids(some: Sequence[Any], more: int = 0) -> list[list[int]]:
        return [[*row["input_ids"], *[1] * more] for row in held.asked.serving.tokens(held.tokenizer, some)]

    assert held.but(tokens=ids)["verdict"] == "passed"
    found = held.but(tokens=partial(ids, more=1))
    assert found["tokenization_differs"] == len(held.rows.contexts) + len(held.rows.items)
    assert found["wrong"][0].endswith("(export again: tokenizer and template are the run's)")


@pytest.mark.parametrize("case", ["bert-mean", "llama-answers"])
def test_a_tokenizer_that_pads_on_the_other_side_fails(case: str, make_held: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    held = make_held(case)
    held.tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path, padding_side="left", model_max_length=99)
    found = held.but(tokenizer=other)
    assert "pads on the left, the tuned model on the right" in found["wrong"][0]
    assert found["padding_side"] == {"tuned": "right", "artefact": "left"}
    assert found["max_tokens"] == {"tuned": 48, "artefact": 99}


def test_left_padding_moves_positions_and_is_told(make_held: Make) -> None:
    """A stock BERT padded on the left: right alone, wrong in a batch."""
    held = make_held("bert-mean")
    base, serving = held.model.base, held.asked.serving

    def left(some: Sequence[Any]) -> np.ndarray:
        rows = [row["input_ids"] for row in serving.tokens(held.tokenizer, some)]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            hidden = base(input_ids=ids, attention_mask=mask).last_hidden_state
        found = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return np.asarray((found / found.norm(dim=1, keepdim=True)).numpy(), np.float32)

    told = held.but(other_side=left)
    assert told["verdict"] == "passed", "how it would be padded otherwise decides nothing"
    assert told["padding_change"] > 1e-2 and told["padding_matters"]
    assert not held.but(other_side=held.engine.encode)["padding_matters"]
    assert held.but()["padding_change"] is None and held.but()["padding_matters"] is None
    found = held.but(encode=left)
    assert any("scores change by" in line and "with the batch size" in line for line in found["wrong"])
    assert any(line.startswith("scores differ by") for line in found["wrong"])


def test_a_lost_head_is_told_by_its_width(make_held: Make) -> None:
    held = make_held("bert-head")
    found = held.but(encode=otherwise(held, head="embedding", pooling="mean"))
    assert found["verdict"] == "failed" and "metrics" not in found
    assert "the engine gives 32 numbers a text, the tuned model 1: its head or its pooling is lost" in found["wrong"][0]


def test_a_new_random_head_fails(make_held: Make) -> None:
    held = make_held("bert-head")
    fresh = torch.nn.Linear(32, 1)

    def served(some: Sequence[Any]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(fresh(torch.tensor(otherwise(held, head="embedding", pooling="mean")(some))).numpy())

    assert any(line.startswith("scores differ by") for line in held.but(encode=served)["wrong"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("case", ["bert-mean", "bert-head"])
def test_what_is_no_number_never_passes(case: str, bad: float, dtype: str, make_held: Make) -> None:
    held = make_held(case, score=1e9, metric=10, top_k_agreement=0, effect=1e9, quantized_metric=10)
    victim = held.asked.serving.cut(held.tokenizer, held.rows.contexts)[3]

    def one(some: Sequence[Any]) -> np.ndarray:
        found = np.asarray(held.engine.encode(some))
        found[[row for row, text in enumerate(some) if text == victim]] = bad
        return found

    found = held.but(encode=one, dtype=dtype)
    assert found["verdict"] == "failed"
    assert "1 of " in found["wrong"][0] and "no number from the engine (NaN or infinite)" in found["wrong"][0]
    assert found["worst_rows"] and "served" in found["worst_rows"][0]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_no_number_in_a_ragged_batch_alone_never_passes(dtype: str, make_held: Make) -> None:
    held = make_held("bert-mean", score=1e9)

    def ragged(some: Sequence[Any]) -> np.ndarray:
        found = np.asarray(held.engine.encode(some))
        return found * np.nan if len(some) == 8 else found

    found = held.but(encode=ragged, dtype=dtype)
    assert any("passed in a ragged batch get no number" in line for line in found["wrong"])
    json.dumps(found, allow_nan=False)


def test_the_batch_size_must_not_matter(make_held: Make) -> None:
    held = make_held("bert-mean")

    def alone_is_other(some: Sequence[Any]) -> np.ndarray:
        return np.asarray(held.engine.encode(some) * (1.05 if len(some) == 1 else 1.0))

    found = held.but(encode=alone_is_other)
    assert [line.split(" by ")[0] for line in found["wrong"]] == ["scores change"]
    assert "(export.tolerances.score: 0.0001; serve one text a batch" in found["wrong"][0]
    assert held.but(encode=alone_is_other, dtype="int8")["verdict"] == "passed", "told: scales come of the batch"


def test_an_engines_own_figures_decide_too(make_held: Make) -> None:
    held = make_held("bert-mean")
    fine = held.but(own=lambda rows: ({"recall@100": np.float32(0.97), "rows": len(rows.contexts)}, []))
    assert fine["verdict"] == "passed" and fine["own"]["rows"] == len(held.rows.contexts)
    json.dumps(fine, allow_nan=False)
    poor = held.but(own=lambda rows: ({"recall@100": 0.2}, ["recall@100 is 0.2"]))
    assert poor["verdict"] == "failed" and poor["wrong"] == ["recall@100 is 0.2"]


def test_no_rows_are_no_certificate(make_held: Make) -> None:
    from recft.errors import ExportError

    held = make_held("bert-mean")
    nothing = Rows([], [], np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))
    with pytest.raises(ExportError, match="there are no rows"):
        certify(held.engine, nothing, held.asked)


# -- what is judged, by dtype -----------------------------------------------------------------------------------------


def noisy(held: Held, size: float) -> dict[str, Any]:
    """The engine with noise that belongs to a text, as rounding does."""

    def encode(some: Sequence[Any]) -> np.ndarray:
        found = held.engine.encode(some)
        for row, text in enumerate(some):
            seed = sum(map(ord, text if isinstance(text, str) else "".join(text)))
            found[row] += size * np.random.default_rng(seed).normal(size=found.shape[1])
        return found

    return {"encode": encode}


@pytest.mark.parametrize(
    ("dtype", "figures"),
    [
        ("float32", ["largest_score_difference", "top_k_agreement", "batch_change", "metric_change"]),
        ("bfloat16", ["kl", "top_k_agreement", "batch_change", "metric_change"]),
        ("float16", ["kl", "top_k_agreement", "batch_change", "metric_change"]),
        *((dtype, ["top_k_agreement", "metric_change"]) for dtype in ("int8", "nf4", "fp4", "q4_k")),
    ],
)
def test_each_dtype_is_judged_by_its_own_figures(dtype: str, figures: list[str], make_held: Make) -> None:
    held = make_held("bert-mean")
    found = held.but(dtype=dtype)
    assert [bound["figure"] for bound in found["judged"]] == figures
    limit = {bound["figure"]: bound["limit"] for bound in found["judged"]}
    assert limit["metric_change"] == (1e-3 if figures[0] in ("largest_score_difference", "kl") else 1e-2)
    if figures[0] == "kl":
        assert limit["kl"] == pytest.approx(0.01 * 0.5)


def test_rounding_of_sixteen_bits_passes_there_and_nowhere_else(make_held: Make) -> None:
    held = make_held("bert-mean", temperature=1.0, metric=0.2, top_k_agreement=0.5)
    change = noisy(held, 1e-3)
    assert held.but(**change, dtype="bfloat16")["verdict"] == "passed"
    assert any(line.startswith("scores differ") for line in held.but(**change)["wrong"])
    assert any(line.startswith("KL ") for line in held.but(**noisy(held, 0.5), dtype="bfloat16")["wrong"])
    wrong = next(line for line in held.but(**noisy(held, 0.5), dtype="float16")["wrong"] if line.startswith("KL"))
    assert "effect, 5.00e-01" in wrong and "export.tolerances.effect: 0.005" in wrong and "export.dtype" in wrong


def test_a_quantized_model_is_judged_by_its_task(make_held: Make) -> None:
    held = make_held("bert-mean", top_k_agreement=0.2)
    found = held.but(**noisy(held, 0.1), dtype="int8")
    assert abs(found["metric_change"]) > 1e-2
    low, high = found["metric_interval"]
    assert len(found["wrong"]) == 1 and found["wrong"][0].startswith("ndcg@10 changes by ")
    assert f"[{low:+.4f}, {high:+.4f}] (export.tolerances.quantized_metric: 0.01; " in found["wrong"][0]
    # In 16 bits an interval clear of zero fails, and one that holds zero does not.
    bounds = certificate.bounds_of("bfloat16", held.asked.tolerances, 0.5)
    within = found | {"kl": 0.0, "top_k_agreement": 1.0, "batch_change": 0.0}
    assert len(certificate.judge(within | {"metric_interval": [0.001, high]}, bounds)) == 1
    assert not certificate.judge(within | {"metric_interval": [-0.001, high]}, bounds)
    assert low <= found["metric_change"] <= high and found["top_k_agreement_exact"] <= found["top_k_agreement"]


def test_a_distilled_model_is_judged_by_how_close_it_comes(make_held: Make) -> None:
    near, far = 0.003, 2.0
    held = make_held("bert-mean", distilled=True, temperature=1.0)
    found = held.but(**noisy(held, near))
    assert found["verdict"] == "passed" and found["distilled"], found["wrong"]
    assert [bound["figure"] for bound in found["judged"]] == ["kl", "batch_change", "metric_change"]
    assert found["judged"][0]["limit"] == pytest.approx(0.1 * 0.5)
    found = held.but(**noisy(held, far))
    assert any("export.tolerances.distilled: 0.05" in line and "rank" in line for line in found["wrong"])


def bound(**changes: Any) -> certificate.Bound:
    return dataclasses.replace(certificate.Bound("metric_change", 0.01, "metric", "export again"), **changes)


@pytest.mark.parametrize(
    ("change", "interval", "or_interval", "passes"),
    [
        (0.009, None, False, True),
        (-0.009, [-0.02, -0.001], False, True),
        (-0.02, [-0.05, 0.01], False, False),
        (-0.02, [-0.05, 0.01], True, True),
        (-0.02, [-0.05, -0.01], True, False),
        (0.02, None, True, False),
        (float("nan"), None, True, False),
        (float("inf"), [float("nan"), 0.0], True, False),
    ],
)
def test_an_interval_that_holds_zero_passes_where_it_may(
    change: float, interval: list[float] | None, or_interval: bool, passes: bool
) -> None:
    found = {"metric_change": change, "metric_interval": interval, "metric": "ndcg@10"}
    assert bound(or_interval=or_interval).passes(found) is passes
    assert bool(certificate.judge(found, [bound(or_interval=or_interval)])) is not passes


def test_labels_are_compared_by_pairs(make_held: Make) -> None:
    held = make_held("bert-head", quantized_metric=1e-6)
    found = held.but(**noisy(held, 5.0), dtype="int8")
    assert found["metric"] == "auc" and found["metric_interval"][0] < found["metric_interval"][1]
    assert "auc changes by" in found["wrong"][0]
    assert found["metric_change"] == pytest.approx(
        found["metrics"]["served"]["auc"] - found["metrics"]["reference"]["auc"]
    )


def test_a_metric_that_the_tuned_model_has_not_is_not_judged(make_held: Make) -> None:
    held = make_held("bert-head")
    yes = dataclasses.replace(held.rows, grades=np.ones_like(held.rows.grades))
    found = certify(held.engine, yes, held.asked)
    assert found["metric_change"] is None and found["metrics"]["served"]["auc"] is None
    assert found["verdict"] == "passed"


def test_lists_of_pairs_agree_or_not(make_held: Make) -> None:
    held = make_held("llama-answers", score=1e9, metric=10.0)
    assert held.but()["top_k_agreement"] == 1.0
    found = held.but(encode=lambda some: -held.engine.encode(some))
    assert found["top_k_agreement"] < 0.5 and len(found["wrong"]) == 1


# -- the figures ------------------------------------------------------------------------------------------------------


def slow_kl(reference: np.ndarray, other: np.ndarray, temperature: float) -> float:
    total = 0.0
    for ours, theirs in zip(reference.tolist(), other.tolist(), strict=True):
        if len(ours) == 1:
            ours, theirs = [*ours, 0.0], [*theirs, 0.0]
        p, q = ([math.exp(score / temperature) for score in scores] for scores in (ours, theirs))
        for a, b in zip(p, q, strict=True):
            total += a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
    return total / len(reference)


@pytest.mark.parametrize("columns", [1, 2, 13])
def test_kl_is_its_formula(columns: int) -> None:
    rng = np.random.default_rng(columns)
    reference, other = rng.normal(size=(2, 6, columns))
    for temperature in (1.0, 0.3):
        found = certificate.kl_divergence(reference, other, temperature)
        assert found == pytest.approx(slow_kl(reference, other, temperature), rel=1e-9)
    assert certificate.kl_divergence(reference, reference, 0.1) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("columns", [2, 7, 19, 20, 30])
def test_agreement_is_the_share_of_shared_places(columns: int) -> None:
    rng = np.random.default_rng(columns)
    reference = rng.normal(size=(20, columns)).astype(np.float32)
    other = reference + 0.5 * rng.normal(size=(20, columns)).astype(np.float32)
    depth, shared = min(10, columns // 2), 0
    for ours, theirs in zip(reference.tolist(), other.tolist(), strict=True):
        first, second = (set(sorted(range(columns), key=lambda n: -s[n])[:depth]) for s in (ours, theirs))
        shared += len(first & second)
    agreed = certificate.agreement(list(reference), list(other), [1e-6] * 20)
    assert agreed == pytest.approx(shared / (20 * depth)) != 1
    found = certificate.compare(reference, other, 1.0)
    assert found["largest_score_difference"] == pytest.approx(np.abs(reference - other).max())
    assert found["mean_score_difference"] == pytest.approx(np.abs(reference - other).mean())


def test_near_equal_scores_may_change_places_by_the_ruler_of_the_dtype() -> None:
    scores = np.linspace(0.5, 1.0, 80)  # steps of 0.0063
    assert certificate.near([scores], "float32") == [1e-6]
    assert certificate.near([scores * 50], "float32") == pytest.approx([5e-5])
    assert certificate.near([scores, 2 * scores], "bfloat16") == pytest.approx([2 / 128] * 2)
    assert certificate.near([scores, 2 * scores], "int8") == pytest.approx([0.5 / 128, 1 / 128])
    assert certificate.near([scores], "nf4") == certificate.near([scores], "int8"), "no wider for a coarser model"
    ties = np.zeros(30)
    noise = ties + np.random.default_rng(0).normal(size=30) * 1e-7
    assert certificate.agreement([ties], [noise], [1e-6]) == 1.0
    swapped = scores.copy()
    swapped[[69, 70]] = swapped[[70, 69]]  # across the tenth place
    for dtype, expected in (("float32", 0.9), ("int8", 0.9), ("bfloat16", 1.0)):
        near = certificate.near([scores], dtype)
        assert certificate.agreement([scores], [swapped], near) == pytest.approx(expected), dtype


def test_nothing_to_order_is_no_agreement() -> None:
    assert certificate.agreement([], [], []) is None
    assert certificate.agreement([np.array([1.0])], [np.array([2.0])], [1e-6]) is None


def test_a_likelihood_is_compared_by_the_token() -> None:
    outputs = np.array([[-10.0, 5.0], [-300.0, 100.0]], np.float32)
    rows = Rows([("a", "b"), ("", "c")], [], outputs, np.zeros((0, 0), np.float32))
    assert certificate.reference_scores(rows, "likelihood").tolist() == [[-2.0], [-3.0]]
    assert certificate.scores_by(rows, lambda some: outputs * [2, 1], "likelihood").tolist() == [[-4.0], [-6.0]]


@pytest.mark.parametrize("target", ["merged", "sentence-transformers"])
def test_a_real_engine_passes_and_a_spoilt_artefact_fails(
    target: str, make_held: Make, make_case: Make, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    if target == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    held = make_held("bert-mean")
    source = dataclasses.replace(make_case("bert-mean").source, serving=held.asked.serving)
    member = registry.load("recft.exports", target)
    member.write(source, tmp_path)
    found = certify(member.open(tmp_path, Opening(held.asked.serving)), held.rows, held.asked)
    assert found["verdict"] == "passed", found["wrong"]
    file = next(tmp_path.rglob("model.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layer.0.output.dense.weight"))
    tensors[name][0] *= -1
    save_file(tensors, file, {"format": "pt"})
    found = certify(member.open(tmp_path, Opening(held.asked.serving)), held.rows, held.asked)
    assert found["verdict"] == "failed" and "scores differ by" in found["wrong"][0]
