"""`verify`: certifies an exported folder again, in the engine that serves it, with nothing but the folder."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from recft import registry
from recft.errors import ExportError, problem
from recft.export import DESCRIPTION, FORMAT, ROWS
from recft.exports._base import Opening
from recft.exports._rows import Rows
from recft.models.base import base_hash
from recft.models.text_model import Serving
from recft.run import Listener, hash_file, read_json, silent
from recft.schema import ModelSettings
from recft.training.certifying import Asked, certify
from recft.training.held_out import held_out
from recft.training.opened import exam_of, open_run
from recft.training.reference import tuned_rows

__all__ = ["open_export", "verify"]

NEEDED: dict[str, type] = {
    "target": str,
    "task": dict,
    "serving": dict,
    "table": str,
    "base": dict,
    "onto": dict,
    "files": dict,
    "certificate": dict,
}
"""What every description holds, and of which kind."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
"""Endings by which engines know a pickle: reading one can run code, so none is an export's, whatever its SHA-256."""

HARMLESS = (".md", ".rst", ".html", ".pdf", ".png", ".jpg", ".svg", ".csv", ".log")
"""Files of these endings no engine reads; what is added with another may be code, a pickle, weights or settings."""


def open_export(folder: Path, listen: Listener = silent) -> dict[str, Any]:
    """What `recft-export.json` holds, after every file was found as it was written, and none beside them.

    An added file that no engine reads is told; hidden folders (a clone's `.git`, a download's `.cache`) are passed
    over, as engines pass over them.

    Raises:
        ExportError: the folder is no export, a file is missing or changed, or one was added that an engine may read.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ExportError(
            problem(str(folder), f"holds no {DESCRIPTION}", "a folder made by `recft export`", "check the path")
        )
    description = _described(folder / DESCRIPTION)
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
    _check_added(folder, description, listen)
    _check_base(folder / DESCRIPTION, description)
    return description


def _check_base(path: Path, description: dict[str, Any]) -> None:
    """Nothing, where the artefact holds its base, or the base that it is served over is still the one it was made for.

    Raises:
        ExportError: the base's weights have changed, or the description does not say which they were.
    """
    if registry.load("recft.exports", description["target"]).carries_base:
        return
    try:
        model = ModelSettings.model_validate(description["base"]["model"])
        expected = str(description["base"]["hash"])
    except (KeyError, ValueError) as error:
        raise ExportError(problem(str(path), "'base' cannot be read", "as recft wrote it", "export again")) from error
    found = base_hash(model)
    if found != expected:
        raise ExportError(
            problem(
                f"base {model.base}",
                f"its weights are {found[:64]}",
                f"{expected[:64]}, as exported: an adapter is served over the base that it was tuned on",
                "put that base back, or export again",
            )
        )


def _described(path: Path) -> dict[str, Any]:
    """The description, of the form that the rest of recft counts on.

    Raises:
        ExportError: it is of another, or says of the model what its certificate does not.
    """

    def wrong(what: str) -> ExportError:
        return ExportError(problem(str(path), what, "as recft wrote it", "export again"))

    found: dict[str, Any] = read_json(path)
    for key, kind in NEEDED.items():
        if not isinstance(found, dict) or key not in found:
            raise wrong(f"says nothing of '{key}'")
        if not isinstance(found[key], kind):
            raise wrong(f"'{key}' is {json.dumps(found[key])[:40]}")
    newest = found.get("format")
    if not isinstance(newest, int) or newest > FORMAT:
        fix = "install the recft that made it, or export again"
        raise ExportError(problem(str(path), f"format {newest}", f"this recft reads formats up to {FORMAT}", fix))
    for name, digest in found["files"].items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or not isinstance(digest, str):
            raise wrong(f"'files' names {name!r}, which is no file inside the folder with its SHA-256")
        if name.lower().endswith(PICKLES):
            raise ExportError(
                problem(
                    str(path.parent / name),
                    "is a pickle by its name",
                    "an export holds safetensors, ONNX, GGUF or faiss; reading a pickle can run code",
                    "export again",
                )
            )
    try:
        registry.load("recft.tasks", str(found["task"].get("name"))).Config.model_validate(found["task"])
        Serving.from_json(found["serving"])
        asked = Asked.from_json(found["certificate"]["asked"]).to_json() if "asked" in found["certificate"] else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise wrong(f"what it says of task, serving or certificate cannot be read ({first})") from error
    for key in ("task", "serving"):
        if asked is not None and found[key] != asked[key]:
            raise wrong(f"'{key}' is not what the certificate was made for")
    return found


def _check_added(folder: Path, description: dict[str, Any], listen: Listener) -> None:
    """Nothing, where no file was added that an engine may read.

    Raises:
        ExportError: one was.
    """
    known = {*description["files"], DESCRIPTION}
    names = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file() or file.is_symlink())
    added = [name for name in names if name.as_posix() not in known and not any(p.startswith(".") for p in name.parts)]
    read = [name for name in added if name.suffix.lower() not in HARMLESS]
    if read:
        raise ExportError(
            problem(
                str(folder / read[0]),
                "is no file of the export" + (f", nor are {len(read) - 1} others" if len(read) > 1 else ""),
                f"an engine may read it, and {DESCRIPTION} has no SHA-256 of it",
                "remove it, or export again",
            )
        )
    for name in added:
        listen("warning", {"text": f"{folder / name} is no file of the export; no engine reads it"})


def verify(
    folder: Path | str, run: Path | str | None = None, trust: bool = False, listen: Listener = silent
) -> dict[str, Any]:
    """What `recft-export.json` holds, with the certificate computed anew.

    Args:
        folder: an exported one.
        run: the run it was made of, for an export without rows of its own.
        trust: whether model code that lies in the folder may be run.
        listen: hears of stages.

    Raises:
        ExportError: a file has changed, there are no rows, or the engine no longer scores as the tuned model did.
    """
    folder = Path(folder)
    listen("stage", {"name": "checking files"})
    description = open_export(folder, listen)
    old = description["certificate"]
    if "asked" not in old:
        raise ExportError(
            problem(
                str(folder / DESCRIPTION),
                "its certificate does not say what was asked",
                "an export of this version of recft",
                "export again",
            )
        )
    asked = Asked.from_json(old["asked"])
    rows = _rows(folder, description, asked, None if run is None else Path(run), listen)
    listen("stage", {"name": f"scoring in {old.get('engine', 'its engine')}"})
    opening = Opening(asked.serving, trust, asked.tolerances)
    found = certify(registry.load("recft.exports", description["target"]).open(folder, opening), rows, asked)
    if found["wrong"]:
        raise ExportError(
            problem(
                str(folder),
                f"the certificate fails: {'; '.join(found['wrong'])}",
                "an export scores as the tuned model does",
                f"serve it with {old.get('engine')} {old.get('version')}, or export again",
            )
            + "\n"
            + "\n".join(found["worst_rows"])
        )
    kept = {key: old[key] for key in ("split", "k_bit", "asked") if key in old}
    found |= kept | {"at_export": {key: old.get(key) for key in ("engine", "version", "latency")}}
    return {**description, "certificate": found}


def _rows(folder: Path, description: dict[str, Any], asked: Asked, run: Path | None, listen: Listener) -> Rows:
    """The rows that travel with the export, or those of its run.

    Raises:
        ExportError: there are neither, or the run is another.
    """
    if ROWS in description["files"]:
        return Rows.read(folder / ROWS)
    if run is None:
        source = description.get("source_run", "RUN")
        raise ExportError(
            problem(
                str(folder),
                "was exported without rows",
                "an artefact is compared with the tuned model on held-out rows",
                f"give the run that it was made of: --run {source}",
            )
        )
    listen("stage", {"name": "scoring held-out rows with the tuned model"})
    opened = open_run(run)
    recipe, store = opened.part(asked.task.name)
    _check_source(run, "data", description.get("data"), store.card["data_sha256"])
    weights = opened.folder.adapter / "adapter_model.safetensors"
    _check_source(
        run, "adapter", description.get("adapter_sha256"), hash_file(weights) if weights.is_file() else "missing"
    )
    split = description["certificate"].get("split", "test")
    exam = held_out(exam_of(recipe, store, split, asked.metrics), recipe.export.rows)
    return tuned_rows(recipe, opened.folder, description["onto"]["weights"], exam)


def _check_source(run: Path, what: str, expected: object, found: object) -> None:
    """Nothing, where the run is the one that was exported.

    Raises:
        ExportError: it is another.
    """
    if found != expected:
        raise ExportError(
            problem(
                f"--run {run}",
                f"its {what} is not the export's: SHA-256 {str(found)[:12]}",
                f"SHA-256 {str(expected)[:12]}, as exported",
                "name the run that it was made of, or export again",
            )
        )
