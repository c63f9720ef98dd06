"""A plain transformers model that was fitted to reproduce the tuned one: for methods that cannot be merged.

Prefix and bottleneck adapters have no weights to add to the base's. Here a LoRA is fitted to the tuned model's outputs
on training texts, without labels, and merged; the artefact is what `merged` writes, and every engine that loads one
loads it. It is near the tuned model, not equal to it: the certificate says how near, and fails where more than
`export.tolerances.distilled` of the adapter's effect is missing. Where the scores must be exact, `onnx` carries the
adapter itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from recft.errors import ExportError, problem
from recft.exports._base import Engine, Export, Opening, Serve, Source, other_target
from recft.registry import Refusal
from recft.run import read_json, write_json
from recft.schema import Positive, Settings

if TYPE_CHECKING:
    from recft.exports._rows import Rows

__all__ = ["MEMBER"]

FIGURES = "distilled.json"
MERGED = "merged"


class DistilSettings(Settings):
    """The settings of a distilled export."""

    rank: Positive = Field(default=32, description="of the LoRA that is fitted, on all linear layers")
    steps: Positive = Field(default=400, description="of the fit")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="its peak")
    batch_size: Positive = Field(default=32, description="texts a step")
    texts: Positive = Field(default=10_000, description="training texts that it is fitted to, at most")


@dataclass(frozen=True)
class Distil:
    """The target."""

    Config = DistilSettings
    summary = "a plain transformers model fitted to score as a prefix or bottleneck run does"
    needs: tuple[str, ...] = ("fit",)
    extra: str | None = None
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"mergeable": True},
            reason="this method has weights to merge, which is exact where a fit only comes near",
            fix="export to merged",
        ),
        Refusal(
            when={"head": "likelihood"},
            reason="a reply's likelihood rests on every token's distribution, and a fit sees single numbers",
            fix="export to onnx or code, which carry the adapter itself",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes what `merged` writes of a LoRA fitted to the tuned model, and how the fit went."""
        if source.merge is not None:
            raise ExportError(
                problem("--to distil", "this run can be merged", "merging is exact, a fit is not", "export to merged")
            )
        if source.serving.head == "likelihood":
            raise ExportError(
                problem(
                    "--to distil",
                    "this model gives likelihoods",
                    "a fit sees single numbers, not every token's distribution",
                    "export to onnx or code",
                )
            )
        if source.fit is None:
            raise ExportError(
                problem("--to distil", "nobody hands over a fit", "the verb does", "export through recft.export")
            )
        for path in folder.iterdir():  # an interrupted export's weights were of another fit
            path.unlink() if path.is_file() else shutil.rmtree(path)
        settings = source.settings if isinstance(source.settings, DistilSettings) else DistilSettings()
        source.listen("stage", {"name": f"fitting a LoRA of rank {settings.rank} to the tuned model's scores"})
        fitted = source.fit(
            texts=source.texts(settings.texts),
            rank=settings.rank,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
        )
        missing = f"{fitted.figures['missing_share']:.1%}"
        source.listen("note", {"text": f"on held-out training texts {missing} of the adapter's effect is missing"})
        source.others(MERGED).write(replace(source, merge=fitted.merge), folder)
        write_json(folder / FIGURES, dict(fitted.figures))

    def open(self, folder: Path, how: Opening) -> Engine:
        """As `merged` opens it; the certificate also says how the fit went."""
        fit = read_json(folder / FIGURES)

        def own(rows: Rows) -> tuple[dict[str, Any], list[str]]:  # noqa: ARG001 - it needs none
            return {"fit": fit}, []

        return replace(how.others(MERGED).open(folder, how), own=own, distilled=True)

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """As a merged model."""
        merged: Export = other_target(MERGED)
        return merged.serve(description)


MEMBER = Distil()
