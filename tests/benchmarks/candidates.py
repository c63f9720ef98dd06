"""Scoring 1,000 candidate titles for a history of ten, beside transformers' forward passes without a cache.

    python tests/benchmarks/candidates.py --work /tmp/candidates

A Llama of 135M parameters with random weights, bfloat16, a LoRA of rank 8 in it on both sides. Two questions of one
history and 1,000 Online Retail titles: `likelihood`, log p of each title as what comes next (`Encoder.catalogue`), and
`purchase`, yes or no after each title (`Encoder` on the task's texts). The other side reads each history and title as
one text, with PEFT's own adapter: sorted by length, in the fastest batch of those tried, hidden states from the blocks
and the head at the positions that count alone; the plainest way, logits everywhere, has a row of its own. Its cost is
that of its texts one by one, so it is timed on a share of them, spread over all lengths. Checked in float32: both sides
give the same numbers. The result goes to WORK/candidates.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _beside import Row, alternate, compared, machine, save, show, versions
from _shop import Shop, adapter_folder, make_base, recipe_of, tuned_of
from torch import Tensor

from recft import registry
from recft.models.encoder import Encoder
from recft.models.tokens import Tokens
from recft.training.assemble import Tuned

RANK, TARGET, MAX_TOKENS = 8, 10.0, 512
PEERS = ("transformers", "peft", "torch")
TASKS: dict[str, dict[str, Any]] = {
    "likelihood": {"name": "next-item", "score_by": "likelihood", "history_items": 10},
    "purchase": {"name": "purchase", "history_items": 10},
}
BATCHES = (8, 16, 32)


class Question:
    """One history and its candidates, as one task asks; `scores` is recft's answer."""

    def __init__(self, base: Path, name: str, count: int, dtype: str = "bfloat16") -> None:
        shop = Shop.open()
        recipe = recipe_of(str(base), TASKS[name], RANK, MAX_TOKENS, model={"compute_dtype": dtype})
        self.name, self.tuned = name, tuned_of(recipe, seed=1)
        task, records = registry.load("recft.tasks", recipe.task.name), shop.records([10], count)
        self.encoder = Encoder(self.tuned.model, self.tuned.tokenizer)
        self.texts = task.pairs(recipe.task, records, np.arange(1), shop.titles)
        self.bodies = task.contexts(recipe.task, records, np.arange(1), shop.titles) if name == "likelihood" else []
        self.titles = [shop.titles[item] for item in records.items]
        self.tuned.model.eval()

    def scores(self) -> np.ndarray:
        """Log p of each title, or the logit of yes less that of no, (count,)."""
        if self.name == "likelihood":
            found: np.ndarray = self.encoder.catalogue(self.bodies, self.titles)[0]
        else:
            two = self.encoder(self.texts)
            found = two[:, 0] - two[:, 1]
        return found

    def turn(self) -> float:
        """Seconds of `scores`, tokenization and all."""
        start = time.perf_counter()
        self.scores()
        return time.perf_counter() - start


