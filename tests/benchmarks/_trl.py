"""TRL's SFTTrainer as the other side: one example a text, on the very tokens that recft's side trains on."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from recft.models.tokens import Tokens

__all__ = ["WAYS", "Way", "examples", "loss_of", "sft", "step_seconds"]

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Way:
    """Settings of SFTTrainer that all compute one loss.

    Attributes:
        batch: texts of a forward pass, or rows of `packed` tokens; the rest of a step is accumulated.
        packed: tokens of a row that texts are packed into (best fit decreasing), or 0.
        padding_free: a forward pass's texts flattened into one row.
        group: batches of texts of like length.
        attention: the implementation; flash attention is none on a CPU.
        adapter: dtype of the adapter's weights; PEFT makes them float32, and then casts each layer's input.
        autocast: TRL's own `bf16`, its default.
        compact: its fused head scores labels only, which it does by itself on a GPU alone; no setting says so.
    """

    batch: int
    packed: int = 0
    padding_free: bool = False
    group: bool = True
    attention: str = "eager"
    adapter: torch.dtype = torch.bfloat16
    autocast: bool = False
    compact: bool = False

    def __str__(self) -> str:
        layout = f"packed {self.packed}" if self.packed else "padding-free" if self.padding_free else "padded"
        grouped = ", by length" if self.group and not self.packed else ""
        kind = str(self.adapter).rpartition(".")[2]
        more = (", autocast" if self.autocast else "") + (", head at labels" if self.compact else "")
        return f"{self.batch} x {layout}{grouped}, {self.attention}, adapter {kind}{more}"


WAYS: dict[str, Way] = {
    "adapter in float32": Way(8, adapter=torch.float32),
    "padded": Way(8),
    "padded, 16": Way(16),
    "padded, sdpa": Way(8, attention="sdpa"),
    "packed": Way(1, packed=512),
    "packed, sdpa": Way(1, packed=512, attention="sdpa"),
    "padding-free": Way(8, padding_free=True),
    "its defaults": Way(8, group=False, attention="sdpa", adapter=torch.float32, autocast=True),
}
"""What is tried for TRL's fastest; all run without cache, checkpointing, logging and evaluation."""


def examples(tokens: Sequence[Tokens], labels: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    """What the trainer reads: token ids, and labels where the loss is (-100 elsewhere)."""
    return [{"input_ids": row["input_ids"], "labels": list(own)} for row, own in zip(tokens, labels, strict=True)]


class _Clock(TrainerCallback):
    """The seconds of optimizer steps alone: setting up and fetching the first batch are not counted."""

    def __init__(self) -> None:
        self.started = 0.0
        self.seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self.started


def sft(
    base: Path,
    rows: Sequence[dict[str, list[int]]],
    way: Way,
    rank: int,
    work: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """The trainer: one step is all of `rows`."""
    from datasets import Dataset, disable_caching, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    disable_caching()
    disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=way.attention)
    data = Dataset.from_list([dict(row) for row in rows])
    longest = max(len(row["input_ids"]) for row in rows)
    with _quiet():
        config = SFTConfig(
            output_dir=str(work / "trl"),
            use_cpu=not torch.cuda.is_available(),
            bf16=way.autocast,
            per_device_train_batch_size=way.batch,
            gradient_accumulation_steps=1,
            max_length=way.packed or (None if way.padding_free else longest),
            packing=bool(way.packed),
            padding_free=way.padding_free,
            train_sampling_strategy="group_by_length" if way.group and not way.packed else "random",
            gradient_checkpointing=False,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_steps=1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            seed=0,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=PROJECTIONS),
        )
        trainer.args.gradient_accumulation_steps = -(-len(trainer.train_dataset) // way.batch)
        trainer.accelerator.gradient_accumulation_steps = 1
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(way.adapter)
    return trainer


def step_seconds(trainer: Any, way: Way) -> float:
    """Seconds of one optimizer step over all of the trainer's rows."""
    clock = _Clock()
    trainer.add_callback(clock)
    try:
        with _quiet(), _compact(way.compact):
            trainer.train()
    finally:
        trainer.remove_callback(clock)
    return clock.seconds


def loss_of(trainer: Any, way: Way) -> float:
    """The mean loss over the trainer's label tokens, as its own batches give it."""
    found, count = 0.0, 0
    with _quiet(), _compact(way.compact), torch.no_grad():
        for batch in trainer.get_train_dataloader():
            tokens = int((batch["labels"][:, 1:] != -100).sum())
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=tokens)
            found, count = found + float(loss) * tokens, count + tokens
    return found / count


@contextlib.contextmanager
def _compact(wanted: bool) -> Iterator[None]:
    """Lets the fused head skip positions without a label, as it does where Triton runs."""
    from trl.trainer import utils

    place: Any = utils
    before = place._use_triton
    if wanted:
        place._use_triton = lambda _device: True
    try:
        yield
    finally:
        place._use_triton = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and logs: that flash attention is missing is known, there is none on a CPU."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
