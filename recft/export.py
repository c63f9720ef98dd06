"""`export`: a tuned run as a servable artefact, certified in the engine that serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recft import registry
from recft.data.store import Store
from recft.errors import ExportError, RecipeError, problem
from recft.exports._base import Catalogue, Engine, Export, Opening, Source
from recft.exports._rows import Rows
from recft.models.base import base_hash, tokenizer_of
from recft.models.licence import licence_of
from recft.models.merging import PROGRESS
from recft.models.text_model import TextModel
from recft.recipe import Recipe
from recft.reports.model_card import model_card
from recft.run import (
    Listener,
    RunFolder,
    atomic_file,
    hash_bytes,
    hash_file,
    hash_folder,
    read_json,
    silent,
    without_nan,
    write_json,
    write_text,
)
from recft.tasks._base import Text
from recft.training.asked import fitting_metrics
from recft.training.assemble import check, load_adapter
from recft.training.certifying import Asked, certify
from recft.training.distilling import distilled
from recft.training.draft import DESCRIPTION, MARKER, claim, drafting, named, place
from recft.training.exam import Exam
from recft.training.held_out import held_out
from recft.training.onto import Choice, choose
from recft.training.opened import exam_of, open_run
from recft.training.reference import k_bit_noise, merge_of, model_of, plain_lora_of, reference, tuned_rows
from recft.training.servings import read_servings

__all__ = ["CARD", "DESCRIPTION", "FORMAT", "ITEMS", "ROWS", "export"]

CARD = "MODEL_CARD.md"
ROWS, ITEMS = "certificate/rows.parquet", "items.parquet"
FORMAT = 2

Onto = Literal["original", "dequantized", "auto"]


def export(
    run: Path | str,
    to: str,
    out: Path | str,
    onto: Onto = "auto",
    force: bool = False,
    task: str | None = None,
    rows: bool = True,
    overrides: Sequence[str] = (),
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
        rows: whether the held-out rows and the catalogue travel with the export; without them `verify` needs the run,
            `recommend` the items.
        overrides: `export.key=value`, laid over the run's recipe.
        listen: hears of stages.

    Raises:
        ExportError: the target cannot carry this run, or the certificate fails: the folder is then left under a name
            that says so.
    """
    opened = open_run(Path(run))
    recipe, store = opened.part(task)
    recipe = _overridden(recipe, opened.folder, overrides)
    check(recipe)
    to, out = to.replace("_", "-"), named(Path(out))
    target, dtype = _target(recipe, opened.folder, to)
    claim(out, force)
    work = _Export(recipe, opened.folder, store, to, target, dtype, rows, listen)
    identity = hash_bytes(f"{to} {dtype} {hash_folder(opened.folder.adapter)} {recipe.to_yaml()}".encode())
    with drafting(out, identity) as draft:
        try:
            description = work.write(draft, work.choose(onto), out.name)
        except BaseException:
            if any(draft.rglob(PROGRESS)):
                listen("note", {"text": f"what is merged stays in {draft}: the same command goes on from there"})
            raise
        wrong = description["certificate"]["wrong"]
        final = out if not wrong else out.with_name(f"{out.name}.failed")
        claim(out, force)  # another export may have made it meanwhile
        place(draft, final)
    if wrong:
        worst = "\n".join(description["certificate"]["worst_rows"])
        raise ExportError(
            problem(
                str(final),
                f"the certificate failed: {'; '.join(wrong)}",
                "an export scores as the tuned model does",
                "see the rows below; recft-export.json holds all figures",
            )
            + f"\n{worst}"
        )
    return description


def _overridden(recipe: Recipe, folder: RunFolder, overrides: Sequence[str]) -> Recipe:
    """The recipe with other `export.*` settings; what was tuned is what was tuned."""
    for override in overrides:
        if not override.strip().startswith("export."):
            raise RecipeError(
                problem(
                    "--set",
                    f"'{override}'",
                    "an export takes export.* alone: all else was settled by tuning",
                    "for example --set export.dtype=bfloat16",
                )
            )
    if not overrides:
        return recipe
    return recipe.model_copy(update={"export": Recipe.load(folder.recipe, overrides).export})


def _target(recipe: Recipe, folder: RunFolder, to: str) -> tuple[Export, str]:
    """The target and the dtype that it writes, if it can carry this run.

    Raises:
        ExportError: it cannot; the message names those that can.
    """
    facts = check(recipe)
    config, tensors = load_adapter(folder.adapter)
    plain = plain_lora_of(recipe, config, tensors) is not None
    target: Export = registry.load("recft.exports", to)
    reason = _why_not(target, recipe, facts | {"target": to}, plain)
    if reason is not None:
        others = [
            name
            for name in registry.names("recft.exports")
            if _why_not(registry.load("recft.exports", name), recipe, facts | {"target": name}, plain) is None
        ]
        raise ExportError(
            problem(
                f"--to {to}",
                f"cannot carry this run ({recipe.method.name})",
                reason[0],
                f"{reason[1]}; targets that can carry it: {', '.join(others) or 'none'}",
            )
        )
    dtype = target.dtypes[0] if recipe.export.dtype == "auto" else recipe.export.dtype
    if dtype not in target.dtypes:
        raise ExportError(
            problem("export.dtype", dtype, f"{to} is written in {', '.join(target.dtypes)}", "choose one of these")
        )
    return target, dtype


