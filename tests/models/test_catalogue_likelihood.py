"""The likelihood of every item behind one body: equal to each item alone, whatever sits in the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM as AutoCausal
from transformers import GemmaConfig, GPT2Config, GPT2LMHeadModel, MistralConfig, PreTrainedModel, Qwen3Config

from recft import registry
from recft.errors import ModelError
from recft.methods._base import Plan
from recft.models.base import load_base, tokenizer_of
from recft.models.catalogue_likelihood import bodies_of, catalogue_trie, score_catalogue
from recft.models.encoder import encode
from recft.models.text_model import Serving, TextModel
from recft.models.trie import Trie
from recft.schema import ModelSettings

CPU = torch.device("cpu")
TITLES = [
    "red chair",
    "red chair with wheels, black",
    "红色 椅子 🎒",
    "黑色 打印机 墨盒",
    "黑色 打印机",
    "red",
    "usb cable",
    "黑色 打印机",
    "usb cable " * 6,
]
BODIES = ["history: oak desk, black lamp item:", "历史：数据线", "", "red chair " * 5]
END = 1
SERVING = Serving("t", "causal", "likelihood", "none", False, 96)

Llama = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def llama(tiny_llama: Path) -> Llama:
    def make(method: str = "", dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
        model = load_base(ModelSettings(base=str(tiny_llama), **settings), "answers", CPU, dtype).model
        if method:
            adapt(model, *method.split("-"))
        return model

    return make


def adapt(model: PreTrainedModel, name: str, placement: str = "") -> None:
    """An adapter that does something."""
    member = registry.load("recft.methods", name)
    samples = [{"input_ids": torch.tensor([[5, 8, 9, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}]
    settings: dict[str, Any] = {"virtual_tokens": 5} if name == "prefix" else {}
    if placement:
        settings["placement"] = placement
    adapter = member.attach(model, member.Config(name=name, **settings), Plan("causal", "toy", samples=samples))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval()


@torch.no_grad()
def slow(model: PreTrainedModel, body: Sequence[int], tail: Sequence[int]) -> float:
    """Log p of a tail, token by token from whole logits, nothing shared."""
    ids = torch.tensor([[*body, *tail]])
    logged = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=1)
    return float(sum(logged[len(body) - 1 + place, token] for place, token in enumerate(tail)))


def texts_of(tiny_llama: Path) -> tuple[list[list[int]], list[list[int]]]:
    tokenizer = tokenizer_of(ModelSettings(base=str(tiny_llama)))
    bodies = [[0, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in BODIES]
    return bodies, [tokenizer(title, add_special_tokens=False)["input_ids"] for title in TITLES]


def slow_scores(model: PreTrainedModel, bodies: list[list[int]], items: list[list[int]]) -> np.ndarray:
    return np.array([[slow(model, body, [*item, END]) for item in items] for body in bodies])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("", {}),
        ("", {"attention": "eager"}),
        ("lora", {}),
        ("adalora", {}),
        ("bottleneck-parallel", {}),
        ("bottleneck-houlsby", {"attention": "eager"}),
        ("prefix", {}),
        ("", {"quantization": "nf4"}),
        ("lora", {"quantization": "int8"}),
        ("prefix", {"quantization": "nf4"}),
    ],
    ids=str,
)
def test_every_item_scores_as_it_does_alone(llama: Llama, tiny_llama: Path, method: str, settings: Any) -> None:
    model = llama(method, **settings)
    bodies, items = texts_of(tiny_llama)
    found = score_catalogue(model, bodies, Trie.build(items, END))
    assert found.dtype == np.float32
    assert found.shape == (len(BODIES), len(TITLES))
    np.testing.assert_allclose(found, slow_scores(model, bodies, items), rtol=1e-4)
    np.testing.assert_array_equal(found[:, 4], found[:, 7])


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 40, 500])
def test_it_does_not_matter_how_the_trie_is_cut(llama: Llama, tiny_llama: Path, chunk_tokens: int) -> None:
    model = llama("prefix")
    bodies, items = texts_of(tiny_llama)
    trie = Trie.build(items, END)
    assert (len(trie.pieces(chunk_tokens)) > 1) == (chunk_tokens < trie.n_inner)
    found = score_catalogue(model, bodies, trie, chunk_tokens)
    np.testing.assert_allclose(found, slow_scores(model, bodies, items), rtol=1e-4)


def test_every_node_with_children_is_computed_once(llama: Llama, tiny_llama: Path) -> None:
    model = llama()
    bodies, items = texts_of(tiny_llama)
    trie = Trie.build(items, END)
    score_catalogue(model, bodies[:1], trie)  # the model has been checked
    met: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: met.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    score_catalogue(model, bodies[:1], trie)
    assert met == [-(-(len(bodies[0]) - 1) // 8) * 8, -(-trie.n_inner // 32) * 32]
    assert trie.n_inner < sum(map(len, items))


def test_in_half_precision_it_is_as_near_as_rounding_allows(llama: Llama, tiny_llama: Path) -> None:
    model, exact = llama(dtype=torch.bfloat16), llama()
    bodies, items = texts_of(tiny_llama)
    wanted = slow_scores(exact, bodies, items)
    found, alone = score_catalogue(model, bodies, Trie.build(items, END)), slow_scores(model, bodies, items)
    assert np.abs(found / wanted - 1).max() < 0.02
    assert np.abs(found / wanted - 1).mean() < 2 * np.abs(alone / wanted - 1).mean()


def test_a_catalogue_of_one_item_and_a_body_of_one_token(llama: Llama) -> None:
    model = llama()
    found = score_catalogue(model, [[0]], Trie.build([[7]], END))
    np.testing.assert_allclose(found, [[slow(model, [0], [7, END])]], rtol=1e-4)
    with pytest.raises(ModelError, match=r"body: no token.*rule:.*fix:"):
        score_catalogue(model, [[0], []], Trie.build([[7]], END))


def test_the_probabilities_of_a_whole_alphabet_sum_to_one(llama: Llama) -> None:
    model = llama()
    n = model.config.vocab_size
    found = score_catalogue(model, [[0, 5, 6]], Trie.build([[token] for token in range(n)]))
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(head_dim=16, num_key_value_heads=2),
        MistralConfig(num_key_value_heads=2, sliding_window=64),
        GemmaConfig(head_dim=16, num_key_value_heads=1),
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=50),
    ],
    ids=lambda config: config.model_type,
)
def test_other_architectures(config: Any) -> None:
    model = random_model(config)
    items = [[5, 6, 7], [5, 6], [8]]
    found = score_catalogue(model, [[3, 4, 9]], Trie.build(items, END))
    np.testing.assert_allclose(found[0], [slow(model, [3, 4, 9], [*item, END]) for item in items], rtol=1e-4)


def random_model(config: Any) -> PreTrainedModel:
    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if not isinstance(config, GPT2Config):
        config.update({**shape, "intermediate_size": 64, "pad_token_id": None})
        config.layer_types = None if getattr(config, "layer_types", None) is None else ["full_attention"] * 2
    config.initializer_range = 0.2
    torch.manual_seed(0)
    model: PreTrainedModel = AutoCausal.from_config(config)
    model.eval()
    return model


def test_a_window_that_is_too_small_and_a_model_that_heeds_no_mask_are_refused() -> None:
    model = random_model(MistralConfig(num_key_value_heads=2, sliding_window=6))
    with pytest.raises(ModelError, match=r"model.base: MistralForCausalLM .*7 tokens, and a sliding window of 6"):
        score_catalogue(model, [[3, 4, 5, 6, 7]], Trie.build([[8]], END))
    deaf = random_model(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=50))
    assert isinstance(deaf, GPT2LMHeadModel)
    deaf.transformer.register_forward_pre_hook(lambda _m, a, k: (a, {**k, "attention_mask": None}), with_kwargs=True)
    with pytest.raises(ModelError, match=r"model.base: GPT2LMHeadModel .*come out .*off"):
        score_catalogue(deaf, [[3, 4]], Trie.build([[8]], END))


@pytest.mark.parametrize("chunk_tokens", [8, 60, 4096])
def test_likelihoods_are_those_of_the_plain_forward(llama: Llama, tiny_llama: Path, chunk_tokens: int) -> None:
    model, tokenizer = llama("lora"), tokenizer_of(ModelSettings(base=str(tiny_llama)))
    texts = [(body, title) for body in BODIES for title in TITLES[len(body) % 3 :]]
    texts += [("alone", "黑色"), ("", ""), texts[0]]
    tokens = SERVING.tokens(tokenizer, texts)
    found = encode(TextModel(model, SERVING).eval(), tokenizer, texts, chunk_tokens)
    wanted = []
    for text in tokens:
        middle = text["tail_mask"].index(1)
        body, tail = text["input_ids"][:middle], text["input_ids"][middle:]
        wanted.append((slow(model, body, tail), len(tail)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_catalogue_scores_as_its_texts_do_behind_each_body(llama: Llama, tiny_llama: Path) -> None:
    model, tokenizer = llama(), tokenizer_of(ModelSettings(base=str(tiny_llama)))
    trie, longest = catalogue_trie(SERVING, tokenizer, TITLES)
    assert longest == TITLES[-1]
    bodies = bodies_of(SERVING, tokenizer, [*BODIES, "oak desk " * 99], longest)
    assert max(map(len, bodies)) + int(trie.depth[-1]) == SERVING.max_tokens
    found = score_catalogue(model, bodies, trie)
    texts = [(body, title) for body in BODIES for title in TITLES]
    wanted = encode(TextModel(model, SERVING).eval(), tokenizer, texts)[:, 0].reshape(len(BODIES), -1)
    np.testing.assert_allclose(found[:-1], wanted, rtol=1e-4)


def test_one_history_meets_several_pieces_at_once(
    llama: Llama, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recft.models import catalogue_likelihood

    model, tokenizer = llama(), tokenizer_of(ModelSettings(base=str(tiny_llama)))
    trie, longest = catalogue_trie(SERVING, tokenizer, TITLES)
    bodies = bodies_of(SERVING, tokenizer, BODIES[:1], longest)
    wanted = score_catalogue(model, bodies, trie)
    monkeypatch.setattr(catalogue_likelihood, "PIECE_TOKENS", 6)
    calls: list[int] = []
    model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = score_catalogue(model, bodies, trie)
    assert len(trie.pieces(6)) > 2 and len(calls) == 2, "the body, and all pieces together"
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
