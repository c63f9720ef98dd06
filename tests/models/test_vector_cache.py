"""Vectors of items are read once: from the cache the same bits come, and what is damaged or new is read again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft.models import vector_cache
from recft.models.tokens import Text
from recft.models.vector_cache import known_vectors

TEXTS: list[Text] = ["red chair", "红色椅子", "🎒 bag", "ＯＡＫ desk", "red chair", "", ("a", "b"), "\ud800 half"]


class Reader:
    """An encoder that remembers what it was asked for."""

    def __init__(self, size: int = 3) -> None:
        self.size, self.read = size, list[Any]()

    def __call__(self, texts: Sequence[Any]) -> np.ndarray:
        self.read.append(list(texts))
        seeds = [sum(map(ord, "|".join(text) if isinstance(text, tuple) else text)) for text in texts]
        return np.array([np.random.default_rng(seed).normal(size=self.size) for seed in seeds], np.float32)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "recft" / "vectors"


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def test_known_texts_are_not_read_again(root: Path) -> None:
    reader = Reader()
    first = known_vectors("m" * 64, TEXTS, reader)
    assert reader.read == [list(dict.fromkeys(TEXTS))], "equal texts are read once"
    np.testing.assert_array_equal(first, Reader()(TEXTS))
    again = known_vectors("m" * 64, TEXTS[::-1], reader)
    assert len(reader.read) == 1
    np.testing.assert_array_equal(again[::-1], first)
    assert [path.parent.name for path in files(root)] == ["m" * 40]


def test_only_a_changed_title_is_read_anew(root: Path) -> None:
    reader = Reader()
    first = known_vectors("m", TEXTS, reader)
    changed: list[Text] = ["red chair", "红色的椅子", *TEXTS[2:]]
    second = known_vectors("m", changed, reader)
    assert reader.read[1:] == [["红色的椅子"]]
    np.testing.assert_array_equal(np.delete(second, 1, 0), np.delete(first, 1, 0))
    np.testing.assert_array_equal(second[1], Reader()(["红色的椅子"])[0])
    known_vectors("m", [*TEXTS, *changed], reader)
    assert len(reader.read) == 2 and len(files(root)) == 2, "both parts are found"


def test_another_model_shares_nothing(root: Path) -> None:
    reader = Reader()
    known_vectors("one", TEXTS, reader)
    known_vectors("other", TEXTS, reader)
    assert len(reader.read) == 2 and reader.read[0] == reader.read[1]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed"])
def test_what_is_damaged_is_read_again(damage: str, root: Path) -> None:
    first = known_vectors("m", TEXTS, Reader())
    (path,) = files(root)
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes({"cut": data[:-5], "flipped": flipped, "empty": b"", "renamed": data}[damage])
    if damage == "renamed":
        path.rename(path.with_stem("0" * 40))
    reader = Reader()
    np.testing.assert_array_equal(known_vectors("m", TEXTS, reader), first)
    assert len(reader.read) == 1
    known_vectors("m", TEXTS, reader)
    assert len(reader.read) == 1, "written whole again"


def test_what_was_read_longest_ago_goes_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for number, model in enumerate("abc"):
        known_vectors(model, TEXTS, Reader())
        (path,) = files(root / model)
        os.utime(path, (number, number))
    known_vectors("a", TEXTS, Reader())  # read just now
    monkeypatch.setattr(vector_cache, "MOST_BYTES", 3 * path.stat().st_size + 10)
    known_vectors("d", TEXTS, Reader())
    assert [path.parent.name for path in files(root)] == ["a", "c", "d"]
    monkeypatch.setattr(vector_cache, "MOST_BYTES", 10)
    reader = Reader()
    known_vectors("e", TEXTS, reader)
    known_vectors("e", TEXTS, reader)
    assert len(reader.read) == 2, "what is larger than the bound is not kept"


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reader = Reader()
    for _ in range(2):
        np.testing.assert_array_equal(known_vectors("m", TEXTS, reader), Reader()(TEXTS))
    assert len(reader.read) == 2


def test_no_texts(root: Path) -> None:
    assert len(known_vectors("m", [], Reader())) == 0