def _why_not(target: Export, recipe: Recipe, facts: dict[str, object], plain: bool) -> tuple[str, str] | None:
    """The reason why a target cannot carry a run, and what to do; None where it can."""
    method = registry.load("recft.methods", recipe.method.name)
    if "merge" in target.needs and not method.mergeable:
        return (
            f"{recipe.method.name} has no weights to merge into the base's",
            "choose a target that carries the adapter itself",
        )
    if "plain_lora" in target.needs and not plain:
        return f"{recipe.method.name} with these settings is no plain LoRA", "choose another target"
    refusal = registry.refused(target.refusals, facts)
    return (refusal.reason, refusal.fix) if refusal else None


@dataclass(frozen=True)
class _Export:
    """One export, from a checked target on."""

    recipe: Recipe
    folder: RunFolder
    store: Store
    to: str
    target: Export
    dtype: str
    rows: bool
    listen: Listener

    def choose(self, onto: Onto) -> Choice:
        """The base weights under the adapter."""
        return choose(self.recipe, self.folder, self.store, self.target, self.dtype, onto, self.listen)

    def write(self, draft: Path, onto: Choice, name: str) -> dict[str, Any]:
        """The artefact, its rows, its card and its description; the description comes back."""
        description = self._description(onto)
        self._check_base(description["base"]["hash"])
        for serve in self.target.serve(description):
            if serve.refused:
                self.listen("note", {"text": f"{serve.engine} will not take this: {serve.refused}"})
        self.listen("stage", {"name": "scoring held-out rows with the tuned model"})
        split, rows = self._held_out(onto)
        noise = k_bit_noise(self.recipe, self.folder, rows)
        self.listen("stage", {"name": f"writing {self.to} onto the {onto.weights} weights"})
        source = self._source(onto)
        self.target.write(source, draft)
        self.listen("stage", {"name": "certifying in the serving engine"})
        # An adapter is run over its base: whoever trusted the base's code to tune it trusts it here.
        trust = self.recipe.export.trust_remote_code or self.recipe.model.trust_remote_code
        opening = Opening(source.serving, trust, self.recipe.export.tolerances)
        found = self._certificate(self.target.open(draft, opening), rows, noise) | {"split": split}
        description["certificate"] = dict(without_nan(found))
        self._finish(draft, rows, description, name)
        return description

    def _check_base(self, found: str) -> None:
        """Nothing, where the base is the one that was tuned: over another, even a certificate compares like with like.

        Raises:
            ExportError: its weights have changed since.
        """
        expected = read_json(self.folder.manifest).get("hashes", {}).get("base", found)
        if found != expected:
            raise ExportError(
                problem(
                    f"model.base: {self.recipe.model.base}",
                    f"its weights are {found[:64]}",
                    f"{expected[:64]}, as they were when this run was tuned: an adapter belongs to its base",
                    "put the base back, pin model.revision, or tune again",
                )
            )

    def _source(self, onto: Choice) -> Source:
        recipe, folder = self.recipe, self.folder
        config, tensors = load_adapter(folder.adapter)
        task = registry.load("recft.tasks", recipe.task.name)
        towers = task.reads(recipe.task) == "towers"
        texts = task.candidates(recipe.task, self.store.item_texts) if towers else []

        def tuned() -> TextModel:
            return reference(recipe, folder, onto.weights).model.eval()

        source = Source(
            name=recipe.name,
            serving=read_servings(folder.root)[recipe.task.name],
            tokenizer=tokenizer_of(recipe.model),
            tuned=tuned,
            merge=merge_of(recipe, folder, onto.weights),
            adapter_config=config,
            adapter_tensors=tensors,
            plain_lora=plain_lora_of(recipe, config, tensors),
            model=model_of(recipe, folder),
            dtype=self.dtype,
            settings=recipe.target_settings(self.to),
            catalogue=Catalogue(self.store.item_ids, texts),
            prompts=_prompts(recipe),
            texts=partial(_training_texts, exam_of(recipe, self.store, "train")),
            listen=self.listen,
        )
        return replace(source, fit=partial(distilled, source, onto.weights))

    def _held_out(self, onto: Choice) -> tuple[str, Rows]:
        """The newest split that has records, and rows of it with the tuned model's outputs."""
        names = self._metrics()
        exams = ((split, exam_of(self.recipe, self.store, split, names)) for split in ("test", "valid", "train"))
        split, exam = next((split, exam) for split, exam in exams if len(exam.records))
        return split, tuned_rows(self.recipe, self.folder, onto.weights, held_out(exam, self.recipe.export.rows))

    def _metrics(self) -> tuple[str, ...]:
        monitor = registry.load("recft.tasks", self.recipe.task.name).monitor
        return tuple(dict.fromkeys((*fitting_metrics(self.recipe), monitor)))

    def _certificate(self, engine: Engine, rows: Rows, noise: dict[str, Any]) -> dict[str, Any]:
        asked = Asked(
            serving=read_servings(self.folder.root)[self.recipe.task.name],
            task=self.recipe.task,
            metrics=self._metrics(),
            metric=registry.load("recft.tasks", self.recipe.task.name).monitor,
            gain=self.recipe.eval.gain,
            tolerances=self.recipe.export.tolerances,
            effect_kl=noise["effect_kl"],
            distilled=engine.distilled,
        )
        found = certify(engine, rows, asked) | {"k_bit": noise, "asked": asked.to_json()}
        if not noise["kl"] <= noise["bound"]:
            found["wrong"].append(
                f"the model as evaluated is {noise['kl']:.2e} (KL) from its own float32 weights, "
                f"above {noise['bound']:.2e}"
            )
            found["verdict"] = "failed"
        return found

    def _description(self, onto: Choice) -> dict[str, Any]:
        """What is known before the artefact is written."""
        from recft import __version__

        return {
            "format": FORMAT,
            "recft": __version__,
            "name": self.recipe.name,
            "target": self.to,
            "dtype": self.dtype,
            "source_run": self.folder.root.resolve().name,
            "task": self.recipe.task.model_dump(mode="json"),
            "base": {"model": self.recipe.model.model_dump(mode="json"), "hash": base_hash(self.recipe.model)},
            "method": self.recipe.method.model_dump(mode="json"),
            "adapter_sha256": hash_file(self.folder.adapter / "adapter_model.safetensors"),
            "recipe_sha256": hash_bytes(self.recipe.to_yaml().encode()),
            "table": self.store.table,
            "data": self.store.card["data_sha256"],
            "onto": onto.to_json(),
            "serving": read_servings(self.folder.root)[self.recipe.task.name].to_json(),
            "fusion": self._report().get("fusion"),
        }

    def _report(self) -> dict[str, Any]:
        """This task's part of the last `eval` of the test split; nothing where there was none."""
        path = self.folder.report("test")
        report = read_json(path) if path.is_file() else {}
        return dict((report.get("tasks") or {}).get(self.recipe.task.name, report))

    def _finish(self, draft: Path, rows: Rows, description: dict[str, Any], name: str) -> None:
        """What lies beside the artefact: rows, items, card, and the SHA-256 of every file."""
        for path in draft.rglob(PROGRESS):
            path.unlink()
        if self.rows:
            rows.write(draft / ROWS)
            _write_items(draft / ITEMS, self.store)
        licences = {"base": licence_of(self.recipe.model), "data": self.recipe.export.licence}
        write_text(
            draft / CARD,
            model_card(
                description,
                self._report() or None,
                self.store.card,
                self.recipe.to_yaml(),
                {key: value for key, value in licences.items() if value},
                [replace(serve, lines=serve.lines.replace("FOLDER", name)) for serve in self.target.serve(description)],
            ),
        )
        files = sorted(file for file in draft.rglob("*") if file.is_file() and file.name != MARKER)
        description["files"] = {str(file.relative_to(draft)): hash_file(file) for file in files}
        write_json(draft / DESCRIPTION, description)


def _prompts(recipe: Recipe) -> dict[str, str]:
    """What stands before a query and before an item, where the task says so."""
    found = {"query": getattr(recipe.task, "query_prompt", ""), "document": getattr(recipe.task, "item_prompt", "")}
    return {name: prompt for name, prompt in found.items() if prompt}


def _training_texts(exam: Exam, most: int) -> list[Text]:
    """So many training texts as the model reads them, contexts and items alike."""
    task, config, records, items = exam.task, exam.config, exam.records, exam.items
    rows = np.linspace(0, len(records) - 1, min(most, len(records))).astype(int) if len(records) else np.zeros(0, int)
    if task.reads(config) == "pairs":
        return list(dict.fromkeys(task.pairs(config, records, rows, items)))[:most]
    found = task.contexts(config, records, rows, items)
    if task.reads(config) == "towers":
        chosen = np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)
        found = [*found, *task.candidates(config, [items[item] for item in chosen])]
    return list(dict.fromkeys(found))


def _write_items(path: Path, store: Store) -> None:
    """The catalogue, so that an export can rank it with nothing else."""
    with atomic_file(path) as draft:
        pl.DataFrame({"id": store.item_ids, "text": store.item_texts, "title": store.item_titles}).write_parquet(draft)
