"""Attention in tiles: equal to transformers' own, in every shape and with every mask that a model brings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from recft.models import attention
from recft.models.attention import LENGTHS, NAME, attend, pays, put_in

LOWEST = torch.finfo(torch.float32).min


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(rows: int, n_queries: int, n_keys: int, heads: int = 6, shared: int = 3, size: int = 8) -> Any:
    """Query, key and value as a linear layer leaves them: heads behind positions in memory."""
    shapes = [
        (rows, n_queries, heads, size),
        (rows, n_keys, heads // shared, size),
        (rows, n_keys, heads // shared, size),
    ]
    return [drawn(*shape, seed=seed).transpose(1, 2).requires_grad_() for seed, shape in enumerate(shapes)]


def trees(rows: int, width: int, start: int = 5, each: int = 9, whole: int = 41) -> Tensor:
    """Which of the packed texts' tokens sees which, (rows, 1, T, T): what begins a text is shared by several."""
    last = torch.zeros(rows, width, dtype=torch.long)
    for row in range(rows):
        for first in range(-row, width, whole):
            end = min(first + whole, width)
            last[row, max(first, 0) : min(first + start, end)] = end
            for branch in range(first + start, end, each):
                last[row, max(branch, 0) : min(branch + each, end)] = min(branch + each, end)
    places = torch.arange(width)
    return ((places <= places[:, None]) & (places[:, None] < last[:, None]))[:, None]


def added(seen: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def results(function: Any, parts: Any, mask: Tensor | None, **options: Any) -> list[Tensor]:
    """What is read, and the gradients of query, key and value."""
    groups = parts[0].shape[1] // parts[1].shape[1]
    module = SimpleNamespace(num_key_value_groups=groups, training=True, is_causal=options.pop("causal", True))
    out = function(module, *parts, mask, scaling=options.pop("scaling", 0.3), dropout=0.0, **options)[0]
    turned = drawn(*out.shape, seed=9).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, parts, turned)]


def read_by(module: Any, parts: Any, mask: Tensor | None, **options: Any) -> Tensor:
    query, key, value = parts
    return attend(module, query, key, value, mask, **options)[0]


