"""Tokenizers in GGUF: llama.cpp's own tokens are the tokenizer's, or the export is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recft import registry
from recft.errors import ExportError
from recft.exports._base import Opening
from recft.exports._gguf_engine import has_llama_cpp, vocabulary_for
from recft.exports._gguf_tokenizer import BYTE, CONTROL, NORMAL, PATTERNS, UNKNOWN, UNUSED, USER_DEFINED, vocabulary_of

pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed")

TEXTS = [
    "I'll take the RED chair, it's 1234567 and 3.50€!",
    "don't  use   two\n\nlines\r\n \tand tabs ",
    "黑色 打印机 墨盒 １２３ ＵＳＢ 数据线。很好！",
    "🎒🎒 crème brûlée \u200d🌫️ नमस्ते ½ ² Ⅷ",
    "<s> in the middle </s>",
    " leading",
    "a",
    "",
    "___---###",
]
CORPUS = [*TEXTS, "red chair oak desk lamp 12 123 1234 it's I'll don't"] * 3


def byte_level(steps: list[Any], normalizer: Any = None, whole: bool = False, **special: Any) -> Any:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(**special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def split(pattern: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def plain() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


BEGIN: dict[str, Any] = {"single": "<s> $A", "special_tokens": [("<s>", 0)]}
BOTH: dict[str, Any] = {"single": "<s> $A </s>", "special_tokens": [("<s>", 0), ("</s>", 1)]}
KNOWN: dict[str, Any] = {
    "gpt-2": lambda: byte_level([plain()]),
    "smollm": lambda: byte_level([pre_tokenizers.Digits(individual_digits=True), plain()]),
    **{
        name: (lambda pattern=pattern, whole=whole: byte_level(split(pattern), whole=whole, **BEGIN))
        for (pattern, whole), name in PATTERNS.items()
    },
}


def pieces(scheme: str = "", legacy: bool = False) -> Any:
    """A tokenizer as Llama 2's: pieces with ▁ for spaces, bytes for what no piece covers."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False, limit_alphabet=60
    )
    tokenizer.train_from_iterator([f"▁{word}" for text in CORPUS if "<" not in text for word in text.split()], trainer)
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    vocab = [token for token, _ in sorted(parts["model"]["vocab"].items(), key=lambda entry: entry[1])]
    order = {token: number for number, token in enumerate(vocab)}
    # As SentencePiece's: every pair of pieces that make a piece, in the order of what they make.
    merges = sorted(
        (
            (token[:cut], token[cut:])
            for token in vocab
            for cut in range(1, len(token))
            if token[:cut] in order and token[cut:] in order and not token.startswith("<")
        ),
        key=lambda pair: order[pair[0] + pair[1]],
    )
    known = {
        token: number for number, token in enumerate([*vocab[:3], *(f"<0x{n:02X}>" for n in range(256)), *vocab[3:]])
    }
    made = Tokenizer(models.BPE(known, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocab[:3]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


PIECES: dict[str, Any] = {
    "prepend": lambda: pieces(legacy=True),
    "first": lambda: pieces("first"),
    "never": lambda: pieces("never"),
}


def engine_tokens(tokenizer: Any, make_case: Callable[..., Any], folder: Path, texts: list[str]) -> list[list[int]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=32, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    made = make_case("llama-last", base=folder / "base", dtype="float16")
    serving = replace(made.serving, max_tokens=256)
    source = replace(made.source, serving=serving, tokenizer=tokenizer)
    (folder / "out").mkdir()
    member = registry.load("recft.exports", "gguf")
    member.write(source, folder / "out")
    engine = member.open(folder / "out", Opening(serving))
    found: list[list[int]] = engine.tokens(texts)
    return found


@needs_llama_cpp
@pytest.mark.parametrize("name", KNOWN)
def test_byte_level_tokens_are_the_tokenizers(name: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = KNOWN[name]()
    tokenizer.add_tokens(["新品", "<new>"])
    texts = [*TEXTS, "新品 chair<new>x"]
    assert vocabulary_of(tokenizer, len(tokenizer), embeds=False).words == name
    expected = [tokenizer(text)["input_ids"] for text in texts]
    assert engine_tokens(tokenizer, make_case, tmp_path, texts) == expected


@needs_llama_cpp
@pytest.mark.parametrize("name", PIECES)
def test_pieces_are_the_tokenizers(name: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = PIECES[name]()
    # Text after a special token, and a leading space, are where llama.cpp and a newer tokenizer part.
    texts = [text for text in TEXTS if name == "prepend" or not text.startswith((" ", "<"))]
    vocabulary = vocabulary_of(tokenizer, len(tokenizer), embeds=False)
    assert (vocabulary.model, vocabulary.space_first) == ("llama", name != "never")
    assert {vocabulary.kinds[0], vocabulary.kinds[1], vocabulary.kinds[3]} == {UNKNOWN, CONTROL, BYTE}
    expected = [tokenizer(text)["input_ids"] for text in texts]
    assert engine_tokens(tokenizer, make_case, tmp_path, texts) == expected


@needs_llama_cpp
def test_text_that_is_not_composed_is_told_by_its_tokens(make_case: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = byte_level([plain()], normalizers.NFC())
    texts = ["crème", "cre\u0300me"]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    found = engine_tokens(tokenizer, make_case, tmp_path, texts)
    assert expected[0] == expected[1]
    assert found[0] == expected[0]
    assert found[1] != expected[1]


def test_what_stands_around_a_text() -> None:
    cases: list[tuple[dict[str, Any], bool, bool]] = [({}, False, False), (BEGIN, True, False), (BOTH, True, True)]
    for special, begins, ends in cases:
        found = vocabulary_of(byte_level([plain()], **special), 700, embeds=False)
        assert (found.begins, found.ends) == (begins, ends)
        assert (found.ids["bos"], found.ids["eos"]) == (0, 1)


def test_a_chat_without_a_begin_token_gets_none_from_the_engine(make_case: Callable[..., Any]) -> None:
    tokenizer = byte_level([plain()], **BEGIN)
    serving = replace(make_case("llama-answers").serving, head="likelihood", chat=True)
    for template, begins in (("{{ bos_token }}{{ messages[0].content }}", True), ("{{ messages[0].content }}", False)):
        tokenizer.chat_template = template
        assert vocabulary_for(tokenizer, 700, serving).begins is begins
        assert vocabulary_for(tokenizer, 700, replace(serving, chat=False)).begins


def test_kinds_and_rows_without_a_token() -> None:
    tokenizer = byte_level([plain()])
    tokenizer.add_tokens(["新品"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    n = len(tokenizer)
    found = vocabulary_of(tokenizer, n + 2, embeds=False)
    assert (found.tokens[n - 2], found.tokens[n - 1], found.tokens[n]) == ("新品", "<|end|>", f"[PAD{n}]")
    assert list(found.kinds[n - 3 :]) == [NORMAL, USER_DEFINED, CONTROL, UNUSED, UNUSED]


def test_an_end_token_of_its_own_is_for_vectors_only() -> None:
    tokenizer = byte_level([plain()], single="$A <s>", special_tokens=[("<s>", 0)])
    assert vocabulary_of(tokenizer, 700, embeds=True).ids["eos"] == 0
    with pytest.raises(ExportError, match="a text ends with token 0, and replies with token 1"):
        vocabulary_of(tokenizer, 700, embeds=False)


def stripping() -> Any:
    tokenizer = byte_level([plain()])
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def without_bytes() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = plain()
    tokenizer.train_from_iterator(["abc"], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: byte_level(split(r"\p{L}+| ")), r"by Split \+ ByteLevel, in a way of its own .*gpt-2, smollm"),
        (lambda: byte_level(split(next(iter(PATTERNS))[0])), None),
        (lambda: byte_level([plain()], whole=True), "splits text by ByteLevel"),
        (lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)]), "splits text by ByteLevel"),
        (lambda: byte_level([plain()], normalizers.NFKC()), "rewrites its text"),
        (lambda: byte_level([plain()], normalizers.Lowercase()), "rewrites its text"),
        (lambda: byte_level([plain()], single="<s> <s> $A", special_tokens=[("<s>", 0)]), "2 and 0 special tokens"),
        (stripping, "'<mask>' takes the spaces"),
        (without_bytes, "bytes have no token"),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused_by_name(make: Callable[[], Any], message: str | None) -> None:
    if message is None:
        assert vocabulary_of(make(), 700, embeds=False).words == "smaug-bpe"
        return
    with pytest.raises(ExportError, match=message + r".*fix: export to merged or onnx"):
        vocabulary_of(make(), 700, embeds=False)


def test_more_tokens_than_rows_are_refused() -> None:
    tokenizer = byte_level([plain()])
    with pytest.raises(ExportError, match=f"{len(tokenizer)} tokens for {len(tokenizer) - 1} rows"):
        vocabulary_of(tokenizer, len(tokenizer) - 1, embeds=False)
