"""Llama 3.1 8B's shape on a GPU, random weights, LoRA of rank 16 on every linear layer, beside TRL and PEFT.

    python tests/benchmarks/gpu.py --work /tmp/gpu                       # the table
    python tests/benchmarks/gpu.py --work /tmp/gpu --only packed         # one of it
    python tests/benchmarks/gpu.py --work /tmp/gpu --tiny                # two small layers: a try, on a CPU too

    packed      2,048 tokens a row, every token a label: nf4 (double quantization) and bfloat16, 1 and 2 rows a step;
                tokens a second, useful work as a share of the matrix rate, peak memory
    purchase    8 candidates of each history, a yes or a no each; examples (pairs) a second
    fits        how many rows of 2,048 have a graph at a time with 8, 12, 16 and 24 GiB (nf4)

Without an NVIDIA GPU it says so, and leaves with 0. The weights are drawn on the GPU and quantized there, layer by
layer. Every measurement is a process of its own; a smaller card is played by a cap on the process's memory. recft's
side is `fit` as `recft tune` calls it, with `gradient_checkpointing: auto`; TRL's is SFTTrainer on the same model and
tokens: rows of equal length (nothing is padded, and no flash attention is needed to keep texts apart), activation
checkpointing on where it does not fit without. Both sides' losses before the first step are compared: they have the
same weights, and an adapter that has no effect yet.

FLOP/s count what the loss needs: 4 for each weight of the blocks and token (forward, and backward without the frozen
weights' own gradients), attention within each text, and the head at labels. What is computed twice to save memory is
counted once. The result goes to WORK/gpu.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _beside import Row, child, machine, matrix_rate, memory, save, show, versions
from _random_base import LLAMA_8B, TINY, base_weights, random_base
from _shop import recipe_of
from accelerate import Accelerator
from torch import Tensor

from recft.errors import TuneError
from recft.models.base import Base, attention_of, device_of, tokenizer_of
from recft.models.text_model import Serving
from recft.models.tokens import Tokens
from recft.tasks._base import Batch
from recft.training import assemble
from recft.training.loop import Job, fit
from recft.training.memory import is_out_of_memory, peak_bytes
from recft.training.mixing import Part
from recft.training.servings import servings_of

RANK = 16
PEERS = ("trl", "transformers", "peft", "accelerate", "bitsandbytes", "torch")
SECTIONS = ("packed", "purchase", "fits")
CAPS_GIB = (8, 12, 16, 24)
AIM_GIB, AIM_SHARE = 7.0, 0.5
ROW, TEXT = 2048, 256
HISTORY, CANDIDATE, CANDIDATES = 96, 14, 8
ANSWERS = (5, 6)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One measurement.

    Attributes:
        workload: `packed` or `purchase`.
        quantization: `none` or `nf4`.
        amount: rows of `packed`, or histories of `purchase`, of a step.
        at_once: rows of 2,048 tokens that may have a graph at a time.
        cap_gib: memory that the process may take of the GPU, or 0.
        checkpointing: of TRL's side; recft decides by itself.
        optimizer: of recft's side.
        steps: that are timed.
        search: looks for the most rows at a time instead.
        tiny: two small layers.
    """

    workload: str
    quantization: str
    amount: int
    at_once: int
    cap_gib: float = 0.0
    checkpointing: bool = False
    optimizer: str = "adamw"
    steps: int = 5
    search: bool = False
    tiny: bool = False

    @property
    def shape(self) -> dict[str, Any]:
        return TINY if self.tiny else LLAMA_8B

    @property
    def row(self) -> int:
        return ROW // 8 if self.tiny else ROW

    def examples(self) -> list[Tokens]:
        """The token ids of every example, drawn; `tail_mask` says which are labels, where all but the first are."""
        rng = np.random.default_rng(0)
        draw: Callable[[int], list[int]] = lambda length: rng.integers(8, 4000, length).tolist()  # noqa: E731
        if self.workload == "packed":
            length = TEXT // 8 if self.tiny else TEXT
            return [
                {"input_ids": draw(length), "tail_mask": [0] + [1] * (length - 1)}
                for _ in range(self.amount * self.row // length)
            ]
        histories = [draw(HISTORY) for _ in range(self.amount)]
        return [{"input_ids": history + draw(CANDIDATE)} for history in histories for _ in range(CANDIDATES)]

    def flop(self, rows: Sequence[Tokens]) -> float:
        """What a step needs, each different token once."""
        hidden, layers = int(self.shape["hidden_size"]), int(self.shape["num_hidden_layers"])
        if self.workload == "packed":
            lengths = [len(row["input_ids"]) - 1 for row in rows]
            tokens, seen, labels = sum(lengths), sum(n * (n + 1) // 2 for n in lengths), sum(lengths)
        else:
            tokens = self.amount * (HISTORY + CANDIDATES * CANDIDATE)
            own = CANDIDATE * HISTORY + CANDIDATE * (CANDIDATE + 1) // 2
            seen, labels = self.amount * (HISTORY * (HISTORY + 1) // 2 + CANDIDATES * own), 0
        head = 4.0 * int(self.shape["vocab_size"]) * hidden * labels
        return 4.0 * base_weights(self.shape) * tokens + 12.0 * layers * hidden * seen + head


# -- a process of its own ---------------------------------------------------------------------------------------------


def base_of(spec: Spec, recipe: Any) -> Any:
    device = device_of()
    attention = attention_of(recipe.model, device, torch.bfloat16)
    return random_base(spec.shape, recipe.model, attention, device, torch.bfloat16)


def recipe_for(spec: Spec, folder: Path) -> Any:
    task: dict[str, Any] = {"name": "purchase", "answers": ["yes", "no"]}  # of one byte more, they begin alike
    if spec.workload == "packed":
        task = {"name": "next-item", "score_by": "likelihood"}
    model = {"quantization": spec.quantization, "double_quantization": spec.quantization == "nf4"}
    tune = {
        "batch_size": len(spec.examples()),
        "micro_batch_size": spec.at_once,
        "optimizer": spec.optimizer,
        "max_steps": spec.steps + 2,
        "epochs": spec.steps + 2,
        "log_every_steps": 1,
    }
    return recipe_of(str(folder), task, RANK, spec.row, model=model, tune=tune)


@dataclasses.dataclass(frozen=True)
class Given(Serving):
    """A serving whose texts are numbers of rows that are tokenized already."""

    rows: tuple[Tokens, ...] = ()

    def tokens(self, tokenizer: Any, texts: Sequence[Any]) -> list[Tokens]:
        return [self.rows[int(text)] for text in texts]


def loss_of(outputs: Tensor, batch: Batch, _base: Tensor | None) -> Tensor:
    """The mean cross-entropy of the labels: of all tokens, or of each pair's answer among the two."""
    if "answer" not in batch.arrays:
        return -outputs[:, 0].sum() / outputs[:, 1].sum()
    return torch.nn.functional.cross_entropy(outputs, torch.as_tensor(batch.arrays["answer"], device=outputs.device))


def ours(spec: Spec, folder: Path) -> dict[str, Any]:
    """recft's side: the seconds of each step, the first loss, what was in memory at a time."""
    recipe, rows = recipe_for(spec, folder), spec.examples()
    servings = servings_of([(recipe, ["0"])], tokenizer_of(recipe.model))
    with patch.object(assemble, "load_base", lambda *_: Base(base_of(spec, recipe), ())):
        tuned = assemble.new(recipe, servings, 1000, ["a lamp"], device_of())
    plain = {field.name: getattr(tuned.model.serving, field.name) for field in dataclasses.fields(Serving)}
    tuned.model.serving = Given(**{**plain, "label_ids": ANSWERS}, rows=tuple(rows))
    arrays = {} if spec.workload == "packed" else {"answer": np.arange(len(rows)) % CANDIDATES > 0}
    batch = Batch(
        [str(number) for number in range(len(rows))], {k: v.astype(int) for k, v in arrays.items()}, len(rows)
    )
    lines: list[Mapping[str, Any]] = []
    job = Job(
        tuned=tuned,
        parameters=tuned.attached.parameters(),
        parts=[Part(tuned.model, len(rows), lambda *_: batch, loss_of)],
        settings=recipe.tune,
        seed=0,
        accelerator=Accelerator(cpu=not torch.cuda.is_available()),
        listen=lambda event, values: lines.append(values) if event == "step" else None,
        may_checkpoint=True,
    )
    progress = fit(job)
    # The first two steps set up kernels, and look for what fits.
    times = [len(rows) / line["examples_per_second"] for line in lines[2:]]
    return {
        "step_s": statistics.median(times),
        "loss": lines[0]["loss"],
        "at_once": progress.micro_batch,
        "checkpointed": progress.checkpointed_blocks,
    }


def theirs(spec: Spec, folder: Path) -> dict[str, Any]:
    """TRL's side: the same."""
    import transformers
    from _trl import Way, examples, sft, step_seconds
    from _trl import loss_of as trl_loss

    rows = spec.examples()
    if spec.workload == "packed":
        pairs = examples(rows, [[-100, *row["input_ids"][1:]] for row in rows])
    else:
        answers = [ANSWERS[int(number % CANDIDATES > 0)] for number in range(len(rows))]
        asked: list[Tokens] = [{"input_ids": [*row["input_ids"], own]} for row, own in zip(rows, answers, strict=True)]
        pairs = examples(
            asked, [[*[-100] * len(row["input_ids"]), own] for row, own in zip(rows, answers, strict=True)]
        )
    texts = max(1, spec.at_once * spec.row // len(pairs[0]["input_ids"]))
    way = Way(min(texts, len(pairs)), attention="sdpa")
    recipe = recipe_for(spec, folder)

    def made(*_: Any, attn_implementation: str = "sdpa", **__: Any) -> Any:
        model = random_base(spec.shape, recipe.model, attn_implementation, device_of(), torch.bfloat16)
        if spec.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    with patch.object(transformers.AutoModelForCausalLM, "from_pretrained", made):
        trainer = sft(folder, pairs, way, RANK, folder.parent, torch.bfloat16)
    if not spec.checkpointing:
        trainer.model.activation_checkpointing_disable()  # which preparing a k-bit base turns on
    if spec.search:
        return {"at_once": _largest(trainer, way, spec, step_seconds)}
    loss = trl_loss(trainer, way)
    for _ in range(2):
        step_seconds(trainer, way)
    times = [step_seconds(trainer, way) for _ in range(spec.steps)]
    return {"step_s": statistics.median(times), "loss": loss, "at_once": spec.at_once, "way": str(way)}


def _largest(trainer: Any, way: Any, spec: Spec, step: Callable[[Any, Any], float]) -> int:
    """How many rows, as a power of two, go through TRL's trainer at a time before memory runs out."""
    found, at_once, per_row = 0, 1, len(trainer.train_dataset) // spec.amount
    while at_once <= spec.amount:
        trainer._train_batch_size = trainer.args.per_device_train_batch_size = at_once * per_row
        trainer.args.gradient_accumulation_steps = -(-spec.amount // at_once)
        try:
            step(trainer, way)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        found, at_once = at_once, 2 * at_once
    return found


def measured(side: str, spec: Spec, folder: Path) -> dict[str, Any]:
    """What a child says: the side's figures and the peak, or that memory ran out."""
    device = device_of()
    if spec.cap_gib and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, spec.cap_gib * 2**30 / total), device)
    try:
        found = (ours if side == "ours" else theirs)(spec, folder)
    except (RuntimeError, MemoryError, TuneError) as error:
        if not (is_out_of_memory(error) or "memory ran out" in str(error)):
            raise
        return {"failed": str(error).splitlines()[0][:160]}
    peak = peak_bytes(device) if device.type == "cuda" else memory("VmHWM")
    return {**found, "peak_gib": peak / 2**30}


# -- the table --------------------------------------------------------------------------------------------------------


def ask(given: argparse.Namespace, side: str, spec: Spec) -> dict[str, Any]:
    spec = dataclasses.replace(spec, tiny=given.tiny)
    start = time.perf_counter()
    options = ["--work", str(given.work), "--spec", json.dumps(dataclasses.asdict(spec))]
    found = child(Path(__file__), side, options)
    said = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    print(f"{side}: {spec} -> {said} ({time.perf_counter() - start:.0f} s)", flush=True)
    given.all.append({"side": side, "spec": dataclasses.asdict(spec), **found})
    return found


def with_checkpointing_where_needed(given: argparse.Namespace, spec: Spec) -> dict[str, Any]:
    """TRL's side as a user finds it: without checkpointing where that fits."""
    found = ask(given, "theirs", spec)
    return ask(given, "theirs", dataclasses.replace(spec, checkpointing=True)) if "failed" in found else found


def both(given: argparse.Namespace, spec: Spec, name: str, unit: str, amount: float, rate: float) -> Row:
    """One row: both sides' amount a second, with memory and the share of the matrix rate."""
    mine, other = ask(given, "ours", spec), with_checkpointing_where_needed(given, spec)
    if "failed" in mine:
        return Row(name, unit, 0.0, note=mine["failed"])
    spec = dataclasses.replace(spec, tiny=given.tiny)
    share = spec.flop(spec.examples()) / mine["step_s"] / rate
    note = f"{share:.0%} of the matrix rate; {mine['peak_gib']:.2f} GiB, {mine['checkpointed']} blocks twice"
    if "failed" in other:
        return Row(name, unit, amount / mine["step_s"], note=f"{note}; TRL: {other['failed']}")
    # purchase: recft's loss is among the two answers, TRL's among the whole vocabulary.
    apart = abs(mine["loss"] - other["loss"]) / other["loss"] if spec.workload == "packed" else 0.0
    note += f"; TRL {other['peak_gib']:.2f} GiB{'' if apart < 0.01 else f'; LOSSES DIFFER by {apart:.1%}'}"
    ratio = other["step_s"] / mine["step_s"]
    return Row(name, unit, amount / mine["step_s"], amount / other["step_s"], ratio, None, note)


def packed(given: argparse.Namespace, rate: float) -> list[Row]:
    rows = []
    for quantization in ("nf4", "none"):
        for batch in (1, 2):
            spec = Spec("packed", quantization, batch, batch, steps=given.steps)
            tokens = batch * dataclasses.replace(spec, tiny=given.tiny).row
            rows.append(both(given, spec, f"packed, {quantization}, {batch} rows", "tokens/s", tokens, rate))
    if torch.cuda.is_available():
        small = Spec("packed", "nf4", 1, 1, cap_gib=AIM_GIB, optimizer="paged_adamw8bit", steps=given.steps)
        found = ask(given, "ours", small)
        verdict = found.get("failed") or f"fits: {found['peak_gib']:.2f} GiB"
        rows.append(
            Row(f"packed, nf4, in {AIM_GIB:g} GiB", "tokens/s", ROW / found.get("step_s", np.inf), note=verdict)
        )
    return rows


def purchase(given: argparse.Namespace, rate: float) -> list[Row]:
    return [
        both(given, spec, f"purchase, {spec.quantization}", "examples/s", spec.amount * CANDIDATES, rate)
        for quantization in ("nf4", "none")
        for spec in [Spec("purchase", quantization, 4 if given.tiny else 32, 2, steps=given.steps)]
    ]


def fits(given: argparse.Namespace, _rate: float) -> list[Row]:
    """The most rows that have a graph at a time, as a power of two."""
    rows = []
    for cap in CAPS_GIB if torch.cuda.is_available() else CAPS_GIB[:1]:
        most = 2 if given.tiny else 64
        spec = Spec("packed", "nf4", most, most, cap_gib=cap, steps=1, search=True)
        mine = ask(given, "ours", spec)
        other = ask(given, "theirs", dataclasses.replace(spec, at_once=1, checkpointing=True))
        note = mine.get("failed") or f"{mine['checkpointed']} blocks twice, {mine['peak_gib']:.2f} GiB"
        rows.append(Row(f"fits in {cap} GiB", "rows", mine.get("at_once", 0), other.get("at_once", 0), note=note))
    return rows


def make_folder(folder: Path) -> Path:
    """A base's folder with a configuration and a tokenizer of bytes; its weights are made where they are used."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(str(folder))
    LlamaConfig(**TINY).save_pretrained(str(folder))
    (folder / "model.safetensors").touch()  # never read
    return folder


def main() -> None:
    """Measures each section, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--steps", type=int, default=5, help="timed in each process")
    parser.add_argument("--tiny", action="store_true", help="two small layers; runs on a CPU too")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--spec", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.work, given.all = given.work.resolve(), []
    if given.child:
        print(json.dumps(measured(given.child, Spec(**json.loads(given.spec)), given.work / "base")))
        return
    if not torch.cuda.is_available() and not given.tiny:
        print("no NVIDIA GPU here: nothing was measured (--tiny tries the script without one)")
        return
    make_folder(given.work / "base")
    print(machine(), versions(*PEERS), flush=True)
    shape = TINY if given.tiny else LLAMA_8B
    rate = matrix_rate(ROW, shape["hidden_size"], shape["intermediate_size"], torch.bfloat16, device_of().type)
    print(f"matrix rate, bfloat16, of {ROW} tokens in the feed-forward part: {rate / 1e12:.3g} TFLOP/s", flush=True)
    sections = {"packed": packed, "purchase": purchase, "fits": fits}
    rows = [row for name in given.only for row in sections[name](given, rate)]
    show(rows)
    note = f"aims: below {AIM_GIB:g} GiB with nf4 and one row; {AIM_SHARE:.0%} of the matrix rate without quantization"
    print(note)
    save(given.work / "gpu.json", rows, versions=versions(*PEERS), matrix_rate=rate, children=given.all, aims=note)


if __name__ == "__main__":
    main()
