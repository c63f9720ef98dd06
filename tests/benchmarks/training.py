"""Training on a shop's histories beside TRL's SFTTrainer, on the same tokens, for a 135M Llama with random weights.

    python tests/benchmarks/training.py --work /tmp/training                    # the table
    python tests/benchmarks/training.py --work /tmp/training --only single      # one of it
    python tests/benchmarks/training.py --work /tmp/training --growth           # recft alone: how cost grows

LoRA of rank 8 on every linear layer, bfloat16, Online Retail's customers. recft's side is `fit` as `recft tune` calls
it: batches made, tokenized, one optimizer step each, all of it timed. TRL's is its optimizer steps alone: its data is
tokenized before, with recft's own tokens. For `single` its setting is the fastest of those in `_trl.WAYS` that compute
the same loss, each printed; in the others, whose texts are of like length or grouped, packing gains nothing. Both had
their kernels set up by a turn that is not timed; then they take turns.

    purchase    8 candidates of each history, a yes or a no each; examples (pairs) a second
    single      one candidate a history, of 1 to 20 items
    positions   next item: each of 50 positions of a history is a target, each with its whole past; targets a second

`purchase` and `single`: recft's loss is the cross-entropy of the two answers, TRL's that of the answer among the whole
vocabulary, each what its users train; at one position a text the vocabulary would be about 1% of recft's work.
`positions`: both compute one loss. Checked in float32 before anything is timed: the answers' logits, and the loss of
all positions, are those of TRL's model. On a CPU TRL's head multiplies every position by the whole vocabulary, and no
setting changes that; in the rows `(head at labels)` it is made to do what it does on a GPU.

FLOP/s count what the loss needs, each different token once: 4 for each weight of the blocks (forward, and backward
without the frozen weights' own gradients), attention, and the head at labels; the rate beside it is that of plain
bfloat16 products of the same shapes. The result goes to WORK/training.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _beside import Row, alternate, compared, machine, save, show, versions
from _shop import Shop, make_base, recipe_of, tuned_of
from _trl import WAYS, Way, examples, loss_of, sft, step_seconds
from _useful import useful
from accelerate import Accelerator

from recft import registry
from recft.data.store import Records
from recft.models.base import tokenizer_of
from recft.models.encoder import encode
from recft.models.text_model import label_tokens
from recft.models.tokens import Tokens, tokenize
from recft.tasks._base import Batch
from recft.training.assemble import Tuned
from recft.training.loop import Job, fit
from recft.training.mixing import Part

RANK = 8
PEERS = ("trl", "transformers", "peft", "accelerate", "datasets", "torch")
TARGETS = {"purchase": 6.0, "single": 2.0, "positions": 20.0}
CHOSEN = "padded"
"""Of `_trl.WAYS`, for texts of like length; `single` tries all of them."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One workload: recft's batch, and the same examples as TRL reads them.

    Attributes:
        task: the task's settings.
        batch: the step's examples.
        loss: outputs, batch, None -> scalar.
        rows: token ids and labels of every example.
        max_tokens: where texts are cut; none of these is.
        labels: label tokens, which are scored against the whole vocabulary.
    """

    task: dict[str, Any]
    batch: Batch
    loss: Callable[..., torch.Tensor]
    rows: list[dict[str, list[int]]]
    max_tokens: int
    labels: int = 0

    @property
    def size(self) -> int:
        """Examples: pairs or targets."""
        return len(self.rows)


def purchase_work(base: Path, records: Records, max_tokens: int) -> Work:
    """Whether each candidate is taken."""
    recipe = recipe_of(str(base), {"name": "purchase", "history_items": 1000}, RANK, max_tokens)
    task, tokenizer = registry.load("recft.tasks", "purchase"), tokenizer_of(recipe.model)
    batch = task.batch(recipe.task, records, np.arange(len(records)), Shop.open().titles, np.random.default_rng(0))
    answers = label_tokens(tokenizer, recipe.task.model_dump()["answers"])
    texts = tokenize(tokenizer, batch.texts, max_tokens)
    asked = [texts[place]["input_ids"] for place in batch.arrays["text"]]
    said = [answers[0] if yes else answers[1] for yes in batch.arrays["label"]]
    tokens: list[Tokens] = [{"input_ids": [*ids, answer]} for ids, answer in zip(asked, said, strict=True)]
    labels = [[*[-100] * len(ids), answer] for ids, answer in zip(asked, said, strict=True)]
    loss = partial(task.loss, recipe.task)
    return Work(recipe.task.model_dump(), batch, loss, examples(tokens, labels), max_tokens)


def positions_work(base: Path, records: Records, max_tokens: int) -> Work:
    """Each record's items after its history, as the language model's own loss has them."""
    task = {"name": "next-item", "score_by": "likelihood", "history_items": 1000, "positions": "every"}
    recipe = recipe_of(str(base), task, RANK, max_tokens)
    member, tokenizer = registry.load("recft.tasks", "next-item"), tokenizer_of(recipe.model)
    batch = member.batch(recipe.task, records, np.arange(len(records)), Shop.open().titles, np.random.default_rng(0))
    tokens = tokenize(tokenizer, batch.texts, max_tokens, likelihood=True)
    tokens = [tokens[place] for place in batch.arrays["text"]]
    labels = [
        [token if in_tail else -100 for token, in_tail in zip(row["input_ids"], row["tail_mask"], strict=True)]
        for row in tokens
    ]
    n_labels = sum(sum(row["tail_mask"]) for row in tokens)
    return Work(task, batch, partial(member.loss, recipe.task), examples(tokens, labels), max_tokens, n_labels)


# -- the two sides ----------------------------------------------------------------------------------------------------


class Ours:
    """recft's side: `turn` is the seconds of `fit` over `steps` optimizer steps on the batch."""

    def __init__(self, base: Path, work: Work, steps: int = 1, rank: int = RANK) -> None:
        tune = {"batch_size": work.batch.n_examples, "max_steps": steps, "epochs": steps, "checkpoint_every_steps": 999}
        self.recipe = recipe_of(str(base), work.task, rank, work.max_tokens, tune=tune)
        self.tuned = tuned_of(self.recipe)
        batch = work.batch
        part = Part(
            self.tuned.model, batch.n_examples, lambda *_: batch, lambda outputs, own, _: work.loss(outputs, own)
        )
        self.job = Job(
            tuned=self.tuned,
            parameters=self.tuned.attached.parameters(),
            parts=[part],
            settings=self.recipe.tune,
            seed=0,
            accelerator=Accelerator(cpu=not torch.cuda.is_available()),
        )

    def turn(self) -> float:
        start = time.perf_counter()
        fit(self.job)
        return time.perf_counter() - start


