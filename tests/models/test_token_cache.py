"""Tokens from the cache equal tokens made anew, whatever happened to the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from recft.models import token_cache
from recft.models.token_cache import lengths, remembered
from recft.models.tokens import Text, Tokens, tokenize

TEXTS = ["red mug", "杯子 ☕", "", "a much longer title of a mug that is cut", "🎁" * 9, 'say "hi", ok?\n'] * 3
PAIRS = [(text, f"{number} stars") for number, text in enumerate(TEXTS)]


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "FEWEST", 4)
    return tmp_path / "recft" / "tokens"


class Maker:
    """Tokenizes, and counts how often it had to."""

    def __init__(self, tokenizer: Any, max_tokens: int = 8) -> None:
        self.tokenizer, self.max_tokens, self.calls = tokenizer, max_tokens, 0

    def __call__(self, texts: Sequence[Text]) -> list[Tokens]:
        self.calls += 1
        return tokenize(self.tokenizer, texts, self.max_tokens)

    def remembered(self, texts: Sequence[Text]) -> list[Tokens]:
        return remembered(self.tokenizer, texts, {"max_tokens": self.max_tokens}, self)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS])
def test_the_second_time_costs_a_read(tokenizer: Any, cache: Path, texts: list[Text]) -> None:
    make = Maker(tokenizer)
    first, second = make.remembered(texts), make.remembered(texts)
    assert first == second == tokenize(tokenizer, texts, 8)
    assert make.calls == 1 and len(list(cache.glob("*"))) == 1
    assert isinstance(second[0]["input_ids"][0], int)


def test_all_that_decides_the_tokens_is_in_the_key(tokenizer: Any, tiny_bert: Path, cache: Path) -> None:
    make, wider = Maker(tokenizer), Maker(tokenizer, 16)
    make.remembered(TEXTS)
    assert wider.remembered(TEXTS) == tokenize(tokenizer, TEXTS, 16) and wider.calls == 1
    make.remembered(TEXTS[1:])
    make.remembered([*TEXTS[1:], TEXTS[0]])
    other = AutoTokenizer.from_pretrained(tiny_bert)
    other.add_tokens(["mug"])
    apart = Maker(other)
    assert apart.remembered(TEXTS) == tokenize(other, TEXTS, 8) != make.remembered(TEXTS)
    assert (make.calls, apart.calls) == (3, 1) and len(list(cache.glob("*"))) == 5
    # Opened anew, and cut before in another way, it is the same tokenizer.
    again = AutoTokenizer.from_pretrained(tiny_bert)
    again(["some text"], truncation=True, max_length=3, padding=True)
    same = Maker(again)
    same.remembered(TEXTS)
    assert same.calls == 0


def test_few_texts_are_not_kept(tokenizer: Any, cache: Path) -> None:
    make = Maker(tokenizer)
    assert make.remembered(TEXTS[:3]) == make.remembered(TEXTS[:3]) == tokenize(tokenizer, TEXTS[:3], 8)
    assert make.calls == 2 and not cache.exists()
    assert make.remembered([]) == []


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "folder"])
def test_damage_is_made_again_without_a_word(tokenizer: Any, cache: Path, damage: str) -> None:
    make = Maker(tokenizer)
    wanted = make.remembered(TEXTS)
    (path,) = cache.glob("*")
    whole = path.read_bytes()
    if damage == "other":
        Maker(tokenizer).remembered(TEXTS[2:])
        other = next(file for file in cache.glob("*") if file != path)
        path.write_bytes(other.read_bytes())
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = bytearray(whole)
        flipped[-9] ^= 4
        path.write_bytes({"cut": whole[:-7], "bit": bytes(flipped), "empty": b""}[damage])
    assert make.remembered(TEXTS) == wanted and make.calls == 2
    if damage != "folder":
        assert path.read_bytes() == whole and make.remembered(TEXTS) == wanted and make.calls == 2


def test_the_folder_stays_within_its_bound(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker(tokenizer)
    make.remembered(TEXTS)
    size = next(cache.glob("*")).stat().st_size
    monkeypatch.setattr(token_cache, "MOST_BYTES", 3 * size)
    for start in range(1, 8):
        make.remembered(TEXTS[start:])
        make.remembered(TEXTS)  # used all the time: never the oldest
    assert sum(path.stat().st_size for path in cache.glob("*")) <= 3 * size
    calls = make.calls
    make.remembered(TEXTS)
    assert make.calls == calls
    monkeypatch.setattr(token_cache, "MOST_FILE_BYTES", 10)
    assert make.remembered(PAIRS) == tokenize(tokenizer, PAIRS, 8)
    assert make.remembered(PAIRS) and make.calls == calls + 2


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:3], []])
def test_lengths_are_those_of_whole_texts(tokenizer: Any, texts: list[str]) -> None:
    wanted = [len(tokenizer(text)["input_ids"]) for text in texts]
    tokenizer(["some text"], truncation=True, max_length=3, padding="max_length")
    assert lengths(tokenizer, texts) == wanted == lengths(tokenizer, texts)
    assert np.array(lengths(tokenizer, texts)).sum() == sum(wanted)
