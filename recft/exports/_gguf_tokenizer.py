"""A tokenizer as GGUF keeps it: tokens, their kinds, merges or scores, and what stands around a text.

llama.cpp tokenizes by itself, from these tables and its own copy of a few ways to split text into words. A tokenizer
that does something else is refused by name: a served model that reads other tokens is another model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recft.exports._engine import refuse

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary", "chat_template", "vocabulary_of"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of token in GGUF."""

# The two patterns below are data of published tokenizer.json files: what they mean, llama.cpp computes under a name.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "smaug-bpe",  # the same words, merged as usual
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
}
"""(pattern, whether a word that is a token stays whole) -> llama.cpp's name."""

OTHER_ENGINES = "export to merged or onnx, which keep the tokenizer as it is"
KINDS_READ = "llama.cpp reads byte-level or SentencePiece pairs"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer.

    Attributes:
        model: `gpt2`, byte-level pairs, or `llama`, pieces by score.
        words: how llama.cpp splits text into words (`tokenizer.ggml.pre`).
        tokens: by id, one for each row of the embeddings.
        kinds: of the tokens.
        merges: of byte-level pairs.
        scores: of pieces.
        ids: special tokens by what they are for (bos, eos, pad, unk).
        begins: whether a text begins with bos.
        ends: whether it ends with eos.
        space_first: whether a space is put before a text; None where the model has no such thing.
        template: of chats.
    """

    model: str
    words: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    ids: Mapping[str, int]
    begins: bool
    ends: bool
    space_first: bool | None
    template: str

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes all of it as keys."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.words)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.begins)
        writer.add_add_eos_token(self.ends)
        if self.space_first is not None:
            writer.add_add_space_prefix(self.space_first)
        if self.template:
            writer.add_chat_template(self.template)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, embeds: bool) -> Vocabulary:
    """The tokenizer's tables for a model whose embeddings have so many rows.

    Args:
        tokenizer: a fast one.
        rows: of the embeddings; those beyond the tokenizer's tokens become unused tokens.
        embeds: whether the model gives vectors, so that its end token only closes a text.

    Raises:
        ExportError: llama.cpp would tokenize otherwise.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        refuse(
            f"a {model['type']} tokenizer of this kind",
            "llama.cpp reads byte-level or SentencePiece pairs",
            OTHER_ENGINES,
        )
    by_id, kinds = _tokens(parts, rows)
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    scores: list[float] = []
    space_first, words = None, "default"
    pieces = bool(model.get("byte_fallback"))
    if pieces:
        space_first = _space_first(parts)
        scores = _scores(by_id, kinds, merges)
    else:
        words = _words(parts)
        _check_bytes(model["vocab"])
    ids, begins, ends = _around(tokenizer, embeds)
    return Vocabulary(
        model="llama" if pieces else "gpt2",
        words=words,
        tokens=by_id,
        kinds=kinds,
        merges=[] if pieces else [" ".join(merge) for merge in merges],
        scores=scores,
        ids=ids,
        begins=begins,
        ends=ends,
        space_first=space_first,
        template=chat_template(tokenizer),
    )


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's template for chats, its first one where it has several; empty where it has none."""
    found = getattr(tokenizer, "chat_template", None)
    return str(found.get("default") or "") if isinstance(found, dict) else str(found or "")


