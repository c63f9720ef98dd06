"""A folder that stock `SentenceTransformer(folder)` or `CrossEncoder(folder)` loads: the merged model and who reads it.

A model of embeddings becomes a bi-encoder: transformer, pooling, normalization, and the task's prompts under the names
`query` and `document`, of which none is added unless it is asked for by name. A model of labels or answers becomes a
cross-encoder, a sequence classifier. Their texts are pinned to plain ones: by default the library wraps every text in
the tokenizer's chat template where there is one, which tuning never did.

The weights are written by the merge straight into the folder and the library's own files are laid beside them, so
that nothing is loaded to be saved again. Two of them are in the form that the library wrote before 5.4, which it reads
as its own: vLLM before autumn 2026 and others read no newer one and pool in silence as the architecture does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.exports import _cross_encoder as cross_encoder
from recft.exports._base import Engine, NoSettings, Opening, Serve, Source
from recft.exports._engine import ROWS, require, save_tokenizer, unreadable
from recft.exports._servers import classifier_servers, embedding_servers
from recft.registry import Refusal
from recft.run import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["MEMBER"]

POOLING = {"mean": "mean", "last": "lasttoken"}
OLDER_POOLING = {"mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
LIBRARY = "sentence-transformers"


@dataclass(frozen=True)
class SentenceTransformers:
    """The target."""

    Config = NoSettings
    summary = "a folder for SentenceTransformer(...) or CrossEncoder(...): bi-encoders, classifiers, rerankers"
    needs: tuple[str, ...] = ("merge",)
    extra: str | None = LIBRARY
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"head": "likelihood"},
            reason="sentence-transformers gives embeddings and labels, and this task's model likelihoods of replies",
            fix="export to merged, gguf or onnx",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes the merged weights in safetensors, the tokenizer, and what the library reads beside them."""
        require(("sentence_transformers",), LIBRARY)
        serving = source.serving
        save_tokenizer(source.tokenizer, serving, folder)
        if serving.head == "embedding":
            source.need_merge().write(folder, source.dtype, source.listen)
            _write_pooling(source, folder)
        else:
            cross_encoder.write_classifier(source, folder)
        _write_transformer(serving, folder)
        own = (
            {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine" if serving.normalize else "dot"}
            if serving.head == "embedding"
            else {"model_type": "CrossEncoder", "activation_fn": cross_encoder.activation(serving)}
        )
        prompts = {"query": "", "document": "", **source.prompts} if serving.head == "embedding" else {}
        settings = {"__version__": _versions(), "default_prompt_name": None, "prompts": prompts, **own}
        write_json(folder / "config_sentence_transformers.json", settings)

    def open(self, folder: Path, how: Opening) -> Engine:
        """The library's own model."""
        require(("sentence_transformers",), LIBRARY)
        import sentence_transformers

        from recft.models.base import device_of, quiet

        embeds = how.serving.head == "embedding"
        library = sentence_transformers.SentenceTransformer if embeds else sentence_transformers.CrossEncoder
        try:
            with quiet():
                model: Any = library(str(folder), device=str(device_of()), local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(folder, error) from error

        def encode(texts: Sequence[Text]) -> np.ndarray:
            if not embeds:
                return cross_encoder.scores(model, texts)
            answer: np.ndarray = model.encode(list(texts), batch_size=ROWS, show_progress_bar=False)
            return answer.astype("float32")

        def tokens(texts: Sequence[Text]) -> list[list[int]]:
            # One by one, so that there is no padding: whether the library wraps texts in anything shows here.
            return [model.preprocess([text])["input_ids"][0].tolist() for text in texts]

        dtype = str(model.dtype).removeprefix("torch.")
        return Engine(LIBRARY, sentence_transformers.__version__, encode, model.tokenizer, dtype, tokens)

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """In the library itself, in TEI and in vLLM."""
        embeds = description["serving"]["head"] == "embedding"
        return embedding_servers(description) if embeds else classifier_servers(description)


def _write_transformer(serving: Serving, folder: Path) -> None:
    """Writes how texts go through the transformer, and which modules follow it."""
    embeds = serving.head == "embedding"
    output = "last_hidden_state" if embeds else "logits"
    settings = {
        "transformer_task": "feature-extraction" if embeds else "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": "token_embeddings" if embeds else "scores",
        # For readers of the older form; the library itself takes the length from the tokenizer.
        "max_seq_length": serving.max_tokens,
        "do_lower_case": False,
    }
    write_json(folder / "sentence_bert_config.json", settings)
    names = ["Transformer"]
    if embeds:
        names += ["Pooling", *(["Normalize"] if serving.normalize else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    write_json(folder / "modules.json", modules)


def _write_pooling(source: Source, folder: Path) -> None:
    """Writes the settings of the modules that follow the transformer."""
    from recft.models.base import config_of

    serving = source.serving
    size = int(config_of(source.model).get_text_config().hidden_size)  # by its own name, whatever the base calls it
    older = {key: key == OLDER_POOLING[serving.pooling] for key in OLDER_POOLING.values()}
    both = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False, **older}
    pooling = {"word_embedding_dimension": size, "pooling_mode": POOLING[serving.pooling], "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", {**pooling, **both})
    if serving.normalize:
        normalized = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        write_json(folder / "2_Normalize" / "config.json", normalized)


def _versions() -> dict[str, str]:
    import sentence_transformers
    import torch
    import transformers

    return {
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }


MEMBER = SentenceTransformers()
