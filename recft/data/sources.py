"""A table's file as a stream of bytes, plain or compressed; nothing is held whole."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import polars as pl

from recft.errors import DataError, problem
from recft.registry import suggestion

__all__ = ["COMPRESSIONS", "Form", "ahead", "blocks", "existing", "form_of"]

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_FORMS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_BLOCK_BYTES = 16 * 2**20
_UTF8_MARK = b"\xef\xbb\xbf"
_ZSTD_MARK = b"\x28\xb5\x2f\xfd"
_FOREIGN_MARKS = (b"\xff\xfe", b"\xfe\xff")

_AHEAD = 2
_Part = TypeVar("_Part")
_Done = TypeVar("_Done")

Form = str
"""csv, jsonl or parquet."""


def form_of(path: Path, place: str, separator: str | None) -> Form:
    """What a file's name says it holds: csv, jsonl or parquet; with a separator any other ending is csv.

    Raises:
        DataError: the ending is none of these.
    """
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSIONS:
        endings.pop()
    form = _FORMS.get(endings[-1]) if endings else None
    if form is None and separator is not None:
        form = "csv"
    if form is None or (form == "parquet" and path.suffix.lower() in COMPRESSIONS):
        raise DataError(
            problem(
                f"{place}.path",
                f"'{path.name}' has an unknown ending",
                "csv, tsv, jsonl or ndjson, plain or .gz, .zst, .bz2, .xz, or parquet",
                f"rename it, or name the column separator in {place}.separator",
            )
        )
    return form


def existing(path: Path, place: str, key: str = "path") -> Path:
    """The path, once it is known to be a file; `key` is what names it in the table's settings.

    Raises:
        DataError: there is no such file; the message names the nearest in the folder.
    """
    if path.is_file():
        return path
    near = suggestion(path.name, (file.name for file in path.parent.iterdir())) if path.parent.is_dir() else ""
    state = "is a folder" if path.is_dir() else "does not exist"
    raise DataError(
        problem(
            f"{place}.{key}", f"{path} {state}.{near}", "a file, relative to the recipe's folder", "correct the path"
        )
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    readers: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
    reader = readers.get(path.suffix.lower())
    with path.open("rb") if reader is None else reader(path) as handle:
        yield handle


def _zstd(path: Path) -> Iterator[bytes]:
    """Blocks of a zstd file. Python 3.11 has no reader for it; Polars' reader of lines does."""
    with path.open("rb") as handle:
        if handle.read(4) != _ZSTD_MARK:
            raise OSError("not a zstd file")
    for batch in pl.scan_lines(path, name="line").collect_batches(chunk_size=100_000, maintain_order=True):
        text = batch["line"].str.join("\n").item() if batch.height else ""
        yield text.encode() + b"\n"


def _plain(path: Path) -> Iterator[bytes]:
    with _opened(path) as handle:
        while block := handle.read(_BLOCK_BYTES):
            yield block


def blocks(path: Path, place: str) -> Iterator[bytes]:
    """The decompressed bytes of a file in blocks that end where a line ends; a byte-order mark is left out.

    Raises:
        DataError: the compression is broken, or the text is UTF-16.
    """
    stream = _zstd(path) if path.suffix.lower() == ".zst" else _plain(path)
    rest = io.BytesIO()
    first = True
    try:
        for block in stream:
            if first:
                first = False
                block = _unmarked(block, path, place)
            end = block.rfind(b"\n") + 1
            rest.write(block[:end])
            if end:
                yield rest.getvalue()
                rest = io.BytesIO()
            rest.write(block[end:])
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pl.exceptions.PolarsError) as error:
        raise DataError(
            problem(f"{place}.path", f"{path.name} cannot be read ({error})", "a whole file of its kind", "get it anew")
        ) from error
    if rest.tell():
        yield rest.getvalue()


def ahead(parts: Iterable[_Part], work: Callable[[_Part], _Done]) -> Iterator[tuple[_Part, _Done]]:
    """Each part with what `work` makes of it, in order; two threads work on parts that are not yet asked for."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[tuple[_Part, Future[_Done]]] = deque()
        for part in parts:
            waiting.append((part, pool.submit(work, part)))
            if len(waiting) > _AHEAD:
                first, done = waiting.popleft()
                yield first, done.result()
        while waiting:
            first, done = waiting.popleft()
            yield first, done.result()


def _unmarked(block: bytes, path: Path, place: str) -> bytes:
    if block.startswith(_FOREIGN_MARKS):
        raise DataError(
            problem(
                f"{place}.path",
                f"{path.name} is UTF-16",
                "text is UTF-8",
                "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
            )
        )
    return block.removeprefix(_UTF8_MARK)
