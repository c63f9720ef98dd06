"""`tune`: prepared data to the best adapter, in a run folder."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from recft import registry
from recft.data.store import Store
from recft.errors import DataError, TuneError, problem
from recft.methods._base import chosen_layers
from recft.metrics import _base as metrics
from recft.models.base import base_hash, tokenizer_of
from recft.models.encoder import Encoder
from recft.models.text_model import Serving
from recft.perturbations._spoilt import augmented_task
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.reports.plots import curves
from recft.run import (
    Listener,
    RunFolder,
    atomic_file,
    hash_bytes,
    read_json,
    silent,
    without_nan,
    write_json,
    write_text,
)
from recft.training import assemble, manifest, memory
from recft.training.asked import settled
from recft.training.assemble import BASE_HEAD, Tuned, check, read_adapter_into, save_adapter, save_tensors
from recft.training.calibration import fit_calibration
from recft.training.checkpoint import Progress
from recft.training.exam import few_records
from recft.training.examples import example_records
from recft.training.frozen import frozen
from recft.training.loop import Evaluation, Job, fit, total_steps
from recft.training.mixing import Part
from recft.training.opened import exam_of, open_run, refuse_no_effect
from recft.training.scoring import score_model
from recft.training.servings import servings_of, write_servings
from recft.training.signals import Terminated, Waiting, waiting

__all__ = ["tune"]

SAMPLE_TEXTS = 64
"""Training texts for initialisation from data."""

LEAST_CALIBRATION_PAIRS = 50


def tune(
    recipe: Recipe, run: Path | str | None = None, resume: bool = False, force: bool = False, listen: Listener = silent
) -> dict[str, Any]:
    """The run's manifest, after tuning to the end.

    Args:
        recipe: what to do.
        run: the run folder; `runs/<name>` where absent.
        resume: go on from the newest checkpoint of this folder.
        force: begin anew in a folder that holds a run.
        listen: hears of stages, steps and evaluations.

    Raises:
        RecipeError: the parts cannot work together, said before anything is loaded.
        DataError: the data breaks a rule.
        TuneError: the folder holds a run already, or tuning cannot go on.
        KeyboardInterrupt, Terminated: a signal came; the state is saved and `resume` goes on from it.
    """
    folder = RunFolder(Path(run) if run else Path("runs") / recipe.name)
    check(recipe)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    parts = recipe.parts()
    if accelerator.is_main_process:
        _refuse_other_run(folder, recipe, resume, force)
        # Data first: a recipe that prepare refuses leaves nothing behind that the next try would have to force. What
        # eval will be asked for comes next, not after hours of tuning.
        made = [prepare(part, folder.data_of(part.task.name, len(parts)), True, listen) for part in parts]
        settled(tuple(zip(parts, made, strict=True)), "valid")
        if not resume:
            _begin(folder, recipe)
    accelerator.wait_for_everyone()
    stores = [Store.open(folder.data_of(part.task.name, len(parts))) for part in parts]
    done = read_json(folder.manifest) if resume and folder.manifest.is_file() else {}
    if done.get("exit_status") == 0:
        listen("note", {"text": f"{folder.root} is finished already"})
        return dict(done)
    with _recorded(folder, recipe, stores, accelerator) as record:
        tasks = settled(tuple(zip(parts, stores, strict=True)), "valid")
        record |= _Tuning(recipe, folder, tasks, accelerator, listen).run(resume)
    return record


def _refuse_other_run(folder: RunFolder, recipe: Recipe, resume: bool, force: bool) -> None:
    """Nothing, where the folder is free, or this run's own: another run is never overwritten unasked.

    Raises:
        TuneError: it is another's.
    """
    if resume:
        if not folder.recipe.is_file():
            raise TuneError(
                problem(str(folder.root), "holds no run", "--resume goes on with one", "leave --resume out")
            )
        if folder.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
            raise TuneError(
                problem(
                    str(folder.recipe),
                    "differs from the recipe given",
                    "a run is resumed with the recipe it began with",
                    "restore the recipe, or start anew with --force",
                )
            )
    elif folder.recipe.exists() and not force:
        raise TuneError(
            problem(
                str(folder.root),
                "holds a run already",
                "tune never overwrites one unasked",
                "go on with --resume, begin anew with --force, or name another --run",
            )
        )


def _begin(folder: RunFolder, recipe: Recipe) -> None:
    """Clears what an earlier run left in the folder, and writes the recipe: from here on the run can be resumed."""
    for old in (folder.adapter, folder.checkpoints, folder.frozen, folder.root / "eval"):
        shutil.rmtree(old, ignore_errors=True)
    for file in (folder.metrics, folder.manifest, folder.curves, folder.serving, folder.page, folder.root / BASE_HEAD):
        file.unlink(missing_ok=True)
    for events in folder.root.glob("events.out.tfevents*"):
        events.unlink()
    write_text(folder.recipe, recipe.to_yaml())


@contextlib.contextmanager
def _recorded(
    folder: RunFolder, recipe: Recipe, stores: Sequence[Store], accelerator: Accelerator
) -> Iterator[dict[str, Any]]:
    """The manifest, written when the run begins and, with its exit status, however it ends."""
    record = manifest.begin(recipe, _data_hash(stores), base_hash(recipe.model))
    started = time.perf_counter()

    def write(status: int | None) -> None:
        record["exit_status"] = status
        record["seconds"] = round(time.perf_counter() - started, 2)
        record["peak_memory_bytes"] = memory.peak_bytes(accelerator.device)
        if accelerator.is_main_process:
            write_json(folder.manifest, record)

    write(None)
    try:
        yield record
    except BaseException as error:
        write({KeyboardInterrupt: 130, Terminated: 143}.get(type(error), 1))
        raise
    write(0)


def _data_hash(stores: Sequence[Store]) -> str:
    hashes = [str(store.card["data_sha256"]) for store in stores]
    return hashes[0] if len(hashes) == 1 else hash_bytes(" ".join(hashes).encode())


@dataclass(frozen=True)
class _Tuning:
    """One run of `tune`, from a claimed folder on; `tasks` are the recipe for each task alone, and its data."""

    recipe: Recipe
    folder: RunFolder
    tasks: tuple[tuple[Recipe, Store], ...]
    accelerator: Accelerator
    listen: Listener

    def run(self, resume: bool) -> dict[str, Any]:
        """What the manifest says of the tuning."""
        recipe = self.recipe
        sizes = [self._size(part, store) for part, store in self.tasks]
        steps = total_steps(recipe.tune, sizes)
        self.listen("stage", {"name": f"loading {recipe.model.base} ({recipe.model.quantization})"})
        servings = servings_of([(part, store.item_ids) for part, store in self.tasks], tokenizer_of(recipe.model))
        tuned = assemble.new(recipe, servings, steps, self._samples(), self.accelerator.device)
        if self.accelerator.is_main_process:
            write_servings(self.folder.serving, servings)
        self._start_from(tuned)
        with waiting() as signals:  # until here nothing is lost by stopping at once
            job = self._job(tuned, signals)
            if tuned.heads:
                self._base_head(job)
            self.listen("stage", {"name": f"tuning {recipe.method.name}, {steps} steps"})
            with frozen(job, self._n_frozen(tuned), self.folder.frozen) as job:
                progress = fit(job, resume)
        if self.accelerator.is_main_process:
            self._end(tuned, progress, job, servings)
        return self._summary(tuned, progress, steps)

    def _size(self, part: Recipe, store: Store) -> int:
        """How many examples a task has to train on.

        Raises:
            DataError: none.
        """
        task = registry.load("recft.tasks", part.task.name)
        size = len(example_records(task, part.task, store.records("train")))
        if not size:
            raise DataError(
                problem(
                    "data.split",
                    f"the training split of {part.task.name} is empty",
                    "there is something to train on",
                    "give more data, or smaller valid and test shares",
                )
            )
        return size

    def _samples(self) -> Sequence[Any]:
        """Some training texts of the first task."""
        part, store = self.tasks[0]
        records, rng = store.records("train"), np.random.default_rng([self.recipe.seed, 2])
        task = registry.load("recft.tasks", part.task.name)
        some = rng.permutation(len(records))[:8]
        texts: Sequence[Any] = task.batch(part.task, records, some, store.item_texts, rng).texts
        return texts[:SAMPLE_TEXTS]

    def _job(self, tuned: Tuned, signals: Waiting) -> Job:
        recipe = self.recipe
        text = recipe.to_yaml() + _data_hash([store for _, store in self.tasks])
        return Job(
            tuned=tuned,
            parameters=tuned.attached.parameters() | dict(tuned.heads),
            parts=[self._part(part, store, tuned) for part, store in self.tasks],
            settings=recipe.tune,
            seed=recipe.seed,
            accelerator=self.accelerator,
            evaluation=self._evaluation(tuned),
            folder=self.folder,
            fingerprint=hash_bytes(text.encode()),
            listen=self.listen,
            signals=signals,
            may_checkpoint=registry.load("recft.methods", recipe.method.name).allows_gradient_checkpointing,
        )

    def _n_frozen(self, tuned: Tuned) -> int:
        """How many of the base's blocks lie below the method's lowest."""
        n_layers = tuned.model.base.config.get_text_config().num_hidden_layers
        return min(chosen_layers(self.recipe.method.layers, n_layers))

    def _part(self, part: Recipe, store: Store, tuned: Tuned) -> Part:
        task, items = registry.load("recft.tasks", part.task.name), store.item_texts
        records = store.records("train")
        examples = example_records(task, part.task, records)
        task = augmented_task(task, part.tune.augment) if part.tune.augment else task
        return Part(
            model=tuned.views[part.task.name],
            n_examples=len(examples),
            batch=lambda chosen, rng: task.batch(part.task, records, examples.records(chosen), items, rng),
            loss=lambda outputs, batch, base: task.loss(part.task, outputs, batch, base),
            needs_base=task.needs_base(part.task),
            weight=part.task.weight,
        )

    def _evaluation(self, tuned: Tuned) -> Evaluation | None:
        """Validation on the first task's metric; None where the split has no validation records."""
        recipe, store = self.tasks[0]
        task = registry.load("recft.tasks", recipe.task.name)
        name = recipe.tune.early_stopping.metric or task.monitor
        key, _ = metrics.parse(name, task.output)
        exam = exam_of(recipe, store, "valid", (name,))
        if recipe.tune.eval_records is not None:
            exam = few_records(exam, recipe.tune.eval_records)
        if not len(exam.records):
            self.listen("warning", {"text": "no validation records: the last step is kept, not the best"})
            return None
        encoder = Encoder(tuned.model, tuned.tokenizer, recipe.eval.batch_tokens)
        return Evaluation(
            metric=name,
            score=lambda: score_model(exam, encoder).values[name],
            higher_is_better=registry.load(metrics.PACKAGE, key).higher_is_better,
            save_best=lambda: save_adapter(tuned, self.folder.adapter),
        )

    def _base_head(self, job: Job) -> None:
        """A new head is first tuned on the frozen base alone: that is the `base` row, and where tuning begins.

        Starting from it (Kumar et al. 2022, arXiv 2202.10054) also keeps the first steps from bending the base to a
        random head.
        """
        path, tuned = self.folder.root / BASE_HEAD, job.tuned
        before = {name: parameter.detach().clone() for name, parameter in tuned.heads.items()}
        if not path.is_file():
            self.listen("stage", {"name": "tuning the new head on the frozen base"})
            stage = Job(
                tuned=tuned,
                parameters=tuned.heads,
                parts=[part for part in job.parts if part.model.serving.head == "classifier"],
                settings=job.settings,
                seed=job.seed,
                accelerator=job.accelerator,
                own=False,
                listen=job.listen,
                signals=job.signals,
            )
            n_blocks = tuned.model.base.config.get_text_config().num_hidden_layers
            with tuned.attached.disabled(), frozen(stage, n_blocks, self.folder.frozen) as stage:
                fit(stage)
            if job.is_main:
                with atomic_file(path) as draft:
                    save_tensors(draft, {name: parameter.detach() for name, parameter in tuned.heads.items()})
            self.accelerator.wait_for_everyone()
        tuned.base_heads.update(load_file(path))
        # An adapter that is tuned on goes on with the head that was tuned with it.
        begin = before if self.recipe.tune.start_from else tuned.base_heads
        with torch.no_grad():
            for name, value in begin.items():
                tuned.heads[name].copy_(value)

    def _start_from(self, tuned: Tuned) -> None:
        """Takes up the adapter of another run.

        Raises:
            TuneError: that run has another base or method.
            ModelError: its task has a head that this one has not, or the other way round.
        """
        if self.recipe.tune.start_from is None:
            return
        start = open_run(Path(self.recipe.tune.start_from))
        other_folder, other = start.folder, start.recipe
        for place in ("model", "method"):
            if getattr(other, place) != getattr(self.recipe, place):
                raise TuneError(
                    problem(
                        "tune.start_from",
                        f"{other_folder.root} has other {place} settings",
                        "an adapter is tuned on with the settings it has",
                        f"copy its `{place}` settings into this recipe",
                    )
                )
        read_adapter_into(tuned, other_folder.adapter)

    def _end(self, tuned: Tuned, progress: Progress, job: Job, servings: Mapping[str, Serving]) -> None:
        """Keeps the last adapter where none was judged, calibrates it, and makes sure that it has an effect."""
        if job.evaluation is None:
            save_adapter(tuned, self.folder.adapter)
        curves(self.folder.metrics, self.folder.curves)
        read_adapter_into(tuned, self.folder.adapter)
        for part, store in self.tasks:
            refuse_no_effect(tuned.of(part.task.name), exam_of(part, store, "train"))
        write_servings(
            self.folder.serving,
            {
                part.task.name: replace(
                    servings[part.task.name], calibration=self._calibration(part, store, tuned.of(part.task.name))
                )
                for part, store in self.tasks
            },
        )
        if self.recipe.tune.start_from is not None:
            self._report_continued(tuned, progress)

    def _calibration(self, part: Recipe, store: Store, tuned: Tuned) -> dict[str, Any] | None:
        """The correction of a task's probabilities; None where it has none, or too few validation pairs to learn it."""
        task, kind = registry.load("recft.tasks", part.task.name), part.tune.calibration
        if kind == "none" or task.output not in ("labels", "classes"):
            return None
        kind = "temperature" if task.output == "classes" else kind  # classes have no order to be isotonic in
        exam = exam_of(part, store, "valid", (task.monitor,))
        encoder = Encoder(tuned.model, tuned.tokenizer, part.eval.batch_tokens)
        labels = score_model(exam, encoder).labels if len(exam.records) else None
        if labels is None or len(labels) < LEAST_CALIBRATION_PAIRS:
            self.listen("note", {"text": f"{part.task.name}: too few validation pairs to calibrate probabilities"})
            return None
        if len(np.unique(labels.labels)) < 2:
            # What makes one answer alone most likely says nothing of the other.
            self.listen("note", {"text": f"{part.task.name}: validation has one answer alone, nothing is calibrated"})
            return None
        return fit_calibration(kind, labels.scores, labels.labels)

    def _report_continued(self, tuned: Tuned, progress: Progress) -> None:
        """Old and new adapter, each on the old and the new test records: `eval/start_from.json`."""
        recipe, store = self.tasks[0]
        start = open_run(Path(str(recipe.tune.start_from)))
        old, old_store = start.parts[0]
        encoder = Encoder(tuned.model, tuned.tokenizer, recipe.eval.batch_tokens)
        exams = {"new test": exam_of(recipe, store, "test")}
        if old.task.name == recipe.task.name:
            exams = {"old test": exam_of(old, old_store, "test"), **exams}
        scores: dict[str, Any] = {
            "new adapter": {name: score_model(exam, encoder).values for name, exam in exams.items()}
        }
        read_adapter_into(tuned, start.folder.adapter)
        scores["old adapter"] = {name: score_model(exam, encoder).values for name, exam in exams.items()}
        read_adapter_into(tuned, self.folder.adapter)
        write_json(
            self.folder.root / "eval" / "start_from.json", without_nan(scores | {"best_step": progress.best_step})
        )
        for adapter in ("old adapter", "new adapter"):
            for exam, values in scores[adapter].items():
                shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
                self.listen("note", {"text": f"{adapter} on {exam}: {shown}"})

    def _summary(self, tuned: Tuned, progress: Progress, steps: int) -> dict[str, Any]:
        return {
            "steps": progress.step,
            "planned_steps": steps,
            "stopped_early": progress.stopped,
            "best": progress.best,
            "best_step": progress.best_step,
            "micro_batch": progress.micro_batch,
            "checkpointed_blocks": progress.checkpointed_blocks,
            "seconds_in_steps": round(progress.seconds, 2),
            "trainable_parameters": sum(p.numel() for p in tuned.attached.parameters().values()),
            "head_parameters": sum(p.numel() for p in tuned.heads.values()),
            "compute_dtype": str(tuned.model.base.dtype).removeprefix("torch."),
        }
