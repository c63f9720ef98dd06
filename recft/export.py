"""`export`: a tuned run as a servable artefact, certified in the engine that serves it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from recft import registry
from recft.data.store import Store
from recft.errors import ExportError, problem
from recft.exports import _certificate as certificate
from recft.exports._base import Export, Source
from recft.exports._certificate import Rows
from recft.metrics import _base as metrics
from recft.models.base import Base, base_hash
from recft.models.encoder import Encoder
from recft.models.text_model import Serving, remembering
from recft.models.weights import float32_base
from recft.recipe import Recipe
from recft.run import Listener, RunFolder, atomic_file, hash_file, read_json, silent, without_nan, write_json
from recft.schema import ModelSettings
from recft.training.asked import fitting_metrics
from recft.training.assemble import Tuned, check, load_adapter, open_adapter
from recft.training.exam import Exam, few_records
from recft.training.opened import exam_of, open_run
from recft.training.scoring import score_model
from recft.training.servings import read_servings

__all__ = ["DESCRIPTION", "ITEMS", "ROWS", "export"]

DESCRIPTION, ROWS, ITEMS = "recft-export.json", "certificate/rows.parquet", "items.parquet"
MOST_ITEMS = 1000
"""Items that a ranking certificate compares: all targets of its rows, and others of the catalogue."""

MOST_READERS, OTHER_ITEMS = 50, 20
"""Where an item is read together with its context: so many contexts, each with so many items besides its own."""

NOISE_CONTEXTS, NOISE_ITEMS = 64, 400
"""How many of the rows the k-bit noise is measured on: one of its passes takes each text alone."""

Onto = Literal["original", "dequantized", "auto"]


def export(
    run: Path | str,
    to: str,
    out: Path | str,
    onto: Onto = "auto",
    force: bool = False,
    task: str | None = None,
    listen: Listener = silent,
) -> dict[str, Any]:
    """What `recft-export.json` holds: source, serving settings, certificate.

    Args:
        run: a tuned run.
        to: the target's name.
        out: the folder to make; never overwritten without `force`.
        onto: the base weights under the adapter: as published, as the adapter saw them, or whichever scores better
            on the validation split.
        force: replace `out`.
        task: which of the run's tasks is served, where it has several.
        listen: hears of stages.

    Raises:
        ExportError: the target cannot carry this run, or the certificate fails: the folder is then left under a name
            that says so.
    """
    opened = open_run(Path(run))
    check(opened.recipe)
    recipe, store = opened.part(task)
    folder, out = opened.folder, Path(out)
    target = _target(recipe, folder, to)
    _claim(out, force)
    work = _Export(recipe, folder, store, to, target, listen)
    chosen, reason = work.choose(onto)
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        description = work.write(draft, chosen, reason)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)  # whole or not at all
        raise
    wrong = description["certificate"]["wrong"]
    final = out if not wrong else out.with_name(f"{out.name}.failed")
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    if wrong:
        rows = "\n".join(description["certificate"]["worst_rows"])
        raise ExportError(
            problem(
                str(final),
                f"the certificate failed: {'; '.join(wrong)}",
                "an export scores as the tuned model does",
                "see the rows below; recft-export.json holds all figures",
            )
            + f"\n{rows}"
        )
    return description


def _claim(out: Path, force: bool) -> None:
    """Nothing, where `out` may be made: it is free, or holds an export that may go.

    Raises:
        ExportError: something would be overwritten.
    """
    if not out.exists():
        return
    if not force:
        raise ExportError(
            problem(
                str(out),
                "exists already",
                "export never overwrites a folder unasked",
                "name another --out, or give --force",
            )
        )
    if not (out / DESCRIPTION).is_file() and (out.is_file() or any(out.iterdir())):
        raise ExportError(
            problem(
                str(out),
                f"holds no {DESCRIPTION}",
                "--force replaces an export, never other files",
                "name another --out",
            )
        )


def _target(recipe: Recipe, folder: RunFolder, to: str) -> Export:
    """The target, if it can carry this run.

    Raises:
        ExportError: it cannot; the message names those that can.
    """
    facts = check(recipe) | {"target": to}
    config, tensors = load_adapter(folder.adapter)
    target: Export = registry.load("recft.exports", to)
    reason = _why_not(target, recipe, facts)
    if reason is None and "plain_lora" in target.needs and _plain_lora(recipe, config, tensors) is None:
        reason = f"{recipe.method.name} with these settings is no plain LoRA", "choose another target"
    if reason is not None:
        others = [
            name
            for name in registry.names("recft.exports")
            if _why_not(registry.load("recft.exports", name), recipe, facts | {"target": name}) is None
        ]
        raise ExportError(
            problem(
                f"--to {to}",
                f"cannot carry this run ({recipe.method.name})",
                reason[0],
                f"{reason[1]}; targets that can carry it: {', '.join(others) or 'none'}",
            )
        )
    return target


def _why_not(target: Export, recipe: Recipe, facts: dict[str, object]) -> tuple[str, str] | None:
    method = registry.load("recft.methods", recipe.method.name)
    if "merged" in target.needs and not method.mergeable:
        return (
            f"{recipe.method.name} has no weights to merge into the base's",
            "choose a target that carries the adapter itself",
        )
    refusal = registry.refused(target.refusals, facts)
    return (refusal.reason, refusal.fix) if refusal else None


def _plain_lora(recipe: Recipe, config: dict[str, Any], tensors: dict[str, Any]) -> Any:
    method = registry.load("recft.methods", recipe.method.name)
    return method.plain_lora(config, tensors) if hasattr(method, "plain_lora") else None


@dataclass(frozen=True)
class _Export:
    """One export, from a checked target on."""

    recipe: Recipe
    folder: RunFolder
    store: Store
    to: str
    target: Export
    listen: Listener

    @property
    def model(self) -> ModelSettings:
        """The run's base with the compute dtype that tuning resolved."""
        dtype = read_json(self.folder.manifest)["compute_dtype"]
        return self.recipe.model.model_copy(update={"compute_dtype": dtype})

    def reference(self, onto: str) -> Tuned:
        """The tuned model over float32 weights."""
        base = self._float32_base(onto)
        return open_adapter(self.recipe, self.folder.adapter, torch.device("cpu"), base)

    def _float32_base(self, onto: str) -> Base:
        serving = read_servings(self.folder.root)[self.recipe.task.name]
        dtype = getattr(torch, self.model.compute_dtype)
        return float32_base(self.model, serving.carrier, dtype, onto, self.recipe.seed, serving.n_outputs)

    def choose(self, onto: Onto) -> tuple[str, str]:
        """`original` or `dequantized`, and why."""
        if onto != "auto":
            return onto, "as asked"
        if self.recipe.model.quantization == "none":
            return "original", "an unquantized base has its original weights only"
        if not self.target.carries_base:
            return "dequantized", "an adapter is served over the base it was tuned on"
        task = registry.load("recft.tasks", self.recipe.task.name)
        exam = exam_of(self.recipe, self.store, "valid", (task.monitor,))
        if not len(exam.records):
            return "dequantized", "no validation records to choose by: the weights that the adapter saw"
        scores = {}
        for choice in ("dequantized", "original"):
            self.listen("stage", {"name": f"scoring the adapter over the {choice} weights on validation"})
            tuned = self.reference(choice)
            scores[choice] = score_model(exam, Encoder(tuned.model, tuned.tokenizer)).values[task.monitor]
        metric = registry.load(metrics.PACKAGE, metrics.parse(task.monitor, task.output)[0])
        sign = 1 if metric.higher_is_better else -1
        best = "original" if sign * scores["original"] > sign * scores["dequantized"] else "dequantized"
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        return best, f"validation {task.monitor}: {shown}"

    def write(self, draft: Path, onto: str, reason: str) -> dict[str, Any]:
        """The artefact, its rows, its description; the description comes back."""
        self.listen("stage", {"name": f"writing {self.to} onto the {onto} weights"})
        reference = self.reference(onto)
        adapter_config, tensors = load_adapter(self.folder.adapter)
        source = Source(
            reference=reference.model.eval(),
            tokenizer=reference.tokenizer,
            merged=self._merger(onto, adapter_config, tensors),
            adapter=self.folder.adapter,
            adapter_config=adapter_config,
            adapter_tensors=tensors,
            plain_lora=lambda: _plain_lora(self.recipe, adapter_config, tensors),
            model=self.model,
            dtype=getattr(torch, self.recipe.export.dtype),
        )
        self.target.write(source, draft)
        _write_items(draft / ITEMS, self.store)
        self.listen("stage", {"name": "certifying in the serving engine"})
        serving = reference.model.serving
        found = self._certificate(draft, reference, serving)
        description = {
            "format": 1,
            "name": self.recipe.name,
            "target": self.to,
            "source_run": str(self.folder.root.resolve()),
            "task": self.recipe.task.model_dump(mode="json"),
            "base": {"model": self.recipe.model.model_dump(mode="json"), "hash": base_hash(self.recipe.model)},
            "method": self.recipe.method.model_dump(mode="json"),
            "table": self.store.table,
            "data": self.store.card["data_sha256"],
            "onto": {"weights": onto, "reason": reason},
            "serving": serving.to_json(),
            "fusion": self._fusion(),
            "certificate": found,
        }
        files = sorted(file for file in draft.rglob("*") if file.is_file())
        description["files"] = {str(file.relative_to(draft)): hash_file(file) for file in files}
        write_json(draft / DESCRIPTION, description)
        return description

    def _fusion(self) -> dict[str, Any] | None:
        """The weights of the sum with classic rows, as the last `eval` of the test split fitted them on validation."""
        path = self.folder.report("test")
        report = read_json(path) if path.is_file() else {}
        part = (report.get("tasks") or {}).get(self.recipe.task.name, report)
        return dict(part["fusion"]) if part.get("fusion") else None

    def _merger(self, onto: str, config: dict[str, Any], tensors: dict[str, Any]) -> Callable[[], Any] | None:
        """A function that merges the adapter into weights freshly read from disk, tensor by tensor in float32."""
        method = registry.load("recft.methods", self.recipe.method.name)
        if not method.mergeable:
            return None

        def merged() -> Any:
            base = self._float32_base(onto)
            changed = 0
            for name, module in base.model.named_modules():
                weight = getattr(module, "weight", None)
                if weight is None or weight.ndim != 2:
                    continue
                new = method.merge(config, tensors, name, weight.detach())
                changed += new is not weight and not torch.equal(new, weight)
                module.weight = torch.nn.Parameter(new, requires_grad=False)
            if not changed:
                raise ExportError(
                    problem(
                        "export",
                        "merging changed no weight",
                        "an adapter changes weights",
                        "tune again: the adapter is empty or of another base",
                    )
                )
            parameters = dict(base.model.named_parameters())
            for name in base.new_parameters:
                parameters[name].data = tensors[f"base_model.model.{name}"].float()
            base.model.tie_weights()
            return base.model

        return merged

    def _certificate(self, draft: Path, reference: Tuned, serving: Serving) -> dict[str, Any]:
        task = registry.load("recft.tasks", self.recipe.task.name)
        names = tuple(dict.fromkeys((*fitting_metrics(self.recipe), task.monitor)))
        exam, split = exam_of(self.recipe, self.store, "test", names), "test"
        if not len(exam.records):
            exam, split = exam_of(self.recipe, self.store, "valid", names), "valid"
        if not len(exam.records):
            exam, split = exam_of(self.recipe, self.store, "train", names), "train"
        small = _small(exam, self.recipe.export.rows)
        expected = remembering(Encoder(reference.model, reference.tokenizer))
        rows = _rows(small, expected, reference)
        rows.write(draft / ROWS)
        noise = self._noise(rows, serving)
        engine = self.target.open(draft, serving)
        found = certificate.certify(
            engine, rows, serving, reference.tokenizer, self.recipe.export.tolerances, noise["effect_kl"]
        )
        before = score_model(small, expected).values
        after = score_model(small, remembering(partial(certificate.served, engine, serving))).values
        found |= {"split": split, "metrics": {"reference": before, "served": after}, "metric": task.monitor}
        found["metric_change"] = after[task.monitor] - before[task.monitor]
        found |= {
            "k_bit": noise,
            "tolerances": self.recipe.export.tolerances.model_dump(),
            "effect_kl": noise["effect_kl"],
        }
        found["wrong"] = certificate.judge(
            found, self.recipe.export.tolerances, noise["effect_kl"], engine.dtype == "float32"
        )
        if noise["kl"] > noise["bound"]:
            found["wrong"].append(
                f"the model as evaluated is {noise['kl']:.2e} (KL) from its own float32 weights, "
                f"above {noise['bound']:.2e}"
            )
        found["verdict"] = "failed" if found["wrong"] else "passed"
        return dict(without_nan(found))

    def _noise(self, rows: Rows, serving: Serving) -> dict[str, Any]:
        """How far the model as it was evaluated is from its float32 weights, beside the adapter's own effect.

        The bound is the larger of 1% of that effect and three times what the batch size alone changes.
        """
        few = replace(rows, contexts=rows.contexts[:NOISE_CONTEXTS], items=rows.items[:NOISE_ITEMS])
        exact = self.reference("dequantized")
        tuned = open_adapter(self.recipe, self.folder.adapter)

        def scores(model: Tuned, chunk_tokens: int = 16384) -> np.ndarray:
            encoder = Encoder(model.model, model.tokenizer, chunk_tokens)
            return certificate.scores_by(few, encoder, serving.head)

        expected, evaluated, one_by_one = scores(exact), scores(tuned), scores(tuned, chunk_tokens=1)
        with tuned.attached.disabled():
            base = scores(tuned)
        kl = partial(certificate.kl_divergence, temperature=serving.temperature)
        effect, batch = kl(evaluated, base), kl(evaluated, one_by_one)
        return {
            "kl": kl(expected, evaluated),
            "largest_score_difference": float(np.abs(expected - evaluated).max()),
            "effect_kl": effect,
            "effect_largest_score_difference": float(np.abs(evaluated - base).max()),
            "batch_kl": batch,
            "bound": max(0.01 * effect, 3 * batch, 1e-9),
        }


