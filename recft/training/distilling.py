"""A plain LoRA that scores as another adapter does: for methods that have no weights to merge into.

The reference, the tuned model in float32, says once what it makes of some training texts. A new LoRA over the same
float32 base is then fitted to those numbers (Hinton et al. 2015, arXiv 1503.02531, with vectors and logits in place of
soft labels), in float32 and without dropout:

    embeddings   mean of 1 - cos(v, v*), and of the squares of (V - V*) R*ᵀ / T less its rows' means, with R* the
                 reference's vectors of all texts
    labels       mean of (z - z*)² / variance of z*, plus KL(softmax z* ‖ softmax z) where there are several

Scores with many other texts are what a ranking sees of a vector, in units of the temperature T. The reference answers
for any text, so that a small shop's texts are joined by parts of themselves. Texts that are held out of the fit decide
which step is kept and tell how much of the adapter's effect is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from recft import registry
from recft.errors import ExportError, problem
from recft.exports._base import FittedLora, Source
from recft.methods._base import SAVED_PREFIX, Attached, Plan
from recft.models.base import device_of
from recft.models.merging import Merge
from recft.models.passes import passes
from recft.models.text_model import TextModel, padded
from recft.models.tokens import Text, Tokens
from recft.models.weights import float32_base
from recft.training.schedule import learning_rate as rate_at

__all__ = ["distilled"]

FEWEST_TEXTS = 8
HELD_OUT, MOST_HELD_OUT = 0.1, 256
EVALUATIONS = 10
WARMUP_SHARE = 0.1
CHUNK_TOKENS = 8192
MOST_OTHERS = 2048
"""Texts of whose vectors scores are made."""

ENOUGH_TEXTS = 2000
"""Where there are fewer texts, parts of them join them, up to about so many."""

POOL_BATCHES = 16
"""So many batches' texts are sorted by length before they are divided: little padding."""


def distilled(
    source: Source,
    onto: str,
    texts: Sequence[Text],
    rank: int,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int = 0,
) -> FittedLora:
    """A LoRA on all linear layers that gives the tuned model's numbers, and how nearly.

    Args:
        source: the tuned model, its base and how its texts become numbers.
        onto: the base weights under the LoRA, those of the reference: `original` or `dequantized`.
        texts: of training, as the model reads them; a tenth is held out of the fit.
        rank: of the LoRA.
        steps: of the optimizer.
        learning_rate: its peak; it rises over a tenth of the steps and falls as half a cosine.
        batch_size: texts a step.
        seed: of the LoRA's initial values, the held-out texts and the order of the others.

    Raises:
        ExportError: there are too few texts.
    """
    different = list(dict.fromkeys(texts))
    if len(different) < FEWEST_TEXTS:
        raise ExportError(
            problem(
                "export to distil",
                f"{len(different)} different training texts",
                f"a fit needs {FEWEST_TEXTS} at least",
                "export to onnx, which carries the adapter itself",
            )
        )
    order = np.random.default_rng(seed).permutation(len(different))
    n_held = max(1, min(MOST_HELD_OUT, int(len(order) * HELD_OUT)))
    held, train = ([different[row] for row in rows] for rows in (order[:n_held], order[n_held:]))
    train = _with_parts(train, seed)
    device, serving = device_of(), source.serving
    tokens = serving.tokens(source.tokenizer, [*held, *train])
    pad_id = int(source.tokenizer.pad_token_id or 0)
    reference = source.tuned()
    nn.Module.to(reference, device)
    wanted = _outputs(reference, tokens, pad_id)
    del reference  # two models in float32 need not stand side by side
    base = float32_base(source.model, serving.carrier, _dtype(source), onto, seed, serving.n_outputs)
    parameters = dict(base.model.named_parameters())
    heads = {name: source.adapter_tensors[f"{SAVED_PREFIX}{name}"].float() for name in base.new_parameters}
    for name, tensor in heads.items():
        parameters[name].data.copy_(tensor)
    lora = registry.load("recft.methods", "lora")
    nn.Module.to(base.model, device)
    attached = lora.attach(
        base.model,
        lora.Config(rank=rank),
        Plan(kind=serving.kind, base=source.model.base, total_steps=steps, seed=seed),
    )
    fit = _Fit(TextModel(base.model, serving).eval(), attached, tokens, wanted, n_held, pad_id, seed)
    figures = fit.run(steps, learning_rate, batch_size, source)
    config = attached.config()
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in attached.tensors().items()}
    merge = Merge(
        model=source.model,
        head=serving.carrier,
        n_outputs=serving.n_outputs,
        onto=onto,
        change=partial(lora.merge, config, tensors),
        heads=heads,
        seed=seed,
    )
    return FittedLora(config, tensors, merge, {"texts": len(different), "rank": rank, **figures})


def _dtype(source: Source) -> torch.dtype:
    found: torch.dtype = getattr(torch, source.model.compute_dtype)
    return found


@torch.no_grad()
def _outputs(model: TextModel, tokens: Sequence[Tokens], pad_id: int, rows: np.ndarray | None = None) -> Tensor:
    """What the model makes of some rows, (N, K) float32."""
    rows = np.arange(len(tokens)) if rows is None else rows
    some = [tokens[row] for row in rows.tolist()]
    parts = [(one.texts, one.outputs()) for one in passes(model, some, pad_id, CHUNK_TOKENS)]
    found = parts[0][1].new_empty(len(some), parts[0][1].shape[1])
    for texts, values in parts:
        found[torch.as_tensor(texts, device=values.device)] = values
    return found


