"""What the targets share: tokenizer files, tokens as a stock engine makes them, batches, and a plain pooling.

Deliberately none of recft's TextModel: an engine that shared the tuned model's code would hide what differs.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from recft.errors import ExportError, problem
from recft.run import read_json
from recft.schema import ModelSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = [
    "BASE",
    "base_of",
    "batched",
    "numbers",
    "open_tokenizer",
    "refuse",
    "require",
    "save_tokenizer",
    "tokens",
    "unreadable",
]

BASE = "base.json"
"""Beside an adapter: how its base was loaded."""

ROWS = 32
"""Texts a batch."""

ROWS_OF_LOGITS = 4
"""The same where a row's output is the whole vocabulary for every token."""


def require(modules: Sequence[str], extra: str) -> None:
    """Checks that a target's libraries are there.

    Raises:
        ExportError: one is missing; the message names the extra.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ExportError(
                problem(
                    "export", f"'{module}' is not installed", "this target needs it", f"pip install 'recft[{extra}]'"
                )
            )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, serving: Serving, folder: Path) -> None:
    """Writes the tokenizer's files so that a stock engine pads and truncates as the tuned model was."""
    saved = copy.deepcopy(tokenizer)
    saved.model_max_length = serving.max_tokens
    saved.padding_side = serving.padding_side
    # A fast tokenizer remembers how it last padded and truncated, and would write that.
    backend = saved.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    saved.save_pretrained(folder)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The stock tokenizer of an exported folder.

    Raises:
        ExportError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # unsaid, it would ask
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error


def base_of(folder: Path, trust: bool) -> ModelSettings:
    """The base that an adapter's `base.json` names.

    Raises:
        ExportError: there is none, or it wants code to be run and the user has not said so: a folder cannot say it.
    """
    try:
        settings = ModelSettings.model_validate(read_json(folder / BASE))
    except ValueError as error:
        raise unreadable(folder, ValueError(f"{BASE} is no description of a base")) from error
    if settings.trust_remote_code and not trust:
        raise ExportError(
            problem(
                str(folder / BASE),
                f"its base '{settings.base}' brings model code of its own, and trust is false",
                "code runs only where you say so",
                "read that code, then give --trust-remote-code",
            )
        )
    return settings


def refuse(what: str, rule: str, fix: str = "export to merged or onnx") -> NoReturn:
    """Stops an export that the format cannot carry.

    Raises:
        ExportError: always.
    """
    raise ExportError(problem("export", what, rule, fix))


def unreadable(folder: Path, error: Exception) -> ExportError:
    """The error for an artefact that its engine refuses."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ExportError(
        problem(
            str(folder), f"the engine cannot load it ({first})", "an export is as recft wrote it", "export it again"
        )
    )


def tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], serving: Serving, kind: str) -> Mapping[str, Any]:
    """A padded batch, truncated plainly; `kind` of tensors is `pt` or `np`. Pairs are a base's two segments.

    For a likelihood they are tokenized apart, and `tail_mask` marks the tail.
    """
    if serving.head == "likelihood":
        return _apart(tokenizer, texts, serving)  # torch tensors, which numpy takes as they are
    options: dict[str, Any] = {
        "padding": True,
        "truncation": True,
        "max_length": serving.max_tokens,
        "return_tensors": kind,
    }
    parts = [list(texts)] if isinstance(texts[0], str) else [list(part) for part in zip(*texts, strict=True)]
    batch: Mapping[str, Any] = tokenizer(*parts, **options)
    return batch


def _apart(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], serving: Serving) -> dict[str, Any]:
    import torch

    from recft.models.tokens import apart

    rows = apart(tokenizer, texts, serving.max_tokens, serving.chat)
    width = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": int(tokenizer.pad_token_id or tokenizer.eos_token_id or 0), "tail_mask": 0}
    batch = {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
        for name, fill in fills.items()
    }
    batch["attention_mask"] = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    )
    return batch


def batched(compute: Callable[[list[Text]], np.ndarray], rows: int = ROWS) -> Callable[[Sequence[Text]], np.ndarray]:
    """`compute`, `rows` texts at a time, texts of similar length together: (N, K) float32."""
    import numpy as np

    def encode(texts: Sequence[Text]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -sum(map(len, texts[row])))
        parts = [compute([texts[row] for row in order[start : start + rows]]) for start in range(0, len(order), rows)]
        if not parts:
            return np.zeros((0, 0), np.float32)
        found = np.concatenate(parts).astype(np.float32)
        return found[np.argsort(order)]

    return encode


def numbers(model: Any, batch: Mapping[str, Tensor], serving: Serving) -> np.ndarray:
    """What a stock transformers or PEFT model gives for a batch padded on the right, after head or pooling: (B, K).

    Answers are read from the full logits: nothing of the model is passed over.
    """
    import torch

    with torch.inference_mode():
        batch = dict(batch)
        tail = batch.pop("tail_mask", None)
        # A base that carries another task's head shows its last hidden states when it is asked.
        outputs = model(**batch, **({"output_hidden_states": True} if serving.head == "embedding" else {}))
        mask = batch["attention_mask"]
        last = mask.sum(dim=1) - 1
        rows = torch.arange(len(last), device=last.device)
        if serving.head == "classifier":
            found = outputs.logits[:, list(serving.columns)] if serving.columns else outputs.logits
        elif serving.head == "answers":
            found = outputs.logits[rows, last][:, list(serving.label_ids)]
        elif serving.head == "likelihood":
            found = _likelihood(outputs.logits, batch["input_ids"], tail)
        else:
            found = _pooled(outputs, mask, last, serving)
        answer: np.ndarray = found.float().cpu().numpy()
    return answer


def _pooled(outputs: Any, mask: Tensor, last: Tensor, serving: Serving) -> Tensor:
    import torch

    hidden = getattr(outputs, "last_hidden_state", None)
    hidden = outputs.hidden_states[-1] if hidden is None else hidden
    if serving.pooling == "mean":
        found = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    else:
        found = hidden[torch.arange(len(last), device=last.device), last]
    found = found.float()
    length = found.norm(dim=1, keepdim=True) if serving.normalize else torch.ones(1, device=found.device)
    pooled: Tensor = found / length
    return pooled


def _likelihood(logits: Tensor, input_ids: Tensor, tail: Any) -> Tensor:
    import torch

    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1)  # (B, T - 1, V)
    each = log_p.gather(2, input_ids[:, 1:, None])[:, :, 0] * tail[:, 1:]
    return torch.stack([each.sum(dim=1), tail.sum(dim=1).float()], dim=1)