def beside(given: argparse.Namespace, name: str, work: Work, unit: str, way: Way) -> list[Row]:
    """recft and TRL in turns on one workload: TRL as it is, and with its head at labels."""
    steps, more = 2, {"TRL": way, "head at labels": dataclasses.replace(way, compact=True)}
    ours = Ours(given.base, work, steps)
    sides: dict[str, Callable[[], float]] = {"recft": ours.turn}
    for way_name, one in more.items():
        sides[way_name] = partial(step_seconds, sft(given.base, work.rows, one, RANK, given.work), one)
    for turn in sides.values():
        turn()  # kernels are set up once for each shape
    found = alternate(sides, given.rounds)
    note = useful(
        [row["input_ids"] for row in work.rows], work.labels, statistics.median(found["recft"]) / steps, given.layers
    )
    rows: list[Row] = []
    for way_name in more:
        label = name if not rows else f"{name} ({way_name})"
        times = (found["recft"], found[way_name])
        row = compared(label, unit, (work.size * steps, work.size), times, None if rows else TARGETS[name], note)
        rows.append(row)
        note = ""
    return rows


def tries(given: argparse.Namespace, work: Work) -> tuple[str, list[dict[str, Any]]]:
    """The name of TRL's fastest way, and what each gave; one whose loss is another is out."""
    found: list[dict[str, Any]] = []
    for name, way in WAYS.items():
        trainer = sft(given.base, work.rows, way, RANK, given.work)
        loss = loss_of(trainer, way)
        seconds = step_seconds(trainer, way)
        if all(work.size / seconds > one["examples_s"] / 4 for one in found):  # far behind: not a second time
            seconds = step_seconds(trainer, way)
        rate = work.size / seconds
        found.append({"way": name, "is": str(way), "examples_s": rate, "loss": loss})
        print(f"TRL {name} ({way}): {rate:.2f} examples/s, loss {loss:.4f}", flush=True)
    usual = statistics.median(one["loss"] for one in found)
    equal = [one for one in found if abs(one["loss"] - usual) < 0.01 * usual]
    return str(max(equal, key=lambda one: one["examples_s"])["way"]), found


# -- the same numbers -------------------------------------------------------------------------------------------------