def _tokens(parts: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Every token's text and kind, by id."""
    model = parts["model"]
    by_id = [f"[PAD{number}]" for number in range(rows)]
    kinds = [UNUSED] * rows
    known = {**model["vocab"], **{token["content"]: token["id"] for token in parts["added_tokens"]}}
    if max(known.values()) >= rows:
        refuse(
            f"the tokenizer has {max(known.values()) + 1} tokens for {rows} rows of embeddings", "a row for every token"
        )
    for text, number in known.items():
        by_id[number], kinds[number] = text, NORMAL
        if model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            kinds[number] = BYTE
    for token in parts["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            refuse(
                f"the token {token['content']!r} takes the spaces or word borders around it in",
                "llama.cpp leaves them",
                OTHER_ENGINES,
            )
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = known.get(model.get("unk_token") or "")
    if unknown is not None and model.get("byte_fallback"):
        kinds[unknown] = UNKNOWN
    return by_id, kinds


def _words(parts: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text into words.

    Raises:
        ExportError: it has none, or the text is changed before.
    """
    # llama.cpp never composes characters: text that is not NFC already is tokenized otherwise, as the rows will tell.
    if [step["type"] for step in _steps(parts["normalizer"], "normalizers")] not in ([], ["NFC"]):
        refuse("a tokenizer that rewrites its text", "llama.cpp takes text as it is", OTHER_ENGINES)
    steps = _steps(parts["pre_tokenizer"], "pretokenizers")
    whole = bool(parts["model"].get("ignore_merges"))
    last = steps[-1] if steps else {}
    found = None
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        first = steps[0]
        if len(steps) == 1 and last["use_regex"] and not whole:
            found = "gpt-2"
        elif len(steps) == 2 and first["type"] == "Split" and not last["use_regex"]:
            if first["behavior"] == "Isolated" and not first["invert"]:
                found = PATTERNS.get((first["pattern"].get("Regex", ""), whole))
        elif len(steps) == 2 and first["type"] == "Digits" and last["use_regex"] and not whole:
            found = "smollm" if first["individual_digits"] else None
    if found is None:
        kinds = " + ".join(step["type"] for step in steps) or "nothing"
        refuse(
            f"a tokenizer that splits text by {kinds}, in a way of its own",
            f"one of the ways that recft knows in llama.cpp: gpt-2, smollm, {', '.join(PATTERNS.values())}",
            OTHER_ENGINES,
        )
    return found


def _steps(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _check_bytes(vocab: Mapping[str, int]) -> None:
    """Raises: ExportError: some byte has no token, so that engines differ in what they leave out."""
    from tokenizers.pre_tokenizers import ByteLevel

    missing = [letter for letter in ByteLevel.alphabet() if letter not in vocab]
    if missing:
        refuse(f"{len(missing)} bytes have no token", "a byte-level tokenizer knows every byte", OTHER_ENGINES)


def _space_first(parts: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text.

    Raises:
        ExportError: it does something else with the text.
    """
    space = "\u2581"
    first = False
    for step in _steps(parts["normalizer"], "normalizers") + _steps(parts["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Prepend" and step["prepend"] == space:
            first = True
        elif step["type"] == "Metaspace" and step["replacement"] == space and not step.get("split"):
            first = step["prepend_scheme"] != "never"
        elif step["type"] != "Replace" or step["pattern"].get("String") != " " or step["content"] != space:
            refuse(f"a tokenizer with a step {step['type']}", "llama.cpp only puts ▁ for spaces", OTHER_ENGINES)
    return first


def _scores(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """A score for each token: llama.cpp joins the neighbours whose whole scores highest.

    Raises:
        ExportError: no scores give the order of these merges.
    """
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        whole = left + right
        if whole in rank and whole != last:
            refuse("merges in an order that no scores have", "llama.cpp joins pieces by score", OTHER_ENGINES)
        rank.setdefault(whole, len(rank))
        last = whole
    listed = set(merges)
    known = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    for token in known:
        pairs = {(token[:cut], token[cut:]) for cut in range(1, len(token))}
        if any(left in known and right in known and (left, right) not in listed for left, right in pairs):
            refuse(
                f"two pieces that {token!r} begins and ends with are never joined",
                "llama.cpp joins them",
                OTHER_ENGINES,
            )
    return [-1.0 - rank[token] if token in rank else 0.0 for token in tokens]


def _around(tokenizer: PreTrainedTokenizerBase, embeds: bool) -> tuple[dict[str, int], bool, bool]:
    """Special tokens by their use, and whether a text begins and ends with one: what the tokenizer really does.

    Raises:
        ExportError: it puts more around a text than one token on each side.
    """
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((n for n in range(len(whole)) if whole[n : n + len(inside)] == inside), 0)
    before, after = whole[:at], whole[at + len(inside) :]
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    if len(before) > 1 or len(after) > 1:
        refuse(
            f"{len(before)} and {len(after)} special tokens around a text", "at most one on each side", OTHER_ENGINES
        )
    if before:
        ids["bos"] = before[0]
    if after and after[0] != ids["eos"] and not embeds:
        refuse(
            f"a text ends with token {after[0]}, and replies with token {ids['eos']}",
            "GGUF has one end token",
            OTHER_ENGINES,
        )
    if after:
        ids["eos"] = after[0]
    return {name: int(number) for name, number in ids.items() if number is not None}, bool(before), bool(after)