def _small(exam: Exam, most: int) -> Exam:
    """The exam on so many records; who would read the whole catalogue with each is asked about a few other items."""
    small = few_records(exam, most)
    if exam.task.reads(exam.config) != "pairs" or exam.candidates == "judged":
        return small
    small = few_records(exam, min(most, MOST_READERS))
    records, draw = small.records, np.random.default_rng(0)
    parts = []
    for row in range(len(records)):
        own = records.items[records.offsets[row] : records.offsets[row + 1]]
        parts.append(np.concatenate([own, np.setdiff1d(draw.permutation(len(exam.items))[:OTHER_ITEMS], own)]))
    sizes = np.diff(records.offsets)
    grades = [
        np.concatenate([records.grades[records.offsets[row] : records.offsets[row + 1]], np.zeros(len(part) - size)])
        for row, (part, size) in enumerate(zip(parts, sizes, strict=True))
    ]
    asked = replace(
        records,
        offsets=np.cumsum([0, *map(len, parts)]).astype(np.int64),
        items=np.concatenate(parts).astype(np.int32),
        grades=np.concatenate(grades).astype(np.float32),
    )
    return replace(small, records=asked, candidates="judged")


def _rows(exam: Exam, encoder: Callable[[Any], np.ndarray], reference: Tuned) -> Rows:
    """The certificate's rows: contexts, and of rankings the items that matter to them and some others."""
    numbers = np.arange(len(exam.records))
    reads = exam.task.reads(exam.config)
    if reads != "towers":
        find = exam.task.pairs if reads == "pairs" else exam.task.contexts
        texts = reference.model.serving.cut(reference.tokenizer, find(exam.config, exam.records, numbers, exam.items))
        texts = list(dict.fromkeys(texts))[: len(exam.records)]
        return Rows(texts, [], encoder(texts), np.zeros((0, 0), np.float32))
    contexts = list(dict.fromkeys(exam.task.contexts(exam.config, exam.records, numbers, exam.items)))
    wanted = np.unique(exam.records.items)[:MOST_ITEMS]
    others = np.linspace(0, len(exam.items) - 1, max(0, min(MOST_ITEMS - len(wanted), len(exam.items)))).astype(int)
    chosen = np.unique(np.concatenate([wanted, others]))
    items = list(dict.fromkeys(exam.task.candidates(exam.config, [exam.items[item] for item in chosen])))
    return Rows(contexts, items, encoder(contexts), encoder(items))


def _write_items(path: Path, store: Store) -> None:
    """The catalogue, so that an export can rank it with nothing else."""
    with atomic_file(path) as draft:
        pl.DataFrame({"id": store.item_ids, "text": store.item_texts, "title": store.item_titles}).write_parquet(draft)
