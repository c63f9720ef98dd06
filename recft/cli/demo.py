"""`recft demo`: the whole job, on a shop that it makes itself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command, resumable
from recft.cli._options import JsonFile, Quiet
from recft.cli._progress import duration, listening
from recft.cli._shell import deliver, say
from recft.cli.eval import report_sheets
from recft.cli.export import certificate_sheets
from recft.cli.tune import resume_hint
from recft.errors import DataError, problem
from recft.reports.tables import ranking
from recft.run import Listener, RunFolder, write_text

__all__ = ["MEMBER"]

_MARK = "# Made by `recft demo`."

_RECIPE = """\
{mark} It can be edited and run again: recft tune {place} --force
name: demo
seed: {seed}
data:
  items:   {{path: {items}, id: id, text: [supplier, product_type, title], title: title}}
  queries: {{path: {queries}, query: query, item: docid, grade: rating}}
  split:   {{by: query, folds: 5, fold: 0}}
model: {{base: minilm, quantization: nf4}}
{settings}"""

_SHOP_SETTINGS = """\
task:   {name: retrieval, judged_per_query: 8}
method: {name: lora, rank: 16}
tune:
  epochs: 4
  learning_rate: 2e-3
  batch_size: 32
  max_tokens: 48
  early_stopping: {metric: ndcg@10, patience: 3}
eval:   {metrics: [ndcg@10, recall@100], baselines: [bm25, popularity]}
"""

# Few queries, and candidates that were chosen well: stay near the base, learn from each query's own judgements.
_CHORUS_SETTINGS = """\
task:   {name: retrieval, temperature: 0.1, in_batch: 0, anchor: 1.0, judged_per_query: 16}
method: {name: lora, rank: 16, alpha: 16, layers: last 2}
tune:
  epochs: 4
  learning_rate: 1e-3
  batch_size: 16
  max_tokens: 64
  schedule: constant
  betas: [0.9, 0.99]
  weight_decay: 0
  average: 0.95
  interpolate: 0.5
eval:   {metrics: [ndcg@10], baselines: [bm25, popularity], candidates: judged}
"""


@dataclass(frozen=True)
class _Material:
    """What the demo works on: the tables, and what suits them."""

    items: Path
    queries: Path
    settings: str
    query: str


def run(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("recft-demo"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="A folder with the Chorus files, in place of the made shop."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the shop and of tuning.")] = 0,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """The whole job on a small made shop: minutes, and no network."""
    job = _Demo(out, seed, quiet)
    job.claim()
    report, export, places = job.run(_chorus(data) if data else job.make_shop())
    result = {
        "folder": str(out),
        "seconds": {name: round(seconds, 1) for name, seconds in job.seconds.items()},
        "report": report,
        "export": export,
        "recommended": {"query": job.query, "places": places},
        "files": {"recipe": str(job.recipe), "curves": str(job.run_folder.curves), "rows": str(job.rows)},
    }
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in job.seconds.items())
    deliver(
        result,
        json,
        *report_sheets(report),
        *certificate_sheets(export),
        ranking(places, title=f"recommended for: {job.query}"),
        f"report: {job.run_folder.page}\ncurves: {job.run_folder.curves}\nrows:   {job.rows}",
        f"recipe: {job.recipe}\nmodel:  {job.export_folder}",
        f"time:   {duration(sum(job.seconds.values()))} ({spent})",
    )


@dataclass
class _Demo:
    """The demo's folders, and what it has done so far."""

    out: Path
    seed: int
    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)
    query: str = ""
    again: bool = False

    @property
    def recipe(self) -> Path:
        """The recipe that the demo writes."""
        return self.out / "recipe.yaml"

    @property
    def run_folder(self) -> RunFolder:
        """The run."""
        return RunFolder(self.out / "run")

    @property
    def export_folder(self) -> Path:
        """The exported model."""
        return self.out / "export"

    @property
    def rows(self) -> Path:
        """The table as a picture."""
        return self.out / "rows.png"

    def claim(self) -> None:
        """Makes sure that the folder is new or an earlier demo's.

        Raises:
            DataError: something else is in it.
        """
        self.again = self.recipe.is_file() and self.recipe.read_text(encoding="utf-8").startswith(_MARK)
        if self.again or not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return
        raise DataError(
            problem(
                "--out",
                f"{self.out} holds something else",
                "the demo writes into a folder of its own",
                "name another folder",
            )
        )

    def make_shop(self) -> _Material:
        """The shop, made."""
        from recft.data.shop import make_shop

        with self._timed("shop"):
            shop = make_shop(self.out / "shop", seed=self.seed)
        self._say(
            f"made a shop: {shop.items} products, {shop.queries} judged queries, {shop.orders:,} orders: {shop.folder}"
        )
        return _Material(
            items=Path("shop/products.jsonl.gz"),
            queries=Path("shop/ratings.csv"),
            settings=_SHOP_SETTINGS,
            query="steel water bottle for a camper",
        )

    def run(self, material: _Material) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """The report, the export's description and one ranked list."""
        import recft
        from recft.reports.plots import bars

        write_text(self.recipe, self._recipe_text(material))
        self.query = material.query
        folder, force = self.run_folder.root, ["--force"] if self.again else []
        with self._step("prepare", self.recipe, "--out", self.run_folder.data, *force) as listen:
            recft.prepare(recft.Recipe.load(self.recipe), out=self.run_folder.data, force=self.again, listen=listen)
        hint = partial(resume_hint, self.run_folder, self.recipe, folder)
        with self._step("tune", self.recipe, "--run", folder, *force) as listen, resumable(hint):
            recft.tune(recft.Recipe.load(self.recipe), run=folder, force=self.again, listen=listen)
        with self._step("eval", folder) as listen:
            report = recft.evaluate(folder, listen=listen)
        bars(report, "ndcg@10", self.rows)
        with self._step("export", folder, "--to", "merged", "--out", self.export_folder, *force) as listen:
            export = recft.export(folder, to="merged", out=self.export_folder, force=self.again, listen=listen)
        with self._step("recommend", self.export_folder, "--query", material.query, "--top", 5) as listen:
            places = recft.recommend(self.export_folder, query=material.query, top=5, listen=listen)
        return report, export, places

    def _recipe_text(self, material: _Material) -> str:
        return _RECIPE.format(
            mark=_MARK,
            place=self.recipe,
            seed=self.seed,
            items=_quoted(material.items),
            queries=_quoted(material.queries),
            settings=material.settings,
        )

    @contextmanager
    def _step(self, command: str, *words: object) -> Iterator[Listener]:
        """One verb: the command line that does the same, then its progress."""
        self._say(f"\n$ recft {command} {_line(words)}")
        with self._timed(command), listening(self.quiet) as listen:
            yield listen

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(text)


def _line(words: Sequence[object]) -> str:
    return shlex.join(str(word) for word in words)


def _quoted(path: Path) -> str:
    """A path as a YAML string."""
    return "'" + str(path).replace("'", "''") + "'"


def _chorus(data: Path) -> _Material:
    """The Chorus files in a folder.

    Raises:
        DataError: they are not there.
    """
    items, queries = data / "products_compact.jsonl.gz", data / "Broad_Query_Set_rated.csv"
    missing = [file.name for file in (items, queries) if not file.is_file()]
    if missing:
        raise DataError(
            problem(
                "--data",
                f"{data} has no {' and no '.join(missing)}",
                "the Chorus files as they are published",
                "check the folder",
            )
        )
    return _Material(items.resolve(), queries.resolve(), _CHORUS_SETTINGS, query="wireless keyboard")


MEMBER = Command(run, "recft demo --out recft-demo", place=10)
