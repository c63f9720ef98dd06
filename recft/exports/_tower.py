"""The query tower of an index: a hash of what decides its numbers, and the refusal of any other tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from recft.errors import ExportError, problem
from recft.run import hash_bytes, hash_file

if TYPE_CHECKING:
    from recft.exports._base import Engine
    from recft.models.text_model import Serving

__all__ = ["engine_hash", "refuse_other_tower", "tower_hash"]

DECIDING = ("kind", "head", "pooling", "normalize", "max_tokens", "padding_side", "chat")
"""The serving settings that change a vector. Labels, temperature and calibration change what is made of it."""

BESIDE = ("recft-export.json", "items.parquet", "generation_config.json", "merging.json")
"""Files of an export that say nothing of its numbers; the last is a note of `models.shards`, which does not stay."""


def tower_hash(folder: Path, serving: Serving) -> str:
    """The SHA-256 of a tower: names and bytes of its weights, config and tokenizer files, and its serving settings.

    Documents, a certificate and hidden files beside them do not count: the same tower as an export of its own has the
    same hash.
    """
    settings = serving.to_json()
    lines = [json.dumps({name: settings[name] for name in DECIDING}, sort_keys=True)]
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        beside = file.name in BESIDE or file.suffix == ".md" or place.parts[0] == "certificate"
        if file.is_file() and not hidden and not beside:
            lines.append(f"{place.as_posix()} {hash_file(file)}")
    return hash_bytes("\n".join(lines).encode())


def engine_hash(folder: Path, serving: Serving, engine: Engine) -> str:
    """The SHA-256 of a tower and of the engine that computes it: what its vectors are kept under."""
    return hash_bytes(f"{tower_hash(folder, serving)} {engine.name} {engine.version} {engine.dtype}".encode())


def refuse_other_tower(folder: Path, serving: Serving, expected: str) -> None:
    """Nothing, where the tower is the one that made an index's vectors; `expected` is the `model` of index.json.

    Raises:
        ExportError: it is another: its queries and the index's items are vectors of two different models.
    """
    found = tower_hash(folder, serving)
    if found != expected:
        raise ExportError(
            problem(
                str(folder),
                f"this tower's hash is {found[:12]}",
                f"the index is of {expected[:12]}: queries are read by the model that has read the items; stale index",
                "export the index again from the tower's run, or serve the tower that came with the index",
            )
        )
