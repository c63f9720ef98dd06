"""A folder that stock `SentenceTransformer(folder)` loads: transformer, pooling, normalization.

The transformer is the merged model. Its modality is pinned to plain text: by default the library wraps every text in
the tokenizer's chat template where there is one, which tuning never did.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recft.exports._base import Engine, Source
from recft.exports._engine import ROWS, require, save_model, save_tokenizer, unreadable
from recft.registry import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["MEMBER"]

POOLING = {"mean": "mean", "last": "lasttoken"}
PLAIN_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@dataclass(frozen=True)
class SentenceTransformers:
    """The target."""

    summary = "a folder for SentenceTransformer(...) (bi-encoders)"
    needs: tuple[str, ...] = ("merged",)
    extra: str | None = "sentence-transformers"
    carries_base: bool = True
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"head": ("classifier", "answers", "likelihood")},
            reason="a SentenceTransformer gives embeddings, and this task's model gives labels",
            fix="export to merged or onnx",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes the modules as the library itself does, in safetensors."""
        require(("sentence_transformers",), "sentence-transformers")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        from recft.models.base import quiet

        serving = source.reference.serving
        # The library takes a transformer from a folder only.
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft, quiet():
            save_model(source.need_merged(), source.dtype, Path(draft))
            save_tokenizer(source.tokenizer, serving, Path(draft))
            transformer = Transformer(
                draft,
                max_seq_length=serving.max_tokens,
                modality_config=PLAIN_TEXT,
                module_output_name="token_embeddings",
                model_kwargs={"dtype": "auto"},
            )
            size = transformer.get_embedding_dimension()
            modules = [transformer, Pooling(size, POOLING[serving.pooling])]
            modules += [Normalize()] if serving.normalize else []
            SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)

    def open(self, folder: Path, serving: Serving) -> Engine:  # noqa: ARG002
        """The library's own model."""
        require(("sentence_transformers",), "sentence-transformers")
        import sentence_transformers

        from recft.models.base import device_of, quiet

        try:
            with quiet():
                model = sentence_transformers.SentenceTransformer(
                    str(folder), device=str(device_of()), local_files_only=True
                )
        except (OSError, ValueError) as error:
            raise unreadable(folder, error) from error

        def encode(texts: Sequence[Text]) -> np.ndarray:
            answer: np.ndarray = model.encode(list(texts), batch_size=ROWS, show_progress_bar=False)
            return answer.astype("float32")

        dtype = str(model.dtype).removeprefix("torch.")
        return Engine("sentence-transformers", sentence_transformers.__version__, encode, model.tokenizer, dtype)


MEMBER = SentenceTransformers()
