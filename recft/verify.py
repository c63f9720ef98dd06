"""`verify`: certifies an exported folder again, in the engine that serves it, with nothing but the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recft import registry
from recft.errors import ExportError, problem
from recft.export import DESCRIPTION, ROWS
from recft.exports._certificate import Rows, certify
from recft.models.text_model import Serving
from recft.run import Listener, hash_file, read_json, silent
from recft.schema import Tolerances

__all__ = ["open_export", "verify"]


def open_export(folder: Path) -> dict[str, Any]:
    """What `recft-export.json` holds, after every file was found as it was written.

    Raises:
        ExportError: the folder is no export, or a file is missing or changed.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ExportError(
            problem(str(folder), f"holds no {DESCRIPTION}", "a folder made by `recft export`", "check the path")
        )
    description: dict[str, Any] = read_json(folder / DESCRIPTION)
    for name, expected in description["files"].items():
        file = folder / name
        found = hash_file(file) if file.is_file() else "missing"
        if found != expected:
            raise ExportError(
                problem(
                    str(file),
                    "is missing" if found == "missing" else f"has changed: SHA-256 {found[:12]}",
                    f"SHA-256 {expected[:12]}, as exported",
                    "export again",
                )
            )
    return description


def verify(folder: Path | str, listen: Listener = silent) -> dict[str, Any]:
    """The certificate of an exported folder, computed anew.

    Raises:
        ExportError: a file has changed, or the engine no longer scores as the tuned model did.
    """
    folder = Path(folder)
    listen("stage", {"name": "checking files"})
    description = open_export(folder)
    serving = Serving.from_json(description["serving"])
    old = description["certificate"]
    listen("stage", {"name": f"scoring in {old['engine']}"})
    engine = registry.load("recft.exports", description["target"]).open(folder, serving)
    rows = Rows.read(folder / ROWS)
    found = certify(
        engine, rows, serving, engine.tokenizer, Tolerances.model_validate(old["tolerances"]), old["effect_kl"]
    )
    if found["wrong"]:
        raise ExportError(
            problem(
                str(folder),
                f"the certificate fails: {'; '.join(found['wrong'])}",
                "an export scores as the tuned model does",
                f"serve it with {old['engine']} {old['version']}, or export again",
            )
            + "\n"
            + "\n".join(found["worst_rows"])
        )
    found |= {"tolerances": old["tolerances"], "at_export": {"engine": old["engine"], "version": old["version"]}}
    return {**description, "certificate": found}