@dataclass
class _Fit:
    """A LoRA on its way to the reference's numbers.

    Attributes:
        model: the base with the new LoRA.
        attached: the LoRA.
        tokens: of each text.
        wanted: the reference's numbers, (N, K).
        n_held: so many of the texts, the first, are held out of the fit.
        pad_id: the padding token.
        seed: of the order of the texts.
    """

    model: TextModel
    attached: Attached
    tokens: Sequence[Tokens]
    wanted: Tensor
    n_held: int
    pad_id: int
    seed: int
    best: dict[str, Tensor] = field(default_factory=dict)

    def run(self, steps: int, peak: float, batch_size: int, source: Source) -> dict[str, float | int]:
        """Fits the LoRA and leaves it as it was at its best step: that step, and what is missing of the effect."""
        held, lengths = np.arange(self.n_held), [len(row["input_ids"]) for row in self.tokens[self.n_held :]]
        own = list(self.attached.parameters().values())
        optimizer = torch.optim.AdamW(own, lr=peak, weight_decay=0.0)
        start = lowest = self._error(held)
        best_step, every = 0, max(1, steps // EVALUATIONS)
        self._keep()
        for step, rows in enumerate(_batches(lengths, steps, batch_size, self.seed)):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, peak, int(WARMUP_SHARE * steps), "cosine")
            loss = self._loss(rows + self.n_held)
            loss.backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            source.listen("step", {"step": step + 1, "total_steps": steps, "loss": float(loss.detach())})
            if (step + 1) % every and step + 1 < steps:
                continue
            if (error := self._error(held)) < lowest:
                lowest, best_step = error, step + 1
                self._keep()
        with torch.no_grad():
            for name, parameter in self.attached.parameters().items():
                parameter.copy_(self.best[name])
        missing = lowest / start if start else 0.0
        return {"steps": steps, "best_step": best_step, "held_out": self.n_held, "missing_share": missing}

    def _keep(self) -> None:
        self.best = {name: parameter.detach().clone() for name, parameter in self.attached.parameters().items()}

    def _loss(self, rows: np.ndarray) -> Tensor:
        batch = padded(self.tokens, rows, self.pad_id, self.model.device, self.model.serving.max_tokens)
        found, wanted = self.model(**batch), self.wanted[torch.as_tensor(rows, device=self.wanted.device)]
        if self.model.serving.head == "embedding":
            apart = 1 - nn.functional.cosine_similarity(found, wanted, dim=1)
            return apart.mean() + self._score_error(found, wanted)
        return _label_error(found, wanted, self.wanted)

    def _error(self, rows: np.ndarray) -> float:
        """How far held-out texts are from the reference, in scores: what the certificate looks at."""
        found = _outputs(self.model, self.tokens, self.pad_id, rows)
        wanted = self.wanted[torch.as_tensor(rows, device=self.wanted.device)]
        is_vector = self.model.serving.head == "embedding"
        return float(self._score_error(found, wanted) if is_vector else _label_error(found, wanted, self.wanted))

    def _score_error(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The mean square of what scores with the reference's texts are off by, in units of the temperature.

        What all scores of a text are off by alike is taken out: a ranking does not see it.
        """
        others = self.wanted[:: -(-len(self.wanted) // MOST_OTHERS)]  # (M, D)
        off = (found - wanted) @ others.T / self.model.serving.temperature  # (B, M)
        return (off - off.mean(dim=1, keepdim=True)).square().mean()


def _label_error(found: Tensor, wanted: Tensor, every: Tensor) -> Tensor:
    spread = every.var(unbiased=False).clamp(min=1e-6)
    error = (found - wanted).square().mean() / spread
    if found.shape[1] > 1:
        p, q = wanted.log_softmax(dim=1), found.log_softmax(dim=1)
        error = error + nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    return error


def _with_parts(texts: Sequence[Text], seed: int) -> list[Text]:
    """The texts and, where they are few, parts of each: its body from one word to another, or one character.

    >>> len(_with_parts(["red oak desk lamp", "usb"], 0)) > 2
    True
    """
    parts = -(-max(0, ENOUGH_TEXTS - len(texts)) // len(texts))  # of each
    draw = np.random.default_rng([seed, 2])
    found = list(texts)
    for text in texts:
        body = text if isinstance(text, str) else text[0]
        words, space = (body.split(), " ") if len(body.split()) > 2 else (list(body), "")
        for _ in range(parts if len(words) > 1 else 0):
            start, stop = sorted(draw.choice(len(words) + 1, 2, replace=False).tolist())
            part = space.join(words[start:stop])
            found.append(part if isinstance(text, str) else (part, text[1]))
    return list(dict.fromkeys(found))


def _batches(lengths: Sequence[int], steps: int, size: int, seed: int) -> list[np.ndarray]:
    """`steps` batches of row numbers, each of texts of similar length; each row once before any comes again."""
    draw = np.random.default_rng([seed, 1])
    size = min(size, len(lengths))
    found: list[np.ndarray] = []
    while len(found) < steps:
        mixed = draw.permutation(len(lengths))
        mixed = mixed[: len(mixed) // size * size]  # a smaller last batch would pull as hard as a whole one
        for start in range(0, len(mixed), POOL_BATCHES * size):
            pool = mixed[start : start + POOL_BATCHES * size]
            pool = pool[np.argsort([lengths[row] for row in pool], kind="stable")].reshape(-1, size)
            found += list(pool[draw.permutation(len(pool))])
    return found[:steps]
