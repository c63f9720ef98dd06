"""`distil`: a plain transformers model that scores nearly as a prefix or bottleneck run does, and says how nearly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import registry
from recft.errors import ExportError, RecipeError
from recft.exports._base import Opening, Source
from recft.exports._certificate import kl_divergence
from recft.models.tokens import Text
from recft.run import read_json
from recft.training.distilling import distilled

Make = Callable[..., Any]
BODIES = (
    "red leather office chair",
    "usb cable",
    "黑色 打印机 墨盒 ＵＳＢ 数据线",
    "🎒 oak desk",
    "a",
    "lamp, " * 40,
    "",
)
TAIL = " answer:"
TARGET = registry.load("recft.exports", "distil")
FIT = {"rank": 16, "steps": 120, "learning_rate": 3e-3, "batch_size": 16, "texts": 400}


def ready(source: Source, **settings: Any) -> Source:
    """The source with what the verb hands over."""
    draw = np.random.default_rng(0)
    words = " ".join(BODIES).split()
    bodies = [" ".join(draw.choice(words, 4)) for _ in range(200)] + list(BODIES)
    texts: list[Text] = list(bodies) if source.serving.head == "embedding" else [(body, TAIL) for body in bodies]
    config = TARGET.Config.model_validate({**FIT, **settings})
    source = replace(source, settings=config, texts=lambda most: texts[:most])
    return replace(source, fit=partial(distilled, source, "dequantized"))


@pytest.mark.parametrize(
    ("case", "method"),
    [("bert-mean", "prefix"), ("bert-mean", "bottleneck"), ("bert-head", "bottleneck"), ("llama-answers", "prefix")],
)
def test_a_stock_engine_gives_nearly_the_tuned_models_numbers(
    make_case: Make, tmp_path: Path, case: str, method: str
) -> None:
    made = make_case(case, method)
    TARGET.write(ready(made.source), tmp_path)
    engine = TARGET.open(tmp_path, Opening(made.serving))
    assert engine.distilled
    assert (engine.name, engine.dtype) == ("transformers", "float32")
    found = engine.encode(made.rows)
    before, after = (np.square(made.expected - other).mean() for other in (made.untuned, found))
    assert after < 0.5 * before
    if made.expected.shape[1] > 1 and made.serving.head == "embedding":
        ranked = [rows @ rows.T for rows in (made.expected, made.untuned, found)]
        assert kl_divergence(ranked[0], ranked[2], 0.05) < 0.5 * kl_divergence(ranked[0], ranked[1], 0.05)
    fit, wrong = engine.own(None)
    assert wrong == []
    assert fit["fit"] == read_json(tmp_path / "distilled.json")
    assert fit["fit"]["steps"] == 120


def test_it_lies_in_the_folder_as_merged_does(make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", "bottleneck")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of an interrupted export")
    TARGET.write(replace(ready(made.source, steps=2), dtype="bfloat16"), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "tokenizer.json", "distilled.json"} <= names
    assert "model-00001-of-00002.safetensors" not in names
    assert registry.load("recft.exports", "merged").open(tmp_path, Opening(made.serving)).dtype == "bfloat16"


def test_what_can_be_merged_is_refused(make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", "lora")
    with pytest.raises(ExportError, match=r"can be merged.*fix: export to merged"):
        TARGET.write(ready(made.source), tmp_path)
    refusal = registry.refused(TARGET.refusals, {"mergeable": True, "head": "embedding"})
    assert refusal is not None
    assert refusal.fix == "export to merged"
    assert registry.refused(TARGET.refusals, {"mergeable": False, "head": "embedding"}) is None


def test_a_likelihood_is_refused(make_case: Make, tmp_path: Path) -> None:
    made = make_case("llama-answers", "bottleneck")
    source = replace(made.source, serving=replace(made.serving, head="likelihood", carrier="answers"))
    with pytest.raises(ExportError, match=r"likelihoods.*fix: export to onnx or code"):
        TARGET.write(ready(source), tmp_path)
    assert registry.refused(TARGET.refusals, {"mergeable": False, "head": "likelihood"}) is not None


def test_without_a_fit_nothing_is_written(make_case: Make, tmp_path: Path) -> None:
    made = make_case("bert-mean", "bottleneck")
    with pytest.raises(ExportError, match="hands over a fit"):
        TARGET.write(made.source, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_is_served_as_merged_is(make_case: Make) -> None:
    serving = make_case("bert-mean", "bottleneck").serving.to_json()
    description = {
        "target": "distil",
        "name": "toy",
        "dtype": "float32",
        "serving": serving,
        "task": {"name": "retrieval"},
        "base": {"model": {"base": "minilm", "quantization": "none"}, "hash": ""},
        "method": {"name": "bottleneck"},
    }
    assert TARGET.serve(description) == registry.load("recft.exports", "merged").serve(description)
    assert TARGET.serve(description)


def test_its_settings_are_checked() -> None:
    with pytest.raises((RecipeError, ValueError), match="rank"):
        TARGET.Config.model_validate({"rank": 0})
