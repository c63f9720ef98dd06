"""What a run's manifest says of where it ran and what it ran on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import recft
from recft.recipe import Recipe
from recft.run import hash_bytes

__all__ = ["begin", "versions"]

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "numpy", "polars")


def begin(recipe: Recipe, data: str, base: str) -> dict[str, Any]:
    """The manifest of a run that begins now."""
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": _hardware(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "hashes": {
            "recipe": hash_bytes(recipe.to_yaml().encode()),
            "data": data,
            "base": base,
        },
    }


def versions() -> dict[str, str]:
    """The versions of what decides a result."""
    found = {"python": platform.python_version(), "recft": recft.__version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def _hardware() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"cpu": model, "threads": torch.get_num_threads(), "gpus": gpus, "system": platform.platform()}
