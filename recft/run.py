"""A run folder: what lies where, the manifest, and writing whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recft.errors import RecftError, problem

__all__ = [
    "Listener",
    "RunFolder",
    "atomic_file",
    "atomic_folder",
    "bound_cache",
    "cache_folder",
    "hash_bytes",
    "hash_file",
    "hash_folder",
    "read_json",
    "silent",
    "without_nan",
    "write_json",
    "write_text",
]

Listener = Callable[[str, Mapping[str, Any]], None]
"""What a verb tells while it works: an event's name and its values. Only cli turns them into words."""


def silent(event: str, values: Mapping[str, Any]) -> None:
    """The listener that hears nothing."""


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder; the only place that knows them."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, hashes, times, exit status."""
        return self.root / "manifest.json"

    @property
    def data(self) -> Path:
        """The prepared data."""
        return self.root / "data"

    def data_of(self, task: str, among: int) -> Path:
        """The prepared data of one of `among` tasks; a run of one task has no folder for each."""
        return self.data / task if among > 1 else self.data

    @property
    def serving(self) -> Path:
        """How each task's texts become numbers, by task."""
        return self.root / "serving.json"

    @property
    def adapter(self) -> Path:
        """The best adapter so far."""
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Resumable states, one folder a step."""
        return self.root / "checkpoints"

    @property
    def frozen(self) -> Path:
        """Outputs of frozen layers, while tuning goes on."""
        return self.root / "frozen"

    @property
    def metrics(self) -> Path:
        """One JSON line a logging or evaluation step."""
        return self.root / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Loss and validation metric over steps, as a picture."""
        return self.root / "curves.png"

    @property
    def page(self) -> Path:
        """The newest scores as a page for people."""
        return self.root / "report.html"

    def report(self, split: str) -> Path:
        """The scores of one split."""
        return self.root / "eval" / f"{split}.json"

    def predictions(self, split: str) -> Path:
        """What was predicted on one split, row by row."""
        return self.root / "eval" / f"{split}.predictions.parquet"


def cache_folder(name: str) -> Path:
    """Where what can be computed again is kept between runs; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recft" / name


def bound_cache(root: Path, most_bytes: int) -> None:
    """Removes the files below a cache's folder that were used longest ago, until all together are within the bound."""
    files = [path for path in root.rglob("[!.]*") if path.is_file()]
    facts = sorted(((path.stat(), path) for path in files), key=lambda one: one[0].st_mtime_ns)
    total = sum(stat.st_size for stat, _ in facts)
    for stat, path in facts:
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place once the block is left without an error.

    The bytes are flushed to disk before the rename, so that after a crash the file is the old or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays last: writers choose their format by it.
    draft = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield draft
        with draft.open("rb+") as handle:
            os.fsync(handle.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place once the block is left without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    draft.mkdir()
    try:
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        old = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
        if path.exists():
            path.rename(old)
        draft.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes JSON with two spaces and a last newline, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """The value with every NaN as None: a score is undefined, and JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        RecftError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecftError(
            problem(
                str(path), "the file is missing", "this folder was written by recft", "check the path, or make it again"
            )
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecftError(
            problem(str(path), f"not JSON ({error})", "the file is as recft wrote it", "make it again")
        ) from error


def hash_bytes(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_folder(path: Path, pattern: str = "*") -> str:
    """One SHA-256 over the names and bytes of a folder's files that match `pattern`, in order of name."""
    lines = [f"{file.relative_to(path)} {hash_file(file)}" for file in sorted(path.rglob(pattern)) if file.is_file()]
    return hash_bytes("\n".join(lines).encode())
