"""A bi-encoder tuned on ten titles and the next one, beside sentence-transformers' own trainer.

    python tests/benchmarks/encoder.py --work /tmp/encoder
    python tests/benchmarks/encoder.py --work /tmp/encoder --profile     # where recft's time goes

MiniLM (22.7M), LoRA of rank 16 on every linear layer, bfloat16 weights, batches of 64 Online Retail customers, the
other items of a batch as negatives, AdamW. recft's side is `fit` as `recft tune` calls it, all of it timed;
sentence-transformers' is `SentenceTransformerTrainer.train` with MultipleNegativesRankingLoss from its first step on,
the same pairs in the same batches, in the fastest of the ways it is given here, which are printed. Dropout is off on
both, as recft has it: it is on in sentence-transformers unless it is told, and costs time. It has no sampler that
groups lengths; histories of ten titles are of like length. Each turn is a process of its own, in which a turn before
has set up the kernels: recft settles a process's threads and memory, and its users have that. Checked in float32 with
one adapter: both losses are equal. The result goes to WORK/encoder.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _beside import Row, alternate, child, compared, machine, save, show, versions
from _shop import Shop, recipe_of, tuned_of
from accelerate import Accelerator
from transformers import TrainerCallback

from recft import registry
from recft.data.store import Records
from recft.models.base import resolve
from recft.models.encoder import encode
from recft.tasks._base import Batch
from recft.training.assemble import Tuned
from recft.training.loop import Job, fit
from recft.training.mixing import Part

RANK, BATCH, TARGET = 16, 64, 2.0
PEERS = ("sentence-transformers", "transformers", "peft", "accelerate", "torch")
TASK = {"name": "next-item", "history_items": 10}
WAYS: dict[str, dict[str, Any]] = {
    "bfloat16, sdpa": {"attention": "sdpa", "adapter": torch.bfloat16},
    "bfloat16, eager": {"attention": "eager", "adapter": torch.bfloat16},
    "adapter in float32, eager": {"attention": "eager", "adapter": torch.float32},
    "float32, sdpa, autocast": {
        "attention": "sdpa",
        "adapter": torch.float32,
        "dtype": torch.float32,
        "autocast": True,
    },
}


class Ours:
    """recft's side: `turn` is the seconds of `fit`, one step a batch of 64 records."""

    def __init__(self, records: Records, dtype: str = "bfloat16", seed: int | None = None) -> None:
        steps = -(-len(records) // BATCH)
        tune = {"batch_size": BATCH, "max_steps": steps, "epochs": 1, "checkpoint_every_steps": 999}
        recipe = recipe_of("minilm", TASK, RANK, 128, tune=tune, model={"compute_dtype": dtype})
        self.recipe, self.task, self.records = recipe, registry.load("recft.tasks", "next-item"), records
        self.tuned = tuned_of(recipe, seed)
        part = Part(
            self.tuned.model,
            len(records),
            lambda rows, rng: self.batch(np.sort(rows), rng),
            lambda outputs, batch, _: self.task.loss(recipe.task, outputs, batch),
        )
        self.job = Job(
            tuned=self.tuned,
            parameters=self.tuned.attached.parameters(),
            parts=[part],
            settings=recipe.tune,
            seed=0,
            accelerator=Accelerator(cpu=not torch.cuda.is_available()),
        )

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """The task's own batch."""
        found: Batch = self.task.batch(self.recipe.task, self.records, rows, Shop.open().titles, rng)
        return found

    def pairs(self) -> tuple[list[str], list[str]]:
        """Histories and targets as texts."""
        titles = Shop.open().titles
        contexts = self.task.contexts(self.recipe.task, self.records, np.arange(len(self.records)), titles)
        return contexts, [titles[item] for item in self.records.items]

    def turn(self) -> float:
        start = time.perf_counter()
        fit(self.job)
        return time.perf_counter() - start


class _Clock(TrainerCallback):
    """The seconds from the first step's beginning to the end of training."""

    started = seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 0:
            self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def trainer_of(
    pairs: tuple[Sequence[str], Sequence[str]],
    work: Path,
    attention: str = "sdpa",
    adapter: torch.dtype = torch.bfloat16,
    dtype: torch.dtype = torch.bfloat16,
    autocast: bool = False,
) -> Any:
    """sentence-transformers' trainer over the pairs, in their order."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from transformers import PrinterCallback

    disable_progress_bars()
    model = SentenceTransformer(
        resolve("minilm"),
        device="cuda" if torch.cuda.is_available() else "cpu",
        model_kwargs={"dtype": dtype, "attn_implementation": attention},
        config_kwargs={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    model.model_card_data.generate_widget_examples = False
    layers = ["query", "key", "value", "dense"]
    # The pooler's dense layer is never run; recft leaves it out as well.
    model.add_adapter(
        LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=layers, exclude_modules=".*pooler.*")
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(adapter)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "st"),
        use_cpu=not torch.cuda.is_available(),
        bf16=autocast,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": list(pairs[0]), "positive": list(pairs[1])}),
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_seconds(trainer: Any) -> float:
    """Seconds of one epoch."""
    clock = _Clock()
    trainer.add_callback(clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    trainer.remove_callback(clock)
    return clock.seconds


def same(work: Path, records: Records) -> float:
    """How far the two losses of a batch are apart in float32, relative.

    Of the records those are taken whose targets no other one bought: recft makes no negatives of these.
    """
    chosen: list[int] = []
    bought: set[int] = set()  # by those chosen
    targets: set[int] = set()
    for row in range(len(records)):
        target = int(records.items[row])
        own = {*records.history(row).tolist(), target}
        if target not in bought and not own & targets:
            chosen.append(row)
            bought |= own
            targets.add(target)
    ours = Ours(records.take(np.array(chosen[:BATCH])), "float32", seed=1)
    trainer = trainer_of(ours.pairs(), work, adapter=torch.float32, dtype=torch.float32)
    copied(ours.tuned, trainer.model)
    batch = ours.batch(np.arange(len(ours.records)), np.random.default_rng(0))
    outputs = torch.from_numpy(encode(ours.tuned.model, ours.tuned.tokenizer, batch.texts))
    settings = ours.recipe.task.model_copy(update={"logit_adjustment": 1.0})  # theirs corrects nothing
    batch = ours.task.batch(
        settings, ours.records, np.arange(len(ours.records)), Shop.open().titles, np.random.default_rng(0)
    )
    mine = float(ours.task.loss(settings, outputs, batch))
    features = [trainer.model.preprocess(texts) for texts in ours.pairs()]
    with torch.no_grad():
        theirs = float(trainer.loss(features, None))
    return abs(mine - theirs) / theirs


def copied(tuned: Tuned, model: Any) -> None:
    """Gives their model recft's adapter."""
    tensors = tuned.attached.tensors()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in named.items():
        end = name.split("encoder.")[1].replace(".default", "")
        found = [tensor for key, tensor in tensors.items() if key.endswith(end)]
        if len(found) != 1:
            raise RuntimeError(f"{name} is {len(found)} of recft's tensors")
        parameter.data.copy_(found[0])
    if len(named) != len(tensors):
        raise RuntimeError(f"{len(named)} tensors there, {len(tensors)} here")


def profiled(ours: Ours) -> None:
    """Prints what recft's steps spend their time on."""
    from torch.profiler import ProfilerActivity, profile

    ours.turn()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        ours.turn()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def turn_of(side: str, way: str, records: Records, work: Path) -> float:
    """The seconds of a side's turn, once its kernels are set up."""
    if side == "recft":
        ours = Ours(records)
        return [ours.turn() for _ in range(2)][1]
    trainer = trainer_of(Ours(records).pairs(), work, **WAYS[way])
    return [train_seconds(trainer) for _ in range(2)][1]


def main() -> None:
    """Checks, tries the other side's ways, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4, help="batches of 64 a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", default="", choices=["", *WAYS], help="of sentence-transformers; tried where absent")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--child", choices=["recft", "peer"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work.resolve()
    records = Shop.open().records([10] * (BATCH * given.steps))
    if given.profile:
        profiled(Ours(records))
        return
    if given.child:
        print(json.dumps({"seconds": turn_of(given.child, given.way, records, work)}))
        return
    print(machine(), versions(*PEERS), flush=True)
    apart = same(work, records)
    print(f"loss in float32, apart: {apart:.1e} of it: {'same' if apart < 1e-4 else 'DIFFERENT'}", flush=True)

    def seconds(side: str, way: str = "", steps: int = given.steps) -> float:
        options = ["--work", str(work), "--steps", str(steps), "--way", way]
        return float(child(Path(__file__), side, options)["seconds"])

    tried = {}
    for name in WAYS if not given.way else ():
        tried[name] = BATCH / seconds("peer", name, 1)
        print(f"sentence-transformers {name}: {tried[name]:.1f} pairs/s", flush=True)
    best: str = given.way or max(tried, key=lambda name: tried[name])
    sides = {"recft": partial(seconds, "recft"), "sentence-transformers": partial(seconds, "peer", best)}
    found = alternate(sides, given.rounds)
    times = (found["recft"], found["sentence-transformers"])
    rows: list[Row] = [compared("bi-encoder", "pairs/s", (len(records), len(records)), times, TARGET, best)]
    show(rows)
    save(work / "encoder.json", rows, versions=versions(*PEERS), apart=apart, way=best, tried=tried, seconds=found)


if __name__ == "__main__":
    main()
