"""Hidden states of texts on disk, appended and never changed: what a frozen part of a model makes of a fixed text.

Two files: `states.bin`, raw numbers one behind the other, and `index.txt`, one line for all texts that were stored
together, written after their numbers. What is torn, damaged or does not fit is not stored, and computed again.

A run that was killed and goes on must find what it would have found had it not been killed. So lines come whole or not
at all, and once there is no more room nothing is stored ever after, which a line says.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from recft.run import Listener, silent, write_text

__all__ = ["HiddenStore"]

Array = np.ndarray


@dataclass(frozen=True)
class _Entry:
    """One text: `parts` are (offset, bytes) in the file of numbers; `crc` is over all of them."""

    dtype: torch.dtype
    width: int
    crc: int
    parts: tuple[tuple[int, int], ...]


class HiddenStore:
    """The hidden states of texts, by key, in a folder that one process has open."""

    def __init__(self, folder: Path, most_bytes: int, listen: Listener = silent) -> None:
        """Opens what an earlier process left, without what it did not finish.

        Args:
            folder: made where it is missing.
            most_bytes: of numbers; beyond them nothing more is stored.
            listen: hears once where the disk takes no more.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._most, self._listen = most_bytes, listen
        self._known: dict[str, _Entry] = {}
        self._states: IO[bytes] = _opened(folder / "states.bin")
        self.n_bytes, self.full = 0, False
        kept = self._read(folder / "index.txt")
        self._states.truncate(self.n_bytes)
        if kept is not None:
            write_text(folder / "index.txt", "".join(kept))
        self._index: IO[bytes] = _opened(folder / "index.txt")
        self._index_bytes = self._index.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return len(self._known)

    def _read(self, index: Path) -> list[str] | None:
        """Takes up the index; gives the lines that hold where some do not."""
        size = self._states.seek(0, os.SEEK_END)
        raw = index.read_bytes() if index.is_file() else b""
        kept = []
        lines = raw.splitlines(keepends=True)
        for line in lines:
            record = _record(line)
            entries, end = _entries(record) if record else ({}, size + 1)
            if end <= size:
                kept.append(line.decode())
                self._known |= entries
                self.n_bytes = max(self.n_bytes, end)
                self.full = self.full or "full" in record
        return kept if len(kept) < len(lines) else None

    def get(self, key: str) -> Tensor | None:
        """A text's hidden states, (L, D) on the CPU; None where they are not stored, or damaged."""
        entry = self._known.get(key)
        if entry is None:
            return None
        n_rows = sum(size for _, size in entry.parts) // (entry.width * entry.dtype.itemsize)
        states = torch.empty(n_rows, entry.width, dtype=entry.dtype)
        buffer = states.view(torch.uint8).numpy().reshape(-1).data
        if self._fill(buffer, entry) and zlib.crc32(buffer) == entry.crc:
            return states
        del self._known[key]
        return None

    def _fill(self, buffer: memoryview, entry: _Entry) -> bool:
        start = 0
        try:
            for offset, size in entry.parts:
                self._states.seek(offset)
                if self._states.readinto(buffer[start : start + size]) != size:  # type: ignore[attr-defined]
                    return False
                start += size
        except OSError:  # a bad sector
            return False
        return True

    def put(self, rows: Tensor, texts: Mapping[str, Array]) -> None:
        """Stores some texts, or none of them.

        Args:
            rows: hidden states, (M, D): what texts share is there once.
            texts: the rows of each text, in order.
        """
        if self.full or not texts:
            return
        numbers = rows.detach().cpu().contiguous().view(torch.uint8).numpy()  # (M, bytes of a row)
        row_bytes = numbers.shape[1]
        if self.n_bytes + numbers.size > self._most:
            self._stop()
            return
        record = {
            "dtype": str(rows.dtype).removeprefix("torch."),
            "width": rows.shape[1],
            "offset": self.n_bytes,
            "bytes": numbers.size,
            "texts": {key: [_crc(numbers, own), *_spans(own, row_bytes)] for key, own in texts.items()},
        }
        try:
            _append(self._states, self.n_bytes, numbers.data)
            self._line(record)
        except OSError as error:
            self._no_room(error)
            return
        entries, self.n_bytes = _entries(record)
        self._known |= entries

    def _line(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record).encode()
        self._index_bytes = _append(self._index, self._index_bytes, b"%08x %s\n" % (zlib.crc32(text), text))

    def _stop(self) -> None:
        self.full = True
        try:
            self._line({"full": True})
        except OSError as error:
            self._no_room(error)

    def _no_room(self, error: OSError) -> None:
        """Goes on without storing: what was written in part is given up."""
        self.full = True
        self._states.truncate(self.n_bytes)
        self._index.truncate(self._index_bytes)
        text = f"hidden states of frozen layers cannot be kept ({error}): from here on more of them are computed again"
        self._listen("warning", {"text": text})

    def sync(self) -> None:
        """Comes back when all that is stored is on the disk: a checkpoint relies on it."""
        for file in (self._states, self._index):
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._states.close()
        self._index.close()


def _opened(path: Path) -> IO[bytes]:
    path.touch()
    return path.open("r+b", buffering=0)


def _append(file: IO[bytes], offset: int, content: bytes | memoryview) -> int:
    """Writes at `offset`, all of it; gives where it ends."""
    file.seek(offset)
    left = memoryview(content).cast("B")
    while left:
        left = left[file.write(left) :]
    return file.tell()


def _record(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it is not as it was written."""
    crc, _, text = line.removesuffix(b"\n").partition(b" ")
    whole = text and line.endswith(b"\n") and crc == b"%08x" % zlib.crc32(text)
    record: dict[str, Any] = json.loads(text) if whole else {}
    return record


def _entries(record: Mapping[str, Any]) -> tuple[dict[str, _Entry], int]:
    """The texts of a line, and where their numbers end."""
    if "full" in record:
        return {}, 0
    dtype, width, start = getattr(torch, record["dtype"]), int(record["width"]), int(record["offset"])
    found = {}
    for key, (crc, *spans) in record["texts"].items():
        parts = tuple((start + offset, size) for offset, size in zip(spans[::2], spans[1::2], strict=True))
        found[key] = _Entry(dtype, width, crc, parts)
    return found, start + int(record["bytes"])


def _runs(own: Array) -> Iterator[Array]:
    """The rows of a text in pieces that lie side by side."""
    if len(own):
        yield from np.split(own, np.flatnonzero(np.diff(own) != 1) + 1)


def _spans(own: Array, row_bytes: int) -> Sequence[int]:
    return [int(number) * row_bytes for run in _runs(own) for number in (run[0], len(run))]


def _crc(numbers: Array, own: Array) -> int:
    crc = 0
    for run in _runs(own):
        crc = zlib.crc32(numbers[run[0] : run[0] + len(run)].data, crc)
    return crc
