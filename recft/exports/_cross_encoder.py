"""A cross-encoder as stock libraries know one: a sequence classifier with as many outputs as the task has.

On a causal base that answers with tokens, a text's numbers are h·w over the answer tokens, h being the last hidden
state and w the tokens' rows of the vocabulary's matrix. A sequence classifier with these rows as its `score.weight`
computes the very same products, so that engines for rerankers and classifiers take the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ExportError, problem
from recft.exports._engine import ROWS
from recft.run import read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from recft.exports._base import Source
    from recft.models.merging import Merge
    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["activation", "scores", "write_classifier"]


def write_classifier(source: Source, folder: Path) -> None:
    """Writes the merged sequence classifier, whose outputs are the task's own and are named by its labels.

    Raises:
        ExportError: this head or this base is no sequence classifier.
    """
    serving, merge = source.serving, source.need_merge()
    if serving.kind == "causal":
        _check_last_token(source.tokenizer)
    if serving.head == "answers":
        merge = _of_answers(merge, serving)
    elif serving.columns:
        merge = _own_columns(merge, serving)
    merge.write(folder, source.dtype, source.listen)
    config = read_json(folder / "config.json")
    labels = serving.labels or tuple(str(number) for number in range(merge.n_outputs))
    config |= {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        # Engines that do not read the library's own file look here for what follows the logits.
        "sentence_transformers": {"activation_fn": activation(serving)},
    }
    if serving.kind == "causal":
        # By it a stock causal classifier finds a text's last token.
        config["pad_token_id"] = int(source.tokenizer.pad_token_id)
        _join_pairs(folder / "tokenizer.json")
    write_json(folder / "config.json", config)


def _join_pairs(path: Path) -> None:
    """Has the tokenizer put nothing between the two texts of a pair, as a causal base was tuned to read them.

    People pass pairs to a cross-encoder, and Llama's tokenizers begin the second text with a token of its own.
    """
    tokenizer = read_json(path)
    processor = tokenizer.get("post_processor") or {}
    for part in [processor, *processor.get("processors", ())]:
        if part.get("type") == "TemplateProcessing":
            second = {"Sequence": {"id": "B", "type_id": 0}}
            part["pair"] = [
                piece for one in part["single"] for piece in ([one, second] if "Sequence" in one else [one])
            ]
    write_json(path, tokenizer)


def activation(serving: Serving) -> str:
    """What follows the logits, as a class of torch: one output that means yes is shown as its probability."""
    return "torch.nn.modules.activation.Sigmoid" if serving.labels == ("yes",) else "torch.nn.modules.linear.Identity"


def scores(model: Any, texts: Sequence[Text]) -> np.ndarray:
    """The logits that a `CrossEncoder` gives texts or pairs, (N, K)."""
    import numpy as np
    import torch

    if not len(texts):
        return np.zeros((0, 0), np.float32)
    raw = torch.nn.Identity()
    if not isinstance(texts[0], str):
        pairs = [list(text) for text in texts]
        found = model.predict(pairs, batch_size=ROWS, activation_fn=raw, show_progress_bar=False)
    elif len(texts) == 1:
        found = model.predict(texts[0], activation_fn=raw, show_progress_bar=False)
    else:
        # `predict` takes a list of texts for one pair: these are the steps that it takes with a batch.
        found = _in_batches(model, texts)
    return np.asarray(found, np.float32).reshape(len(texts), -1)


def _in_batches(model: Any, texts: Sequence[Text]) -> np.ndarray:
    import numpy as np
    import torch

    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    parts = []
    for start in range(0, len(order), ROWS):
        features = model.preprocess([texts[row] for row in order[start : start + ROWS]])
        features = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        with torch.inference_mode():
            parts.append(model(features)["scores"].float().cpu().numpy())
    return np.asarray(np.concatenate(parts)[np.argsort(order)])


def _of_answers(merge: Merge, serving: Serving) -> Merge:
    """The merge of a classifier in the causal model's place."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    from recft.models.base import config_of

    config = config_of(merge.model)
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise _no_classifier(f"transformers has no sequence classifier of the architecture '{config.model_type}'")
    if getattr(config.get_text_config(), "final_logit_softcapping", None):
        raise _no_classifier("this base bends its logits (final_logit_softcapping), which a linear head cannot")
    rows = _answer_rows(merge, serving.label_ids)
    return replace(merge, head="classifier", n_outputs=len(serving.label_ids), heads={"score.weight": rows})


def _answer_rows(merge: Merge, ids: Sequence[int]) -> Tensor:
    """The rows of the vocabulary's matrix that belong to the answers, (K, D) float32."""
    names = _vocabulary_names(merge)
    for name, tensor in merge.tensors():
        if name in names:
            return tensor[list(ids)].clone()
    raise _no_classifier(f"none of {', '.join(names)} is among the merged weights")


def _vocabulary_names(merge: Merge) -> list[str]:
    """What the matrix that gives logits may be called among the merged weights; tied, it may go by the other's name."""
    import torch
    from transformers import AutoModelForCausalLM

    from recft.models.base import config_of

    config = config_of(merge.model)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, trust_remote_code=merge.model.trust_remote_code)
    out = shape.get_output_embeddings()
    if out is None or getattr(out, "bias", None) is not None:
        raise _no_classifier("its vocabulary's matrix has a bias, which a stock classifier's head lacks")
    tied = [shape.get_input_embeddings()] if config.get_text_config().tie_word_embeddings else []
    return [f"{name}.weight" for name, module in shape.named_modules() if any(module is one for one in [out, *tied])]


def _own_columns(merge: Merge, serving: Serving) -> Merge:
    """The merge whose head gives this task's outputs only."""
    whole = {name for name, tensor in merge.heads.items() if tensor.shape[0] == serving.n_outputs}
    if len({name.rpartition(".")[0] for name in whole}) != 1:
        raise _no_classifier(
            f"which part of the shared head ({', '.join(sorted(merge.heads))}) is this task's is unclear"
        )
    columns = list(serving.columns)
    heads = {name: tensor[columns] if name in whole else tensor for name, tensor in merge.heads.items()}
    return replace(merge, n_outputs=len(columns), heads=heads)


def _check_last_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Nothing, where a stock causal classifier finds each text's last token.

    Raises:
        ExportError: texts end with the padding token, over which it looks.
    """
    if tokenizer("a")["input_ids"][-1] == tokenizer.pad_token_id:
        raise _no_classifier("its texts end with the padding token, and a stock classifier reads the token before")


def _no_classifier(reason: str) -> ExportError:
    return ExportError(
        problem(
            "export",
            "this model cannot become a sequence classifier",
            reason,
            "export to merged or onnx",
        )
    )