def same(given: argparse.Namespace) -> dict[str, float]:
    """How far both sides are apart in float32 with one adapter: of the answers' logits, and of a loss, relative."""
    shop, base = Shop.open(), given.base
    asked = purchase_work(base, shop.records([10, 6], 4), 512)
    written = positions_work(base, shop.positions(5), 512)
    found = {}
    for name, work in (("answers", asked), ("loss", written)):
        recipe = recipe_of(str(base), work.task, RANK, work.max_tokens, model={"compute_dtype": "float32"})
        tuned = tuned_of(recipe, seed=1)
        way = Way(4, group=False, adapter=torch.float32)
        trainer = sft(base, work.rows, way, RANK, given.work, dtype=torch.float32)
        copied(tuned, trainer.model)
        outputs = encode(tuned.model, tuned.tokenizer, work.batch.texts)
        if name == "loss":
            mine, theirs = float(work.loss(torch.from_numpy(outputs), work.batch)), loss_of(trainer, way)
            found[name] = abs(mine - theirs) / theirs
        else:
            places, ids = work.batch.arrays["text"], list(tuned.model.serving.label_ids)
            logits = torch.stack([last_logits(trainer.model, row["input_ids"][:-1])[ids] for row in work.rows]).numpy()
            found[name] = float(np.abs(outputs[places] - logits).max() / np.abs(logits).max())
    return found


def copied(tuned: Tuned, model: Any) -> None:
    """Gives TRL's model recft's adapter."""
    from peft import set_peft_model_state_dict

    found: Any = set_peft_model_state_dict(model, tuned.attached.tensors())
    if found.unexpected_keys:
        raise RuntimeError(f"PEFT does not know {found.unexpected_keys[:3]}")


@torch.no_grad()
def last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()
    return logits


# -- the workloads ----------------------------------------------------------------------------------------------------


def purchase(given: argparse.Namespace, way: Way) -> list[Row]:
    """8 candidates of each history."""
    work = purchase_work(given.base, Shop.open().records([10] * given.histories, 8), 256)
    return beside(given, "purchase", work, "examples/s", way)


def mixed(given: argparse.Namespace, count: int) -> Work:
    """One candidate of each history, histories of 1 to 20 items."""
    lengths = np.random.default_rng(1).integers(1, 21, count).tolist()
    return purchase_work(given.base, Shop.open().records(lengths), 512)


def single(given: argparse.Namespace, way: Way) -> list[Row]:
    """One candidate a history."""
    return beside(given, "single", mixed(given, 8 * given.histories), "examples/s", way)


def positions(given: argparse.Namespace, way: Way) -> list[Row]:
    """Every position of a history; TRL's texts are twice as long, half of them make a forward pass."""
    work = positions_work(given.base, Shop.open().positions(50), 1024)
    half = dataclasses.replace(way, batch=max(1, way.batch // 2), packed=2 * way.packed)
    return beside(given, "positions", work, "targets/s", half)


def growth(given: argparse.Namespace) -> list[Row]:
    """recft alone: one step of more and more of one thing."""
    shop = Shop.open()

    def work(length: int, candidates: int, histories: int, most_first: int = 0) -> Work:
        return purchase_work(given.base, shop.records([length] * histories, candidates, most_first), 4096)

    rows = [(f"purchase, {length} items", work(length, 8, 2, 208), RANK) for length in (10, 50, 100, 200)]
    rows += [(f"purchase, {count} candidates", work(10, count, 4), RANK) for count in (1, 4, 16, 64)]
    rows += [(f"purchase, rank {rank}", work(10, 8, 8), rank) for rank in (4, 16, 64)]
    found = []
    for name, one, rank in rows:
        side = Ours(given.base, one, rank=rank)
        side.turn()
        seconds = statistics.median(side.turn() for _ in range(3))
        found.append(Row(name, "examples/s", one.size / seconds, note=f"{seconds:.2f} s a step of {one.size}"))
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Makes the base where it is missing, checks, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--growth", action="store_true", help="recft's side alone: history length, candidates, rank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--histories", type=int, default=4, help="of a step of `purchase`; `single` has 8 times as many"
    )
    parser.add_argument("--layers", type=int, default=30, help="fewer for a quick look")
    parser.add_argument("--way", default="", choices=["", *WAYS], help="of TRL; tried out where absent")
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.base = make_base(given.work / f"base{given.layers}", given.layers)
    print(machine(), versions(*PEERS), flush=True)
    if given.growth:
        rows = growth(given)
        show(rows)
        save(given.work / "training-growth.json", rows, versions=versions(*PEERS))
        return
    apart = same(given)
    print(f"float32, furthest apart, relative: {apart}: {'same' if max(apart.values()) < 1e-4 else 'DIFFERENT'}")
    chosen: dict[str, str] = dict.fromkeys(TARGETS, given.way or CHOSEN)
    tried: list[dict[str, Any]] = []
    if not given.way and "single" in given.only:
        chosen["single"], tried = tries(given, mixed(given, 8))
    print(f"TRL's ways: {chosen}", flush=True)
    workloads = {"purchase": purchase, "single": single, "positions": positions}
    rows = [row for name in given.only for row in workloads[name](given, WAYS[chosen[name]])]
    show(rows)
    save(given.work / "training.json", rows, versions=versions(*PEERS), apart=apart, ways=chosen, tried=tried)


if __name__ == "__main__":
    main()
