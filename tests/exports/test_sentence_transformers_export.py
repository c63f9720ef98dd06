"""Bi-encoders, cross-encoders and causal answerers: stock sentence-transformers gives the tuned model's numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recft import registry
from recft.errors import ExportError
from recft.exports._base import Opening
from recft.models.encoder import encode
from recft.models.merging import Merge

sentence_transformers = pytest.importorskip("sentence_transformers")

MEMBER = registry.load("recft.exports", "sentence-transformers")
PROMPTS = {"query": "query 查询: ", "document": "item: "}
Make = Callable[..., Any]


def written(source: Any, folder: Path) -> Path:
    folder.mkdir()
    MEMBER.write(source, folder)
    return folder


def engine_of(case: Any, folder: Path) -> Any:
    return MEMBER.open(folder, Opening(case.serving))


@pytest.mark.parametrize("base", ["bert-mean", "llama-last", "llama-mean"])
def test_prompts_are_added_by_name_and_never_twice(base: str, make_case: Make, tmp_path: Path) -> None:
    made = make_case(base)
    source = dataclasses.replace(made.source, prompts=PROMPTS)
    folder = written(source, tmp_path / "out")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    texts = ["red chair", "黑色 墨盒", "🎒 oak desk"]
    tuned, tokenizer = source.tuned(), source.tokenizer
    for role, ask in (("query", model.encode_query), ("document", model.encode_document)):
        expected = encode(tuned, tokenizer, [PROMPTS[role] + text for text in texts])
        np.testing.assert_allclose(ask(texts), expected, atol=1e-5)
        np.testing.assert_allclose(model.encode(texts, prompt_name=role), expected, atol=1e-5)
    # The certificate's texts carry their prompts already.
    plain = encode(tuned, tokenizer, texts)
    np.testing.assert_allclose(engine_of(made, folder).encode(texts), plain, atol=1e-5)
    assert np.abs(model.encode_query(texts) - plain).max() > 1e-3
    assert model.similarity_fn_name == "cosine"


@pytest.mark.parametrize(("base", "prompts"), [("bert-mean", PROMPTS), ("llama-last", {})])
def test_files_mean_what_the_library_would_write(
    base: str, prompts: dict[str, str], make_case: Make, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    made = make_case(base)
    folder = written(dataclasses.replace(made.source, prompts=prompts), tmp_path / "out")
    transformer = Transformer(
        str(folder),
        max_seq_length=made.serving.max_tokens,
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    modes = {"mean": "mean", "last": "lasttoken"}
    modules = [transformer, Pooling(32, modes[made.serving.pooling]), Normalize()]
    own = sentence_transformers.SentenceTransformer(
        modules=modules, device="cpu", prompts=prompts or None, similarity_fn_name="cosine"
    )
    own.save(str(tmp_path / "library"), create_model_card=False)
    again = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    again.save(str(tmp_path / "again"), create_model_card=False)
    compare_folders(tmp_path / "again", tmp_path / "library")
    ours = json.loads((folder / "config_sentence_transformers.json").read_text())
    theirs = json.loads((tmp_path / "library" / "config_sentence_transformers.json").read_text())
    assert ours == theirs


def compare_folders(one: Path, other: Path) -> None:
    names = {str(file.relative_to(one)) for file in one.rglob("*") if file.is_file()}
    assert names == {str(file.relative_to(other)) for file in other.rglob("*") if file.is_file()}
    for name in sorted(names):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_older_readers_find_the_pooling(make_case: Make, tmp_path: Path) -> None:
    """vLLM before autumn 2026 looks for these very names, and pools as the architecture does where it finds none."""
    folder = written(make_case("llama-mean").source, tmp_path / "out")
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].rpartition(".") for module in modules] == [
        ("sentence_transformers.models", ".", name) for name in ("Transformer", "Pooling", "Normalize")
    ]
    pooling = json.loads((folder / modules[1]["path"] / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True and key.startswith("pooling")] == [
        "pooling_mode_mean_tokens"
    ]
    assert pooling["pooling_mode"] == "mean"
    length = json.loads((folder / "sentence_bert_config.json").read_text())
    assert length["max_seq_length"] == 24
    assert length["do_lower_case"] is False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", ["bert-head", "llama-answers"])
def test_cross_encoder_gives_the_tuned_models_numbers(base: str, dtype: str, make_case: Make, tmp_path: Path) -> None:
    made = make_case(base, dtype=dtype)
    folder = written(made.source, tmp_path / "out")
    engine = engine_of(made, folder)
    assert engine.dtype == dtype
    tolerance = 1e-4 if dtype == "float32" else 0.2
    assert np.abs(made.expected - made.untuned).max() > 1e-2
    found = engine.encode(made.rows)
    assert found.shape == made.expected.shape
    np.testing.assert_allclose(found, made.expected, atol=tolerance)
    alone = np.concatenate([engine.encode([row]) for row in made.rows])
    np.testing.assert_allclose(alone, found, atol=tolerance / 10)
    assert engine.encode([]).size == 0
    assert engine.tokenizer.model_max_length == made.serving.max_tokens
    own = [row["input_ids"] for row in made.serving.tokens(made.source.tokenizer, made.rows)]
    assert engine.tokens(made.rows) == own
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {".safetensors", ".json", ".jinja", ".txt"}


@pytest.mark.parametrize(("method", "quantization"), [("adalora", "none"), ("lora", "nf4")])
def test_answers_become_a_stock_classifier(method: str, quantization: str, make_case: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    made = make_case("llama-answers", method, quantization)
    folder = written(made.source, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    weights = load_file(folder / "model.safetensors")
    vocabulary = made.source.tuned().base.get_output_embeddings().weight
    torch.testing.assert_close(weights["score.weight"], vocabulary[list(made.serving.label_ids)])
    assert "lm_head.weight" not in weights
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "right"
    batch = tokenizer(list(made.rows), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    np.testing.assert_allclose(logits.numpy(), made.expected, atol=1e-4)


def test_pair_for_a_causal_base_is_read_as_one_text(make_case: Make, tmp_path: Path) -> None:
    """The toy's tokenizer, as Llama 3's, begins the second of a pair with a begin token: tuning never saw one."""
    made = make_case("llama-answers")
    folder = written(made.source, tmp_path / "out")
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    pairs = [("red leather office chair", " answer:"), ("黑色 墨盒", " answer:"), ("🎒 oak desk", " answer:")]
    expected = encode(made.source.tuned(), made.source.tokenizer, pairs)
    np.testing.assert_allclose(model.predict([list(pair) for pair in pairs]), expected, atol=1e-4)
    assert len(made.source.tokenizer("a", "b")["input_ids"]) == 4
    assert len(model.tokenizer("a", "b")["input_ids"]) == 3
    assert model.tokenizer("a b")["input_ids"] == made.source.tokenizer("a b")["input_ids"]


def test_untied_vocabulary_gives_its_own_rows(make_case: Make, tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "base")
    made = make_case("llama-answers", base=tmp_path / "base")
    found = engine_of(made, written(made.source, tmp_path / "out")).encode(made.rows)
    np.testing.assert_allclose(found, made.expected, atol=1e-4)


@pytest.mark.parametrize(("labels", "shown"), [(("yes",), "Sigmoid"), (("relevance",), "Identity")])
def test_predict_shows_what_the_task_means(
    labels: tuple[str, ...], shown: str, make_case: Make, tmp_path: Path
) -> None:
    made = make_case("bert-head")
    source = dataclasses.replace(made.source, serving=dataclasses.replace(made.serving, labels=labels))
    folder = written(source, tmp_path / "out")
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    pairs = [list(row) for row in made.rows]
    expected = torch.tensor(made.expected[:, 0])
    expected = torch.sigmoid(expected) if shown == "Sigmoid" else expected
    np.testing.assert_allclose(model.predict(pairs), expected.numpy(), atol=1e-4)
    config = json.loads((folder / "config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"].endswith(shown)
    assert config["id2label"] == {"0": labels[0]}
    # The order of a pair matters, and `rank` puts the query first.
    swapped = model.predict([pair[::-1] for pair in pairs])
    assert np.abs(swapped - expected.numpy()).max() > 1e-4
    ranked = {hit["corpus_id"]: hit["score"] for hit in model.rank(pairs[0][0], [pair[1] for pair in pairs])}
    np.testing.assert_allclose(ranked[0], expected[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_classifier_of_several_tasks_gives_its_own_columns(kind: str, make_classifier: Make, tmp_path: Path) -> None:
    case = make_classifier(kind, n_outputs=5, columns=(1, 3, 4), labels=("甲", "b", "c"))
    folder = written(case.source, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "甲", "1": "b", "2": "c"}
    found = engine_of(case, folder).encode(case.rows)
    assert found.shape == (len(case.rows), 3)
    np.testing.assert_allclose(found, case.expected, atol=1e-4)
    assert np.abs(case.expected).max() > 1e-2


@pytest.fixture
def make_classifier(make_case: Make, tiny_bert: Path, tiny_llama: Path) -> Make:
    """`make_classifier(kind, n_outputs, columns, labels)`: a classifier of single texts that several tasks share."""
    from recft.models.base import tokenizer_of
    from recft.models.text_model import Serving, TextModel
    from recft.schema import ModelSettings

    def make(kind: str, n_outputs: int, columns: tuple[int, ...], labels: tuple[str, ...]) -> Any:
        folder = {"bert": tiny_bert, "llama": tiny_llama}[kind]
        model = ModelSettings.model_validate({"base": str(folder), "compute_dtype": "float32"})
        names = {"bert": ("classifier.weight", "classifier.bias"), "llama": ("score.weight",)}[kind]
        generator = torch.Generator().manual_seed(2)
        shapes = {"classifier.bias": (n_outputs,)}
        heads = {name: torch.randn(shapes.get(name, (n_outputs, 32)), generator=generator) for name in names}
        change = partial(_shifted, generator=torch.Generator().manual_seed(5))
        merge = Merge(model, "classifier", n_outputs, "original", change, heads, seed=3)
        serving = Serving(
            task="classify",
            kind={"bert": "encoder", "llama": "causal"}[kind],
            head="classifier",
            pooling="none",
            normalize=False,
            max_tokens=24,
            labels=labels,
            n_outputs=n_outputs,
            columns=columns,
        )
        # `change` draws anew at each call: what is exported must be what is loaded here.
        loaded = merge.load()
        state = {name: module.weight.detach() for name, module in loaded.named_modules() if name in _ADAPTED}
        merge = dataclasses.replace(merge, change=lambda name, weight: state.get(name, weight))
        tokenizer = tokenizer_of(model)
        reference = TextModel(loaded, serving).eval()
        rows = ["red leather chair", "黑色 打印机", "🎒", "lamp " * 40]
        expected = encode(reference, tokenizer, rows)
        source = dataclasses.replace(
            make_case(f"{kind}-mean").source, serving=serving, tokenizer=tokenizer, merge=merge, model=model
        )
        return _Case(source, serving, rows, expected)

    return make


_ADAPTED = ("bert.encoder.layer.0.attention.self.query", "model.layers.0.self_attn.q_proj")


def _shifted(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return weight + 0.3 * torch.randn(weight.shape, generator=generator) if name in _ADAPTED else weight


@dataclasses.dataclass(frozen=True)
class _Case:
    source: Any
    serving: Any
    rows: list[str]
    expected: np.ndarray


def test_bent_logits_and_texts_that_end_with_padding_are_refused(
    make_case: Make, tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from recft.exports import _cross_encoder

    made = make_case("llama-answers")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = _closing("<s>")
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"end with the padding token.*fix: export to merged or onnx"):
        MEMBER.write(dataclasses.replace(made.source, tokenizer=tokenizer), tmp_path / "out")

    config = json.loads((tiny_llama / "config.json").read_text())
    base = tmp_path / "capped"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 30.0}))
    (base / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    merge = dataclasses.replace(made.source.merge, model=made.source.model.model_copy(update={"base": str(base)}))
    with pytest.raises(ExportError, match="final_logit_softcapping"):
        _cross_encoder._of_answers(merge, made.serving)


def _closing(token: str) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"$A {token}", pair=f"$A {token} $B {token}", special_tokens=[(token, 0)]
    )


def described(head: str, kind: str, task: dict[str, Any], labels: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"serving": {"head": head, "kind": kind, "labels": list(labels)}, "task": task}


def lines_of(description: dict[str, Any]) -> dict[str, Any]:
    return {entry.engine: entry for entry in MEMBER.serve(description)}


def test_lines_name_the_prompts_and_the_order() -> None:
    found = lines_of(described("embedding", "encoder", {"query_prompt": "it's a query: ", "item_prompt": ""}))
    assert "encode_query" in found["sentence-transformers"].lines
    assert found["sentence-transformers"].tried
    assert '"prompt_name": "query"' in found["TEI"].lines
    assert "a query: red chair" in found["vLLM"].lines
    assert not found["vLLM"].tried

    words = {"before": "P: ", "between": " Q: ", "after": "?"}
    found = lines_of(described("classifier", "encoder", {**words, "query_first": False}, ("relevance",)))
    assert "[('P: PRODUCT', ' Q: QUERY?')]" in found["sentence-transformers"].lines
    assert '"query": "P: PRODUCT", "texts": [" Q: QUERY?"]' in found["TEI"].lines
    assert '"text_1": ["P: PRODUCT"]' in found["vLLM"].lines
    assert found["vLLM"].lines.startswith("# tuned on PRODUCT first, QUERY after it")
    assert "# this order: PRODUCT then QUERY" in found["sentence-transformers"].lines
    found = lines_of(described("classifier", "encoder", {**words, "query_first": True}, ("relevance",)))
    assert '"query": " Q: QUERY?", "texts": ["P: PRODUCT"]' in found["TEI"].lines
    assert found["TEI"].lines.startswith("text-embeddings-router")

    found = lines_of(described("answers", "causal", {**words, "query_first": False}, ("yes", "no")))
    assert "predict('P: PRODUCT Q: QUERY?')" in found["sentence-transformers"].lines
    assert "take vLLM" in found["TEI"].refused
    assert not found["TEI"].lines
    assert '"input": ["P: PRODUCT Q: QUERY?"], "use_activation": false' in found["vLLM"].lines
    found = lines_of(described("classifier", "encoder", words, ("0", "1", "2")))
    assert "several" in found["vLLM"].refused
    assert '"inputs": [["P: HISTORY", " Q: ITEM?"]]' in found["TEI"].lines
    assert '"inputs": "TEXT"' in lines_of(described("classifier", "encoder", {}, ("a", "b")))["TEI"].lines
