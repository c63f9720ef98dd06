"""Resumable states: tensors as safetensors, the rest as JSON, a folder a step, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recft.errors import RecftError, TuneError, problem
from recft.run import atomic_folder, read_json, write_json, write_text
from recft.training.assemble import save_tensors

__all__ = ["Progress", "cut_back", "latest", "load", "save"]

KEEP = 2


@dataclass
class Progress:
    """Where a run stands; all of it is in every checkpoint.

    Attributes:
        step: optimizer steps done.
        micro_batch: texts a forward pass, as found so far.
        checkpointed_blocks: blocks that are computed again in the backward pass, as found so far.
        best: the best validation score so far.
        best_step: when it was seen.
        since_best: evaluations since then.
        stopped: whether early stopping has ended the run.
        seconds: time spent in steps, over all sittings.
        fingerprint: hash of the recipe and the data: a resume must have the same.
        loss_scale: of float16 training.
        optimizer: what of the optimizer's state is no tensor.
    """

    step: int = 0
    micro_batch: int = 1
    checkpointed_blocks: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    stopped: bool = False
    seconds: float = 0.0
    fingerprint: str = ""
    loss_scale: float = 1.0
    optimizer: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Writes the checkpoint of a step and drops all but the newest few."""
    with atomic_folder(folder / f"step-{progress.step:08d}") as draft:
        save_tensors(draft / "state.safetensors", tensors)
        write_json(draft / "progress.json", asdict(progress))
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    return max(folder.glob("step-*"), default=None)


def load(path: Path, fingerprint: str) -> tuple[Progress, dict[str, Tensor]]:
    """The state in a checkpoint.

    Raises:
        TuneError: it is damaged, or of another recipe or other data.
    """
    try:
        progress = Progress(**read_json(path / "progress.json"))
        tensors = load_file(path / "state.safetensors")
    except (SafetensorError, FileNotFoundError, TypeError, RecftError) as error:
        raise TuneError(
            problem(
                str(path),
                f"is damaged ({error})",
                "a checkpoint as recft wrote it",
                "remove this folder to resume from the one before",
            )
        ) from error
    if progress.fingerprint != fingerprint:
        raise TuneError(
            problem(
                str(path),
                "was made by another recipe or from other data",
                "a run is resumed with the recipe and data it began with",
                "restore the recipe, or start anew with --force",
            )
        )
    return progress, tensors


def cut_back(log: Path, step: int) -> list[dict[str, Any]]:
    """The lines of a metrics log up to `step`; later ones, and one cut short by a crash, are removed from the file."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a killed run may be half a line
        if entry["step"] > step:
            break
        kept.append(entry)
    write_text(log, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept
