"""Safetensors files a tensor at a time: read without being mapped into memory, written as their tensors are made.

A mapped file's pages count as the process's own memory, and the library's writer wants all tensors at once: here a
file of any size passes through a buffer.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from recft.errors import ExportError, ModelError, problem

__all__ = ["PART", "Planned", "ShardFile", "Stored", "read", "stored_in"]

PART = ".part"
"""The ending of a file that is being written."""

ROOM_BYTES = 512
"""Kept in a file's plan for a tensor whose length is known only when it is made."""

_CHUNK = 1 << 20
"""Elements that are converted at a time: few enough to stay in the processor's cache."""

_COPIED_BYTES = 1 << 22
"""Bytes that are copied at a time from file to file."""

_WRITTEN_BYTES = 1 << 18
"""Bytes that are handed to the system at a time: it takes several times as long to find pages for a large piece."""

_LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        path: the file.
        dtype: of the values there; None for one that torch cannot compute with here.
        shape: the tensor's.
        start: of its first byte in the file.
    """

    path: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int


def stored_in(path: Path) -> dict[str, Stored]:
    """A file's tensors by name; only its header is read.

    Raises:
        ModelError: it is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            name: Stored(
                path, _DTYPES.get(entry["dtype"]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            problem(str(path), f"cannot be read ({error})", "weights are safetensors files", "get the base again")
        ) from error


def read(
    stored: Stored,
    dtype: torch.dtype | None = None,
    through: torch.dtype | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """The tensor, in new memory or in that of `into`.

    Args:
        stored: where it lies.
        dtype: what it becomes; as it is stored where None.
        through: values are rounded to this first.
        into: where it goes: of its shape and of `dtype`.

    Raises:
        ModelError: the file ends too early, or holds a dtype that is not read.
    """
    if stored.dtype is None:
        raise ModelError(
            problem(
                str(stored.path),
                "a tensor of a dtype that is not read here",
                f"one of {', '.join(_DTYPES)}",
                "take a base in float32, bfloat16 or float16",
            )
        )
    found = torch.empty(stored.shape, dtype=dtype or stored.dtype) if into is None else into
    flat = found.view(-1)
    with stored.path.open("rb", buffering=0) as file:
        if found.dtype == stored.dtype and through in (None, stored.dtype):
            _fill(file.fileno(), stored.start, _bytes(flat), stored.path)
            return found
        chunk = torch.empty(min(_CHUNK, len(flat)), dtype=stored.dtype)
        for start in range(0, len(flat), _CHUNK):
            part = chunk[: len(flat) - start]
            _fill(file.fileno(), stored.start + start * chunk.itemsize, _bytes(part), stored.path)
            flat[start : start + len(part)].copy_(part if through is None else part.to(through))
    return found


def _fill(handle: int, start: int, memory: memoryview, path: Path) -> None:
    """Fills the memory with a file's bytes from `start` on."""
    while memory:
        n_bytes = os.preadv(handle, [memory], start)
        if not n_bytes:
            raise ModelError(
                problem(str(path), "ends before its last tensor does", "a file is whole", "get the base again")
            )
        start, memory = start + n_bytes, memory[n_bytes:]


def _bytes(flat: Tensor) -> memoryview:
    return memoryview(cast("Any", flat.view(torch.uint8).numpy())) if flat.numel() else memoryview(b"")


@dataclass(frozen=True)
class Planned:
    """A tensor that a file will hold.

    Attributes:
        name: its name.
        dtype: its dtype.
        shape: its shape; None where its length is known only when it is made: then it has one dimension and at most
            ROOM_BYTES bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None

    @property
    def n_bytes(self) -> int:
        """Its bytes, at most."""
        return ROOM_BYTES if self.shape is None else torch.Size(self.shape).numel() * self.dtype.itemsize


class ShardFile:
    """A safetensors file whose tensors come one by one, in any order; it has its name once it is whole.

    Its bytes depend on the plan and the tensors alone. Wide types lie first, so that each tensor's place is a multiple
    of its type's width. The header's room is that of the longest one the plan can give; blanks fill the rest.
    """

    def __init__(self, path: Path, plan: Sequence[Planned]) -> None:
        self._path = path
        self._draft = path.with_suffix(PART)
        sized = sorted((part for part in plan if part.shape is not None), key=lambda part: -part.dtype.itemsize)
        self._plan = {part.name: part for part in (*sized, *(part for part in plan if part.shape is None))}
        self._start: dict[str, int] = {}
        self._late: dict[str, Tensor] = {}
        self._end = 0
        for part in sized:
            self._start[part.name], self._end = self._end, self._end + part.n_bytes
        longest = len(self._header({part.name: (ROOM_BYTES,) for part in plan if part.shape is None}))
        self._room = -(-longest // 8) * 8
        self._handle = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, name: str, tensor: Tensor | Stored) -> None:
        """Puts a tensor at its place, or the bytes of one that lies in another file.

        Raises:
            ExportError: it is not as planned, or the disk does not take it.
        """
        part = self._plan[name]
        late = part.shape is None and isinstance(tensor, Tensor) and tensor.nbytes <= ROOM_BYTES
        if tensor.dtype != part.dtype or not (late or tuple(tensor.shape) == part.shape):
            raise ExportError(
                problem(
                    name,
                    f"{tensor.dtype} {tuple(tensor.shape)}, planned was {part.dtype} {part.shape}",
                    "a file's header is made before its tensors",
                    "export in float32, bfloat16 or float16",
                )
            )
        if isinstance(tensor, Stored):
            self._copy(tensor, part.n_bytes, 8 + self._room + self._start[name])
        elif late:
            self._late[name] = tensor
        else:
            self._put(_bytes(tensor.contiguous().view(-1)), 8 + self._room + self._start[name])

    def flush(self) -> None:
        """Brings to the disk what was written."""
        os.fdatasync(self._handle)

    def finish(self) -> int:
        """Gives the file its name; its size in bytes."""
        for name, tensor in sorted(self._late.items()):
            self._start[name] = self._end
            self._put(_bytes(tensor), 8 + self._room + self._end)
            self._end += tensor.nbytes
        header = self._header({name: tuple(tensor.shape) for name, tensor in self._late.items()})
        self._put(memoryview(self._room.to_bytes(8, "little") + header.ljust(self._room)), 0)
        os.fsync(self._handle)
        self.close()
        self._draft.replace(self._path)
        return self._path.stat().st_size

    def close(self) -> None:
        """Lets the file go, whole or not."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _header(self, late: dict[str, tuple[int, ...]]) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = self._end
        for name, part in self._plan.items():
            shape = late[name] if part.shape is None else part.shape
            size = torch.Size(shape).numel() * part.dtype.itemsize
            start = self._start.get(name, end)
            end = max(end, start + size)
            entries[name] = {"dtype": _NAMES[part.dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        return json.dumps(entries, separators=(",", ":")).encode()

    def _copy(self, stored: Stored, n_bytes: int, start: int) -> None:
        with stored.path.open("rb", buffering=0) as file:
            done = _copied_by_system(file.fileno(), stored.start, self._handle, start, n_bytes)
            block = bytearray(min(n_bytes - done, _COPIED_BYTES))
            for place in range(done, n_bytes, _COPIED_BYTES):
                part = memoryview(block)[: n_bytes - place]
                _fill(file.fileno(), stored.start + place, part, stored.path)
                self._put(part, start + place)

    def _put(self, memory: memoryview, start: int) -> None:
        try:
            while memory:
                n_bytes = os.pwrite(self._handle, memory[:_WRITTEN_BYTES], start)
                start, memory = start + n_bytes, memory[n_bytes:]
        except OSError as error:
            raise ExportError(
                problem(
                    str(self._draft),
                    f"cannot be written ({error.strerror})",
                    "the merged weights need room on the disk",
                    "make room and export again: what is whole is kept",
                )
            ) from error


def _copied_by_system(source: int, source_start: int, target: int, target_start: int, n_bytes: int) -> int:
    """How many of the bytes the system has copied by itself; none where it cannot, and what is wrong is seen later."""
    done = 0
    with contextlib.suppress(OSError, AttributeError):  # not on every system, nor between any two
        while done < n_bytes:
            moved = os.copy_file_range(source, target, n_bytes - done, source_start + done, target_start + done)
            if not moved:
                break
            done += moved
    return done