def off(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(params=[(7, 64), (2**20, 128)], ids=["small tiles", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with the sizes in use, once so small that a toy falls into many tiles."""
    scores, queries = request.param
    monkeypatch.setattr(attention, "SCORES", scores * 100)
    monkeypatch.setattr(attention, "QUERIES", queries if queries == 128 else 16)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("kind", ["added", "boolean", "one row for all", "a head each", "every key"])
def test_output_and_gradients_are_those_of_eager_attention(shared: int, kind: str) -> None:
    parts: Any = given(4, 90, 90, shared=shared)
    seen = trees(4, 90)
    mask = added(seen)
    if kind == "one row for all":
        mask = mask[:1]
    elif kind == "a head each":
        mask = mask.expand(-1, 6, -1, -1) * torch.linspace(0, 1, 6)[:, None, None] + drawn(1, 6, 90, 90, seed=4)
        mask = mask.masked_fill(~seen, LOWEST)
    elif kind == "every key":
        mask = torch.zeros(4, 1, 1, 90).masked_fill_(torch.arange(90) >= 70, LOWEST).expand(-1, -1, 90, -1)
    expected = results(eager_attention_forward, parts, mask)
    for found, wanted in zip(results(attend, parts, seen if kind == "boolean" else mask), expected, strict=True):
        assert found.shape == wanted.shape
        assert off(found, wanted) < 1e-5


@pytest.mark.usefixtures("tiles")
def test_behind_a_cache_keys_are_longer_than_queries() -> None:
    parts: Any = given(3, 33, 73)
    seen = torch.cat([torch.ones(3, 1, 33, 40, dtype=torch.bool), trees(3, 33)], dim=3)
    for found, wanted in zip(
        results(attend, parts, added(seen)), results(eager_attention_forward, parts, added(seen)), strict=True
    ):
        assert off(found, wanted) < 1e-5


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("causal", [True, False])
def test_without_a_mask_causality_is_the_modules_or_the_callers(causal: bool) -> None:
    parts: Any = given(2, 40, 40)
    expected = results(sdpa_attention_forward, parts, None, causal=causal)
    for found in (results(attend, parts, None, causal=causal), results(attend, parts, None, is_causal=causal)):
        assert all(off(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))


def test_one_query_sees_all_of_its_cache() -> None:
    parts: Any = given(2, 1, 30)
    expected = results(sdpa_attention_forward, parts, None)
    assert all(off(one, other) < 1e-5 for one, other in zip(results(attend, parts, None), expected, strict=True))


def test_the_scale_is_that_of_the_heads_where_none_is_given() -> None:
    parts: Any = given(2, 12, 12)
    expected = results(sdpa_attention_forward, parts, None, scaling=None)
    assert all(
        off(one, other) < 1e-5 for one, other in zip(results(attend, parts, None, scaling=None), expected, strict=True)
    )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("mixed", [False, True])
def test_in_bfloat16_it_is_as_near_to_float32_as_eager_attention(mixed: bool) -> None:
    parts: Any = given(4, 90, 90)
    expected = results(eager_attention_forward, parts, added(trees(4, 90)))
    short = [part.detach().to(torch.bfloat16).requires_grad_() for part in parts]
    mask = added(trees(4, 90), torch.bfloat16)
    slow = results(eager_attention_forward, short, mask)
    found = results(attend, short, added(trees(4, 90)) if mixed else mask)
    for one, other, wanted in zip(found, slow, expected, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert off(one, wanted) < 1.2 * off(other, wanted)


def test_a_tokens_numbers_do_not_change_with_its_neighbours() -> None:
    parts: Any = [part.detach() for part in given(1, 300, 300)]
    seen = trees(1, 300, whole=41)
    module: Any = SimpleNamespace(is_causal=True)
    before = read_by(module, parts, added(seen))
    for part in parts:
        part[:, :, 41:82] = drawn(1, part.shape[1], 41, 8, seed=7)
    after = read_by(module, parts, added(seen))
    assert torch.equal(before[:, :41], after[:, :41]) and torch.equal(before[:, 82:], after[:, 82:])
    assert not torch.allclose(before[:, 41:82], after[:, 41:82])


def test_keys_that_nobody_sees_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES", 50)
    query, key, _ = given(1, 100, 100)
    places = torch.arange(100)
    seen = ((places <= places[:, None]) & (places // 50 == places[:, None] // 50))[None, None]
    keys = [(tile.keys.start, tile.keys.stop) for tile in attention._tiles(query, key, added(seen))]
    assert keys == [(0, 50), (50, 100)]
    seen[:, :, 99] = False  # padding: sees nothing, reads something finite
    mask = added(seen)
    mask[:, :, 50:] = LOWEST
    module: Any = SimpleNamespace(is_causal=True)
    assert bool(attend(module, query, key, key, mask)[0].isfinite().all())


def test_a_mask_that_was_written_over_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES", 10)
    parts: Any = given(1, 20, 20)
    mask = added(trees(1, 20, whole=20))
    results(attend, parts, mask)
    mask.zero_()
    expected = results(eager_attention_forward, parts, mask)
    assert all(off(one, other) < 1e-5 for one, other in zip(results(attend, parts, mask), expected, strict=True))


def test_what_it_has_not_learned_goes_to_sdpa() -> None:
    parts: Any = given(2, 12, 12)
    module: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True, training=True)
    bias = drawn(1, 6, 12, 12).requires_grad_()
    query, key, value = parts
    expected = sdpa_attention_forward(module, query, key, value, None, position_bias=bias)[0]
    assert torch.equal(read_by(module, parts, None, position_bias=bias), expected)
    torch.manual_seed(1)
    assert not torch.equal(read_by(module, parts, None, dropout=0.5), read_by(module, parts, None, dropout=0.5))


SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 64,
    "attn_implementation": "eager",
}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "bert":
        return BertModel(BertConfig(**SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).eval()
    return LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=2)).eval()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_computes_as_with_eager_attention(kind: str) -> None:
    model = model_of(kind)
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([[20], [11], [4]])).long()
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert pays(model, torch.device("cpu"), torch.bfloat16) and not pays(model, torch.device("cpu"), torch.float32)
    put_in(model)
    assert model.config._attn_implementation == NAME
    found = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert off(found[mask.bool()], expected[mask.bool()]) < 1e-5
    if kind == "llama":
        start = model(input_ids=ids[:1, :12], use_cache=True)
        rest = model(input_ids=ids[:1, 12:], past_key_values=start.past_key_values, use_cache=True)
        assert off(rest.last_hidden_state, expected[:1, 12:]) < 1e-5


def test_a_model_with_capped_scores_keeps_its_own() -> None:
    model = model_of("llama")
    model.config.attn_logit_softcapping = 50.0
    assert not pays(model, torch.device("cpu"), torch.bfloat16)


def test_an_exported_graph_is_sdpas() -> None:
    model = model_of("llama")
    put_in(model)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        graph = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    assert "scaled_dot_product_attention" in str(graph.graph)


ours: Any = attend
SIZES = [7, 7, 7, 5, 3, 3, 1]
"""Lengths of texts that stand in one row, (1, 1, 1, n) as a mask."""


def lengths(sizes: list[int]) -> Tensor:
    return torch.tensor(sizes, dtype=LENGTHS)[None, None, None]


def test_texts_side_by_side_read_what_each_reads_alone() -> None:
    parts = given(1, sum(SIZES), sum(SIZES))
    found = results(attend, parts, lengths(SIZES))
    owner = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    apart = (owner[:, None] == owner)[None, None]
    for one, other in zip(found, results(attend, parts, apart), strict=True):
        assert off(one, other) < 1e-5
    changed = [part.detach().clone() for part in parts]
    for part in changed:
        part[:, :, SIZES[0] : 2 * SIZES[0]] += 1
    again = ours(SimpleNamespace(), *changed, lengths(SIZES), scaling=0.3)[0]
    same = owner != 1
    assert torch.equal(again[:, same], found[0][:, same]) and not torch.equal(again[:, ~same], found[0][:, ~same])


@pytest.mark.parametrize(
    ("rows", "keys", "sizes", "dropout"),
    [(2, 33, SIZES, 0.0), (1, 35, SIZES, 0.0), (1, 33, SIZES[1:], 0.0), (1, 33, SIZES, 0.1)],
)
def test_texts_are_never_left_to_one_another(rows: int, keys: int, sizes: list[int], dropout: float) -> None:
    with pytest.raises(ValueError, match="side by side"):
        ours(SimpleNamespace(), *given(rows, 33, keys), lengths(sizes), dropout=dropout)
