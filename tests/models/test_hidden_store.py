"""The store of hidden states: what comes back is what went in, or nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recft.models import hidden_store
from recft.models.hidden_store import HiddenStore

ROOMY = 10**6


def rows(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(folder: Path) -> Tensor:
    """A store of two puts: texts `a` and `b`, which share their first two rows, and `c`."""
    store, states = HiddenStore(folder, ROOMY), rows(5)
    store.put(states, {"a": np.array([0, 1, 2]), "b": np.array([0, 1, 3, 4])})
    store.put(states[:1], {"c": np.array([0])})
    store.close()
    return states


def same(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_stored_comes_back_to_the_bit_and_shared_rows_lie_there_once(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    states = rows(5, dtype=dtype)
    states[0, 0], states[1, 1] = -0.0, float("nan")
    for _ in range(2):
        store = HiddenStore(tmp_path, ROOMY)
        if not len(store):
            store.put(states, {"a": np.array([0, 1, 2]), "b": np.array([0, 1, 3, 4])})
        for key, own in (("a", [0, 1, 2]), ("b", [0, 1, 3, 4])):
            found = store.get(key)
            assert found is not None and found.dtype == dtype
            assert torch.equal(found.view(torch.uint8), states[own].view(torch.uint8))
        assert store.get("c") is None
        assert store.n_bytes == (tmp_path / "states.bin").stat().st_size == 5 * 4 * dtype.itemsize
        store.close()


@pytest.mark.parametrize("lost", [1, 20])
def test_what_a_kill_left_unfinished_is_forgotten_and_its_place_used_again(lost: int, tmp_path: Path) -> None:
    states = filled(tmp_path)
    index, numbers = tmp_path / "index.txt", tmp_path / "states.bin"
    index.write_bytes(index.read_bytes()[:-lost])
    store = HiddenStore(tmp_path, ROOMY)
    assert same(store.get("a"), states[:3]) and store.get("c") is None
    assert numbers.stat().st_size == store.n_bytes == 5 * 16 and index.read_text().count("\n") == 1
    store.put(states[1:2], {"c": np.array([0])})
    store.close()
    again = HiddenStore(tmp_path, ROOMY)
    assert same(again.get("c"), states[1:2]) and same(again.get("b"), states[[0, 1, 3, 4]])
    again.close()


def test_lines_beyond_the_numbers_are_not_stored(tmp_path: Path) -> None:
    states = filled(tmp_path)
    numbers = tmp_path / "states.bin"
    numbers.write_bytes(numbers.read_bytes()[:-1])
    store = HiddenStore(tmp_path, ROOMY)
    assert same(store.get("a"), states[:3]) and store.get("c") is None
    store.close()


@pytest.mark.parametrize("place", [0, 39, 70])
def test_numbers_that_changed_on_disk_are_not_stored(place: int, tmp_path: Path) -> None:
    states = filled(tmp_path)
    numbers = tmp_path / "states.bin"
    raw = bytearray(numbers.read_bytes())
    raw[place] ^= 1
    numbers.write_bytes(raw)
    store = HiddenStore(tmp_path, ROOMY)
    row, own = place // 16, {"a": [0, 1, 2], "b": [0, 1, 3, 4]}
    for key, its in own.items():
        assert (store.get(key) is None) == (row in its)
    store.put(states, {key: np.array(its) for key, its in own.items()})
    assert all(same(store.get(key), states[its]) for key, its in own.items())
    store.close()
    again = HiddenStore(tmp_path, ROOMY)
    assert all(same(again.get(key), states[its]) for key, its in own.items()), "the damaged ones came back"
    again.close()


@pytest.mark.parametrize("line", [b"{", b'{"full": true}\n', b"\xff\n", b"\n", b"00000000 \n"])
def test_a_line_of_the_index_that_is_none_is_passed_over(line: bytes, tmp_path: Path) -> None:
    states = filled(tmp_path)
    index = tmp_path / "index.txt"
    first, second = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(first + line + (b"" if line == b"{" else second))
    store = HiddenStore(tmp_path, ROOMY)
    assert same(store.get("a"), states[:3]) and not store.full
    assert same(store.get("c"), states[:1]) or line == b"{"
    assert len(index.read_bytes().splitlines()) == (1 if line == b"{" else 2)
    store.close()


@pytest.mark.parametrize("place", range(0, 240, 7))
def test_an_index_that_changed_on_disk_loses_that_line_alone(place: int, tmp_path: Path) -> None:
    states = filled(tmp_path)
    index = tmp_path / "index.txt"
    raw = bytearray(index.read_bytes())
    raw[place % len(raw)] ^= 1
    index.write_bytes(raw)
    store = HiddenStore(tmp_path, ROOMY)
    own = {"a": [0, 1, 2], "b": [0, 1, 3, 4], "c": [0]}
    found = [key for key, its in own.items() if same(store.get(key), states[its])]
    assert found == [key for key in own if store.get(key) is not None] and found in (["a", "b"], ["c"], [])
    store.close()


def test_a_text_without_tokens_is_a_text(tmp_path: Path) -> None:
    store = HiddenStore(tmp_path, ROOMY)
    store.put(rows(1), {"empty": np.zeros(0, np.int64), "one": np.array([0])})
    found = store.get("empty")
    assert found is not None and found.shape == (0, 4) and same(store.get("one"), rows(1))
    store.close()


def test_beyond_its_bytes_nothing_more_is_stored_not_even_what_has_room(tmp_path: Path) -> None:
    states = rows(5)
    for turn in range(2):
        store = HiddenStore(tmp_path, 100)
        if not turn:
            store.put(states[:3], {"a": np.arange(3)})
            store.put(states[:4], {"b": np.arange(4)})
        store.put(states[:1], {"c": np.arange(1)})
        # A run that was killed must find what one that was not would have: so the end stands on disk too.
        assert store.full and len(store) == 1 and same(store.get("a"), states[:3]) and store.n_bytes == 48
        store.close()


class Disk:
    """A disk on which the file of numbers or of lines takes so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done: int = self.file.write(content[: self.room])
        self.room -= done
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("file", ["_states", "_index"])
def test_a_full_disk_is_said_once_and_what_is_stored_stays(file: str, tmp_path: Path) -> None:
    states = filled(tmp_path)
    heard: list[str] = []
    store = HiddenStore(tmp_path, ROOMY, lambda event, values: heard.append(f"{event}: {values['text']}"))
    setattr(store, file, Disk(getattr(store, file), 20))
    for key in ("d", "e"):
        store.put(states, {key: np.arange(5)})
        assert store.get(key) is None and same(store.get("a"), states[:3])
    assert len(heard) == 1 and heard[0].startswith("warning: ") and "No space left" in heard[0]
    store.close()
    again = HiddenStore(tmp_path, ROOMY)
    assert len(again) == 3 and again.n_bytes == (tmp_path / "states.bin").stat().st_size == 96
    again.close()


def test_the_index_is_written_after_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    append = hidden_store._append

    def watched(file: Any, offset: int, content: Any) -> int:
        written.append(Path(file.name).name)
        return append(file, offset, content)

    monkeypatch.setattr(hidden_store, "_append", watched)
    filled(tmp_path)
    assert written == ["states.bin", "index.txt"] * 2