class Forward:
    """transformers with PEFT: every candidate a text of its own."""

    def __init__(self, question: Question, base: Path, work: Path, dtype: torch.dtype, attention: str) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        tuned: Tuned = question.tuned
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=attention)
        folder = adapter_folder(tuned, work / f"adapter-{question.name}")
        self.model = PeftModel.from_pretrained(model, str(folder)).to(dtype).eval()
        self.serving, self.tokenizer, self.texts = tuned.model.serving, tuned.tokenizer, question.texts

    def scores(self, rows: Sequence[int], batch: int, plain: bool = False) -> np.ndarray:
        """The same numbers of the texts `rows`; `plain` has the model give logits everywhere."""
        tokens = self.serving.tokens(self.tokenizer, [self.texts[row] for row in rows])
        order = sorted(range(len(rows)), key=lambda row: len(tokens[row]["input_ids"]))
        found = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            found[chosen] = self._batch([tokens[row] for row in chosen], plain).numpy()
        return found

    @torch.no_grad()
    def _batch(self, tokens: Sequence[Tokens], plain: bool) -> Tensor:
        lengths = torch.tensor([len(row["input_ids"]) for row in tokens])
        width = int(lengths.max())
        ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in tokens])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        causal: Any = self.model.get_base_model()
        if plain:
            logits = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()  # (B, T, V)
            hidden = None
        else:
            hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        if self.serving.head == "answers":
            yes, no = self.serving.label_ids
            last = torch.arange(len(tokens)), lengths - 1
            rows = causal.lm_head.weight[[yes, no]]
            two: Tensor = logits[last][:, [yes, no]] if hidden is None else (hidden[last] @ rows.T).float()
            return two[:, 0] - two[:, 1]
        tails = torch.zeros_like(mask)
        for row, text in enumerate(tokens):
            tails[row, : len(text["tail_mask"])] = torch.tensor(text["tail_mask"])
        wanted = tails[:, 1:].bool()
        at = logits[:, :-1][wanted] if hidden is None else causal.lm_head(hidden[:, :-1][wanted]).float()
        each = at.log_softmax(-1).gather(1, ids[:, 1:][wanted][:, None])[:, 0]
        return torch.zeros(len(tokens)).index_add_(0, wanted.nonzero()[:, 0], each)

    def turn(self, rows: Sequence[int], batch: int, plain: bool = False) -> float:
        """Seconds of `scores`."""
        start = time.perf_counter()
        self.scores(rows, batch, plain)
        return time.perf_counter() - start


def measured(given: argparse.Namespace, name: str) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one question, and what was tried and found."""
    small, exact = Question(given.base, name, 24, "float32"), torch.float32
    theirs = Forward(small, given.base, given.work, exact, "sdpa").scores(range(24), 8)
    apart = float(np.abs(small.scores() - theirs).max() / np.abs(theirs).max())
    print(f"{name}, float32, furthest apart: {apart:.1e}: {'same' if apart < 1e-4 else 'DIFFERENT'}", flush=True)
    del small
    question = Question(given.base, name, given.candidates)
    ways = {way: Forward(question, given.base, given.work, torch.bfloat16, way) for way in ("sdpa", "eager")}
    by_length = sorted(range(given.candidates), key=lambda row: len(question.texts[row][1]))
    some, few = by_length[:: max(1, round(1 / given.share))], by_length[:: max(1, given.candidates // 32)]
    tried = {}
    for way, forward in ways.items():
        for batch in BATCHES:
            tried[f"{way}, {batch}"] = len(few) / min(forward.turn(few, batch) for _ in range(2))
            print(f"{name}, forward passes, {way}, {batch} texts: {tried[f'{way}, {batch}']:.1f} /s", flush=True)
    best, size = max(tried, key=lambda one: tried[one]).split(", ")
    sides: dict[str, Callable[[], float]] = {
        "recft": question.turn,
        "forward": partial(ways[best].turn, some, int(size)),
        "plain": partial(ways[best].turn, few, int(size), True),
    }
    for turn in sides.values():
        turn()
    found = alternate(sides, given.rounds)
    amounts = {"recft": given.candidates, "forward": len(some), "plain": len(few)}
    rows = [
        compared(label, "titles/s", (amounts["recft"], amounts[side]), (found["recft"], found[side]), target, note)
        for label, side, target, note in (
            (name, "forward", TARGET, f"{best}, {size} texts"),
            (f"{name} (logits everywhere)", "plain", None, ""),
        )
    ]
    return rows, {"apart": apart, "tried": tried, "seconds": found, "amounts": amounts}


def main() -> None:
    """Makes the base where it is missing, checks, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.25, help="of the candidates, for the other side's turns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30, help="fewer for a quick look")
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.base = make_base(given.work / f"base{given.layers}", given.layers)
    print(machine(), versions(*PEERS), flush=True)
    rows, facts = [], {}
    for name in given.only:
        more, facts[name] = measured(given, name)
        rows += more
    show(rows)
    save(given.work / "candidates.json", rows, versions=versions(*PEERS), found=facts)


if __name__ == "__main__":
    main()
