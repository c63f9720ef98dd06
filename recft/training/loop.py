"""The loop: batches in a fixed order, one optimizer step each, evaluations, checkpoints, and resuming bitwise.

Nothing of a step depends on what was before but the parameters and the optimizer's state: the order of examples
comes from (seed, epoch), what is drawn for a batch from (seed, step), dropout from (seed, step, chunk). So a
checkpoint needs no random state, and a resumed run computes the bits of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from recft.errors import TuneError, problem
from recft.models.blocks import blocks_of, checkpoint_blocks, compiled, compiled_forwards
from recft.models.bottom import Bottom
from recft.models.encoder import encode
from recft.models.tokens import Tokens
from recft.run import Listener, RunFolder, silent
from recft.schema import TuneSettings
from recft.tasks._base import Batch
from recft.training import checkpoint, memory, optimizer
from recft.training.ahead import Ahead
from recft.training.assemble import Tuned
from recft.training.checkpoint import Progress
from recft.training.choices import draws_ahead, products
from recft.training.memory import Fit
from recft.training.mixing import Order, Part, epoch_steps
from recft.training.schedule import learning_rate
from recft.training.served import Served
from recft.training.signals import Waiting
from recft.training.step import CHUNK_TOKENS, Gradients, Ranks, Sums, gradients
from recft.training.track import Track

__all__ = ["Evaluation", "Job", "fit", "total_steps"]

FIRST_LOSS_SCALE = 2.0**14
MOST_STEPS_WITHOUT_GRADIENT = 5


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged while it goes on.

    Attributes:
        metric: its name.
        score: computes it.
        higher_is_better: which way is better.
        save_best: keeps the adapter as it stands.
    """

    metric: str
    score: Callable[[], float]
    higher_is_better: bool
    save_best: Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What `fit` does.

    Attributes:
        tuned: the model.
        parameters: what trains, by name.
        parts: its tasks.
        settings: the optimization.
        seed: of order, draws and dropout.
        accelerator: the processes and the device.
        own: whether the adapter trains too (its penalty and its life cycle), not a head alone.
        evaluation: how the run is judged, or None.
        folder: where checkpoints and logs go, or None for a stage that is not resumed.
        fingerprint: hash of recipe and data.
        listen: hears of steps and evaluations.
        signals: interrupts that wait for the end of a step.
        may_checkpoint: whether the method's gradients stay right where blocks are computed again.
        bottom: blocks below all that trains, which are computed once a text; or None.
    """

    tuned: Tuned
    parameters: Mapping[str, nn.Parameter]
    parts: Sequence[Part]
    settings: TuneSettings
    seed: int
    accelerator: Accelerator
    own: bool = True
    evaluation: Evaluation | None = None
    folder: RunFolder | None = None
    fingerprint: str = ""
    listen: Listener = silent
    signals: Waiting = field(default_factory=Waiting)
    may_checkpoint: bool = False
    bottom: Bottom | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the examples of all tasks."""
        return epoch_steps([part.n_examples for part in self.parts], self.settings.batch_size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return bool(self.accelerator.is_main_process)


def total_steps(settings: TuneSettings, sizes: Sequence[int]) -> int:
    """Optimizer steps of a run over so many examples of each task."""
    wanted = math.ceil(settings.epochs * epoch_steps(sizes, settings.batch_size))
    return max(1, min(wanted, settings.max_steps or wanted))


def fit(job: Job, resume: bool = False) -> Progress:
    """Trains `job.parameters` to the end and returns where the run stands.

    Raises:
        TuneError: the loss is not finite, no gradient reaches the adapter, memory runs out for a single text, or a
            checkpoint does not fit.
        KeyboardInterrupt, Terminated: a signal came; the state is saved.
    """
    loop = _Loop(job)
    if resume:
        loop.resume()
    with contextlib.closing(loop.track), contextlib.closing(loop.ahead), _training(job.tuned.model):
        while loop.progress.step < loop.total and not loop.progress.stopped:
            loop.one_step()
            loop.after_step()
    loop.finish()
    return loop.progress


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


@dataclass(frozen=True)
class _Drawn:
    """What a step learns from: a task, some of its examples, and their texts' tokens."""

    part: Part
    batch: Batch
    tokens: Sequence[Tokens]


class _Loop:
    """The state of one `fit`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.total = total_steps(job.settings, [part.n_examples for part in job.parts])
        self.order = Order(job.parts, job.settings.batch_size, self.total, job.seed)
        self.warmup = round(job.settings.warmup_share * self.total)
        model = job.tuned.model
        self.device = model.device
        self.optimizer = optimizer.make(job.parameters, job.settings, self.device)
        # float16 loses small gradients: the loss is scaled up before the backward pass.
        self.scaled = model.base.dtype == torch.float16
        auto = job.settings.gradient_checkpointing == "auto" and job.may_checkpoint
        self.n_blocks = len(blocks_of(model.base)) if auto else 0  # that may be computed again
        fit = self._first_fit()
        self.progress = Progress(
            micro_batch=fit.micro_batch,
            checkpointed_blocks=fit.checkpointed,
            fingerprint=job.fingerprint,
            loss_scale=FIRST_LOSS_SCALE if self.scaled else 1.0,
        )
        self._checkpoint_blocks()
        self.forwards = compiled_forwards(model.base) if job.settings.compile else []
        ahead = draws_ahead(self.device.type)
        # A tokenizer cannot be asked by two threads at once.
        self.tokenizer = copy.deepcopy(job.tuned.tokenizer) if ahead else job.tuned.tokenizer
        self.ahead = Ahead(self._draw, self.total, ahead)
        self.served = Served(job.parameters, job.settings.average, job.settings.interpolate if job.own else 1.0)
        self.track = Track(job.folder if job.is_main else None, job.listen if job.is_main else silent, self.total)
        self.checked = False

    def _first_fit(self) -> Fit:
        wanted, model = self.job.settings.micro_batch_size, self.job.tuned.model
        if wanted != "auto":
            return Fit(wanted)
        shape = memory.Shape.of(model.base.config, model.base.dtype, model.serving.max_tokens)
        # A GPU says when memory runs out: there nothing is computed again before it does.
        n_blocks = 0 if self.device.type == "cuda" else self.n_blocks
        return memory.first_fit(shape, n_blocks, memory.available_bytes(self.device))

    def _checkpoint_blocks(self) -> None:
        if self.n_blocks:
            checkpoint_blocks(self.job.tuned.model.base, self.progress.checkpointed_blocks)

    # -- one step -----------------------------------------------------------------------------------------------

    def _draw(self, step: int) -> _Drawn:
        """What a step learns from: a function of the step's number."""
        part, rows = self.order.at(step)
        batch = part.batch(rows, np.random.default_rng([self.job.seed, 1, step]))
        return _Drawn(part, batch, part.model.serving.tokens(self.tokenizer, batch.texts))

    def one_step(self) -> None:
        """One optimizer step on the next batch."""
        job, step = self.job, self.progress.step
        started = time.perf_counter()
        drawn = self.ahead.take(step)
        sums = self._gradients(drawn, step)
        self.ahead.wait()
        rate = learning_rate(step, self.total, job.settings.learning_rate, self.warmup, job.settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self._ready(sums, step)
        if norm is not None:
            if job.settings.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(job.parameters.values(), job.settings.clip_norm, norm)
            self.optimizer.step()
            if job.own:
                job.tuned.attached.after_backward(step)
            self.served.update(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        self.track.add(sums.loss, drawn.batch.n_examples, sums.n_tokens, seconds, rate)

    def _gradients(self, drawn: _Drawn, step: int) -> Sums:
        """The step's gradients; less of it is in memory at a time until they fit, the step stays the same."""
        job, part, batch = self.job, drawn.part, drawn.batch
        work = Gradients(
            model=part.model,
            tokenizer=job.tuned.tokenizer,
            penalty=job.tuned.attached.penalty if job.own else lambda: None,
            ranks=cast("Ranks", job.accelerator),
            seed=(job.seed * 1_000_003 + step) * 65_537 % 2**62,
            loss_scale=self.progress.loss_scale,
            tokens=drawn.tokens,
            bottom=job.bottom,
        )
        base = self._base_outputs(part, batch) if part.needs_base else None
        while True:
            try:
                with products(self.device.type), compiled(self.forwards):
                    sums = gradients(
                        work, batch.texts, lambda outputs: part.loss(outputs, batch, base), self.progress.micro_batch
                    )
                break
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                message = str(error)
            self._take_less(len(batch.texts), message)
        self._sum_over_ranks()
        return sums

    def _base_outputs(self, part: Part, batch: Batch) -> Tensor:
        """The untuned base's outputs for a batch, (N, K).

        Computed anew each step, all texts together: an output kept from another batch may differ in its last bits,
        and a resumed run would no longer be the uninterrupted one's equal.
        """
        tuned = self.job.tuned
        tuned.model.eval()
        with tuned.as_base():
            outputs = encode(part.model, tuned.tokenizer, batch.texts, CHUNK_TOKENS)
        tuned.model.train()
        return torch.as_tensor(outputs, device=self.device)

    def _take_less(self, n_texts: int, message: str) -> None:
        # Outside the except block: the traceback would keep the failed pass's tensors alive.
        now = Fit(self.progress.micro_batch, self.progress.checkpointed_blocks)
        less = now.smaller(n_texts, self.n_blocks) if self.job.accelerator.num_processes == 1 else None
        if less is None:
            size = min(now.micro_batch, n_texts)
            raise TuneError(
                problem(
                    "tune.micro_batch_size",
                    f"memory ran out with {size} texts a forward pass ({message.splitlines()[0]})",
                    "one text must fit; several processes do not search for the size",
                    "set a smaller tune.micro_batch_size or tune.max_tokens, tune.gradient_checkpointing: true, "
                    "or a quantized base",
                )
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.progress.micro_batch, self.progress.checkpointed_blocks = less.micro_batch, less.checkpointed
        self._checkpoint_blocks()
        again = f", {less.checkpointed} of {self.n_blocks} blocks computed again" if less.checkpointed else ""
        self.job.listen("note", {"text": f"out of memory: {less.micro_batch} texts a forward pass{again} from here on"})

    def _sum_over_ranks(self) -> None:
        if self.job.accelerator.num_processes == 1:
            return
        parameters = list(self.job.parameters.values())
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        flat = self.job.accelerator.reduce(flat, reduction="sum")
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def _ready(self, sums: Sums, step: int) -> Tensor | None:
        """The gradients' norm, where they can be used; with float16 a step whose gradients overflow is left out.

        Raises:
            TuneError: the loss is not finite, or the adapter gets no gradient.
        """
        found = [parameter.grad for parameter in self.job.parameters.values() if parameter.grad is not None]
        norm, finite = optimizer.gradient_norm(found)
        self.checked = self.checked or any(bool(grad.any()) for grad in found)
        # A batch may have nothing to learn from (no positive among its examples), but not one after another.
        if not self.checked and step + 1 >= min(MOST_STEPS_WITHOUT_GRADIENT, self.total):
            raise TuneError(
                problem(
                    "method",
                    "no gradient reaches its parameters",
                    "tuning changes the adapter",
                    "check method.layers and the base's architecture",
                )
            )
        finite_loss = math.isfinite(sums.loss)
        if self.scaled and finite_loss and (finite or self.progress.loss_scale > 1):
            for grad in found:
                grad.div_(self.progress.loss_scale)
            norm = norm / self.progress.loss_scale
            self.progress.loss_scale *= 1.0 if finite else 0.5
            return norm if finite else None
        if not finite or not finite_loss:
            raise TuneError(
                problem(
                    "tune",
                    f"the loss or a gradient is not finite at step {step} (loss {sums.loss})",
                    "numbers stay finite",
                    "lower tune.learning_rate, or set model.compute_dtype: float32",
                )
            )
        return norm

    # -- after a step -----------------------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Logs, evaluates and saves where this step is due for it."""
        settings, step = self.job.settings, self.progress.step
        last = step == self.total
        if last or step % settings.log_every_steps == 0:
            self.track.log(step, step / self.job.steps_per_epoch, self.device)
        if last or step % (settings.eval_every_steps or self.job.steps_per_epoch) == 0:
            self._evaluate()
        stop = self.job.signals.number is not None
        if last or stop or self.progress.stopped or step % settings.checkpoint_every_steps == 0:
            self._save()
        self.job.signals.raise_if_any()

    def _evaluate(self) -> None:
        evaluation, progress = self.job.evaluation, self.progress
        if evaluation is None:
            return
        model = self.job.tuned.model
        with self.served.in_place():
            model.eval()
            score = evaluation.score()
            model.train()
            if math.isnan(score):
                raise _undefined(evaluation.metric)
            sign = 1 if evaluation.higher_is_better else -1
            better = progress.best is None or sign * score > sign * progress.best
            if better:
                progress.best, progress.best_step, progress.since_best = score, progress.step, 0
                if self.job.is_main:
                    evaluation.save_best()
            else:
                progress.since_best += 1
        patience = self.job.settings.early_stopping.patience
        progress.stopped = patience is not None and progress.since_best >= patience
        self.track.evaluated(progress.step, evaluation.metric, score, better)

    def _save(self) -> None:
        job = self.job
        if job.folder is None or not job.is_main:
            return
        tensors, self.progress.optimizer = optimizer.state_of(self.optimizer, job.parameters)
        state: dict[str, Tensor] = {f"parameter/{name}": tensor for name, tensor in job.parameters.items()}
        state |= {f"optimizer/{name}": tensor for name, tensor in tensors.items()}
        state |= {f"average/{name}": tensor for name, tensor in self.served.average.items()}
        state |= {f"method/{name}": tensor for name, tensor in job.tuned.attached.state().items()}
        if job.bottom is not None:
            job.bottom.sync()  # what later steps will be given must be there before a state that relies on it
        checkpoint.save(job.folder.checkpoints, self.progress, state)

    def resume(self) -> None:
        """Takes up the newest checkpoint; a run without one starts at its beginning."""
        job = self.job
        assert job.folder is not None  # noqa: S101  # only a stage with a folder is resumed
        newest = checkpoint.latest(job.folder.checkpoints)
        if newest is not None:
            self.progress, state = checkpoint.load(newest, job.fingerprint)
            groups: dict[str, dict[str, Tensor]] = {"parameter": {}, "optimizer": {}, "average": {}, "method": {}}
            for key, tensor in state.items():
                kind, _, name = key.partition("/")
                groups[kind][name] = tensor
            # The method's state first: it may decide the parameters' shapes.
            job.tuned.attached.load_state(groups["method"])
            with torch.no_grad():
                for name, parameter in job.parameters.items():
                    parameter.copy_(groups["parameter"][name])
                for name, value in self.served.average.items():
                    value.copy_(groups["average"][name])
            optimizer.load_state(self.optimizer, job.parameters, groups["optimizer"], self.progress.optimizer)
            self.checked = self.progress.step > 0
            self._checkpoint_blocks()
        self.track.cut_back(self.progress.step)

    def finish(self) -> None:
        """Leaves in the parameters what is served."""
        self.served.put(self.served.values())


def _undefined(metric: str) -> TuneError:
    return TuneError(
        problem(
            "tune.early_stopping.metric",
            f"{metric} is undefined on the validation split",
            "the best step is chosen by a number",
            "hold out more records (data.split.valid), or choose another metric, such as log_loss for labels",
        )
    )
