"""One plain transformers model: the adapter merged into float32 weights, as safetensors.

Merging is the verb's and the method's: W' is computed tensor by tensor from weights freshly read from disk. Here the
model is written in the wanted dtype, with its head, tied embeddings once, and the tokenizer. A stock `from_pretrained`
loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recft.exports._base import Engine, Source
from recft.exports._engine import (
    ROWS,
    ROWS_OF_LOGITS,
    batched,
    numbers,
    open_tokenizer,
    save_model,
    save_tokenizer,
    tokens,
    unreadable,
)
from recft.registry import Refusal

if TYPE_CHECKING:
    import numpy as np

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["MEMBER"]


@dataclass(frozen=True)
class Merged:
    """The target."""

    summary = "a plain transformers model in safetensors, loaded by from_pretrained"
    needs: tuple[str, ...] = ("merged",)
    extra: str | None = None
    carries_base: bool = True
    refusals: tuple[Refusal, ...] = ()

    def write(self, source: Source, folder: Path) -> None:
        """Writes `model.safetensors`, `config.json` and the tokenizer's files."""
        save_model(source.need_merged(), source.dtype, folder)
        save_tokenizer(source.tokenizer, source.reference.serving, folder)

    def open(self, folder: Path, serving: Serving) -> Engine:
        """The model of the stock Auto class, in the dtype it was written in."""
        import transformers

        from recft.models.base import AUTO_CLASS, device_of, quiet

        tokenizer = open_tokenizer(folder)
        try:
            with quiet():
                automatic = getattr(transformers, AUTO_CLASS[serving.head])
                model = automatic.from_pretrained(folder, dtype="auto", use_safetensors=True).eval().to(device_of())
        except (OSError, ValueError) as error:
            raise unreadable(folder, error) from error

        def compute(texts: list[Text]) -> np.ndarray:
            batch = tokens(tokenizer, texts, serving, "pt")
            return numbers(model, {name: tensor.to(model.device) for name, tensor in batch.items()}, serving)

        rows = ROWS_OF_LOGITS if serving.head in ("answers", "likelihood") else ROWS
        return Engine(
            "transformers",
            transformers.__version__,
            batched(compute, rows),
            tokenizer,
            str(model.dtype).removeprefix("torch."),
        )


MEMBER = Merged()
