"""A folder of safetensors shards, written tensor by tensor; what is whole survives a crash and is not made again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recft.models.tensor_files import PART, Planned, ShardFile, Stored
from recft.run import Listener, read_json, write_json

__all__ = ["INDEX", "PROGRESS", "SHARD_BYTES", "Piece", "write_shards"]

SHARD_BYTES = 2_000_000_000
"""The most that a shard holds; a single larger tensor has one of its own."""

PROGRESS = "merging.json"
"""In the folder while it is written: which shards are whole. Who asked for the folder removes it at the end."""

_FLUSHED_BYTES = 256_000_000
"""Written bytes that go to the disk together, while the next ones are made: else all would be waited for at the end."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together and lie in one shard.

    Attributes:
        plan: them.
        key: of what they are made from.
    """

    key: str
    plan: tuple[Planned, ...]

    @property
    def n_bytes(self) -> int:
        """Of all of them, at most."""
        return sum(part.n_bytes for part in self.plan)


def write_shards(
    folder: Path,
    pieces: Sequence[Piece],
    make: Callable[[Sequence[str]], Generator[Mapping[str, Tensor | Stored]]],
    fingerprint: str,
    shard_bytes: int,
    listen: Listener,
) -> None:
    """Writes `model.safetensors`, or shards and their index.

    Args:
        folder: exists; shards that an earlier call with this fingerprint left whole are kept.
        pieces: in order.
        make: keys -> what each of them becomes, in order.
        fingerprint: of all that decides the bytes; empty where that is not known: then nothing is kept.
        shard_bytes: the most that a shard holds.
        listen: hears of bytes written.
    """
    shards = _split(pieces, shard_bytes)
    done: dict[str, int] = _whole(folder, shards, fingerprint)
    _remove_others(folder, done)
    total = sum(piece.n_bytes for piece in pieces)
    told = _Told(listen, total)
    missing = {name: shard for name, shard in shards.items() if name not in done}
    told.more(total - sum(piece.n_bytes for shard in missing.values() for piece in shard))
    keys = [piece.key for shard in missing.values() for piece in shard]
    with closing(make(keys)) as made, ThreadPoolExecutor(1) as pen, ThreadPoolExecutor(1) as disk:
        for name, shard in missing.items():
            done[name] = _write_shard(folder / name, shard, made, pen, disk, told)
            write_json(folder / PROGRESS, {"fingerprint": fingerprint, "shards": dict(sorted(done.items()))})
        next(made, None)  # it has given all it has; what it checks at its end is checked now
    if len(shards) > 1:
        _write_index(folder, shards)


class _Told:
    """Tells how far the writing is."""

    def __init__(self, listen: Listener, total: int) -> None:
        self._listen, self._total, self._done = listen, total, 0

    def more(self, n_bytes: int) -> None:
        self._done += n_bytes
        if n_bytes:
            values: dict[str, Any] = {"name": "merging", "done": self._done, "total": self._total, "unit": "bytes"}
            self._listen("progress", values)


def _write_shard(
    path: Path,
    shard: Sequence[Piece],
    made: Iterator[Mapping[str, Tensor | Stored]],
    pen: ThreadPoolExecutor,
    disk: ThreadPoolExecutor,
    told: _Told,
) -> int:
    """Writes one shard while the next tensors are made; its size."""
    file = ShardFile(path, [part for piece in shard for part in piece.plan])
    writing: list[Future[None]] = []
    flushing: list[Future[None]] = []
    unflushed = 0
    try:
        for piece in shard:
            tensors = next(made)
            _settle(writing)  # its memory is used again for the next but one
            writing.append(pen.submit(_write_tensors, file, tensors))
            del tensors
            told.more(piece.n_bytes)
            unflushed += piece.n_bytes
            if unflushed >= _FLUSHED_BYTES:
                _settle(flushing)
                flushing.append(disk.submit(file.flush))
                unflushed = 0
        _settle(writing)
        _settle(flushing)
        return file.finish()
    finally:
        wait((*writing, *flushing))  # nobody writes into a file that is closed
        file.close()


def _settle(jobs: list[Future[None]]) -> None:
    """Waits for what is under way; its errors are raised here."""
    while jobs:
        jobs.pop().result()


def _write_tensors(file: ShardFile, tensors: Mapping[str, Tensor | Stored]) -> None:
    for name, tensor in tensors.items():
        file.write(name, tensor)


def _split(pieces: Sequence[Piece], shard_bytes: int) -> dict[str, list[Piece]]:
    """The pieces of each file, by the file's name."""
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.n_bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.n_bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, start=1)}


def _whole(folder: Path, shards: Mapping[str, object], fingerprint: str) -> dict[str, int]:
    """The shards that are there already, with their sizes."""
    path = folder / PROGRESS
    if not fingerprint or not path.is_file():
        return {}
    kept = read_json(path)
    if kept.get("fingerprint") != fingerprint:
        return {}
    files = {name: folder / name for name in shards}
    return {
        name: size
        for name, size in kept["shards"].items()
        if name in files and files[name].is_file() and files[name].stat().st_size == size
    }


def _remove_others(folder: Path, kept: Mapping[str, int]) -> None:
    for pattern in ("model.safetensors", "model-?????-of-?????.safetensors", f"model*{PART}", INDEX):
        for path in folder.glob(pattern):
            if path.name not in kept:
                path.unlink()
    if not kept:
        (folder / PROGRESS).unlink(missing_ok=True)


def _write_index(folder: Path, shards: Mapping[str, Sequence[Piece]]) -> None:
    places = {part.name: name for name, shard in shards.items() for piece in shard for part in piece.plan}
    sizes = sum((folder / name).stat().st_size for name in shards)
    write_json(folder / INDEX, {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(places.items()))})
