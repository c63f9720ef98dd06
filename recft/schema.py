"""The groups of settings that a recipe is made of.

Settings of a task or a method belong to the member's own file (its `Config`), which adds to the groups here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "K_BIT",
    "DataSettings",
    "EvalSettings",
    "ExportSettings",
    "LabelSettings",
    "MethodSettings",
    "ModelSettings",
    "Output",
    "Settings",
    "TaskSettings",
    "TuneSettings",
]

K_BIT = ("int8", "nf4", "fp4")
"""Ways of writing a weight in fewer than 16 bits that bitsandbytes has."""

Output = Literal["ranking", "labels", "values", "classes", "likelihood"]
"""What a task's scores are: an order of candidates, a probability of yes for each pair, a number for each pair, a
probability for each class, or how likely each reply is."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
GradeMap = Annotated[
    dict[str, Annotated[float, Field(ge=0)]] | None,
    Field(min_length=1, description="grades written as words: {exact: 3, substitute: 2, irrelevant: 0}"),
]

# The keys of a table that name a file.
_FILES = ("path", "valid", "test")


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskSettings(Settings):
    """What every task can be told; a task's own `Config` adds to it."""

    name: str
    weight: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="in a run of several tasks, its share of the steps"
    )


class MethodSettings(Settings):
    """What every tuning method can be told; a method's own `Config` adds to it."""

    name: str
    layers: Literal["all"] | str | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default="all", description="which layers are touched: all, `last N`, or a list of numbers from 0"
    )


class ItemsTable(Settings):
    """The catalogue: one row an item."""

    path: str
    id: str
    text: tuple[str, ...] = Field(min_length=1, description="columns that make an item's text, in order")
    title: str | None = Field(default=None, description="the column shown to people; the first text column if absent")
    attributes: tuple[str, ...] = Field(default=(), description="columns added to the text as `name: value`")
    columns: tuple[str, ...] = Field(default=(), description="columns kept for slices of the report")
    separator: str | None = None


class TriplesTable(Settings):
    """A knowledge graph about the items, added to their text as `relation: tail`: heads are item ids."""

    path: str
    head: str
    relation: str
    tail: str
    hops: Annotated[int, Field(ge=1, le=3)] = Field(
        default=1, description="how far from the item: 2 follows tails that are heads again"
    )
    max_words: Positive = Field(default=32, description="whole triples up to so many words an item, nearest first")
    separator: str | None = None


class ReviewsTable(Settings):
    """What people wrote about the items, added to their text."""

    path: str
    item: str
    text: str
    time: str | None = Field(default=None, description="newest first; by time, none from after training")
    time_format: str = Field(default="auto", description="auto, seconds, milliseconds, iso, or a strftime pattern")
    per_item: Positive = Field(default=3, description="so many reviews an item, at most")
    max_words: Positive = Field(default=64, description="so many words of reviews an item, at most")
    separator: str | None = None


class UsersTable(Settings):
    """Profiles of the users of data.interactions."""

    path: str
    id: str
    text: tuple[str, ...] = Field(default=(), description="columns that make a user's text, in order")
    columns: tuple[str, ...] = Field(default=(), description="columns kept for slices of the report")
    separator: str | None = None


class InteractionsTable(Settings):
    """The interaction log: one row an event."""

    path: str
    user: str
    item: str
    time: str
    rating: str | None = None
    event: str | None = None
    keep_events: tuple[str, ...] | None = None
    time_format: str = Field(default="auto", description="auto, seconds, milliseconds, iso, or a strftime pattern")
    time_range: tuple[str, str] | None = Field(default=None, description="first and last time that can be true")
    rating_range: tuple[float, float] | None = None
    columns: tuple[str, ...] = Field(
        default=(), description="columns kept for slices of the report: the first target's value is the record's"
    )
    separator: str | None = None


class QueriesTable(Settings):
    """Queries; with `item` and `grade` one row a judgement, otherwise joined with `grades` by `id`."""

    path: str
    query: str
    id: str | None = None
    item: str | None = None
    grade: str | None = None
    grade_map: GradeMap = None
    grade_range: tuple[float, float] | None = None
    columns: tuple[str, ...] = Field(
        default=(), description="columns kept for slices of the report: a query's first row counts"
    )
    separator: str | None = None


class GradesTable(Settings):
    """Judgements, where they stand in a table of their own."""

    path: str
    query: str
    item: str
    grade: str
    grade_map: GradeMap = None
    grade_range: tuple[float, float] | None = None
    separator: str | None = None


class TextsTable(Settings):
    """Texts with a label, a reply, a preferred reply, or whole conversations: one row an example."""

    path: str
    text: tuple[str, ...] = Field(default=(), description="columns that make the text, in order")
    messages: str | None = Field(default=None, description="a column of conversations, [{role, content}, ...], instead")
    turns: Literal["last", "all"] = Field(
        default="last", description="of a conversation: its last answer is a record, or each of its answers"
    )
    label: str | None = Field(default=None, description="the column of the text's class")
    reply: str | None = Field(default=None, description="the column of the right answer")
    chosen: str | None = Field(default=None, description="the column of the preferred answer")
    rejected: str | tuple[str, ...] | None = Field(
        default=None, description="columns of worse answers; a JSON list in one column is several"
    )
    group: str | None = Field(
        default=None, description="rows of one group stay together: the split's unit and the bootstrap's cluster"
    )
    columns: tuple[str, ...] = Field(default=(), description="columns kept for slices of the report")
    valid: str | None = Field(default=None, description="a file of its own for the split, with the same columns")
    test: str | None = Field(default=None, description="a file of its own for the split, with the same columns")
    separator: str | None = None


class SplitSettings(Settings):
    """How records are divided into train, valid and test."""

    by: Literal["time", "leave_one_out", "query", "user", "cold_items", "file"] | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    seed: int = Field(default=0, description="of the shuffle; the recipe's seed does not move the split")
    valid: Share = Field(default=0.1, description="share held out for choosing; by time, of the span before test")
    test: Share = Field(default=0.1, description="share held out for reporting, where there are no folds")


class LabelSettings(Settings):
    """Where yes and no come from in a pointwise task."""

    at_least: float | None = Field(default=None, description="a rating of at least this is yes, any other is no")
    stars: bool = Field(default=False, description="the rating itself; what task rating predicts, and sets by itself")
    negatives: Positive | None = Field(
        default=None, description="for each bought item, so many drawn by popularity from what was not bought by then"
    )


class DataSettings(Settings):
    """The tables, the checks and the split."""

    items: ItemsTable | None = None
    interactions: InteractionsTable | None = None
    queries: QueriesTable | None = None
    grades: GradesTable | None = None
    texts: TextsTable | None = None
    triples: TriplesTable | None = None
    reviews: ReviewsTable | None = None
    users: UsersTable | None = None
    split: SplitSettings = SplitSettings()
    labels: LabelSettings = LabelSettings()
    on_error: Literal["stop", "quarantine"] = "stop"
    on_missing_text: Literal["stop", "skip"] = "stop"
    on_duplicate: Literal["first", "stop"] = Field(
        default="first", description="repeated judgements of one query and item: keep the first, or stop"
    )

    def files(self) -> dict[str, str]:
        """Every file that is read, by its key below `data`: `items.path`, `texts.valid`."""
        found: dict[str, str] = {}
        for table in type(self).model_fields:
            for name in _FILES:
                path = getattr(getattr(self, table), name, None)
                if isinstance(path, str):
                    found[f"{table}.{name}"] = path
        return found

    def under(self, folder: Path) -> Self:
        """The same settings with every file's path made absolute, relative ones from `folder`."""
        tables: dict[str, BaseModel] = {}
        for key, path in self.files().items():
            table, name = key.split(".")
            group = tables.get(table, getattr(self, table))
            tables[table] = group.model_copy(update={name: str((folder / path).resolve())})
        return self.model_copy(update=tables)


class ModelSettings(Settings):
    """The pretrained base and how it is loaded."""

    base: str = "minilm"
    revision: str | None = None
    quantization: Literal["none", "int8", "nf4", "fp4"] = "none"
    double_quantization: bool = False
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = Field(
        default="auto",
        description="auto: recft's own in 16 bits on a CPU, else sdpa; flex_attention leaves out what no token of a "
        "packed row sees, on an NVIDIA GPU (elsewhere it is auto)",
    )
    trust_remote_code: bool = False


class EarlyStopping(Settings):
    """When to stop, and which step is the best."""

    metric: str | None = Field(default=None, description="the task's own where absent")
    patience: Positive | None = Field(default=None, description="evaluations without a better score; none: never stop")


class TuneSettings(Settings):
    """The optimization."""

    epochs: Annotated[float, Field(gt=0)] = 3
    max_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    batch_size: Positive = Field(default=32, description="examples an optimizer step, over all processes")
    micro_batch_size: Literal["auto"] | Positive = Field(default="auto", description="texts a forward pass")
    max_tokens: Annotated[int, Field(ge=8)] = 128
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.999)
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    dropout: Share = 0.0
    average: Share = Field(default=0.0, description="decay of a running average of the adapter, served in its place")
    interpolate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="how far the served adapter goes from its start to where tuning has brought it"
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        default="auto",
        description="compute layers again in the backward pass instead of keeping them; auto: as many as memory needs "
        "where a single text does not fit",
    )
    compile: bool = Field(
        default=False,
        description="compile the base's blocks (torch.compile): takes minutes before the first step; for long runs of "
        "a causal base that is not quantized",
    )
    frozen_cache_gb: Annotated[float, Field(ge=0)] = Field(
        default=4.0,
        description="outputs of layers below method.layers are kept on disk while tuning, up to so many GB, where "
        "texts are seen more than once and a tenth of the time or more is saved; 0: never",
    )
    calibration: Literal["temperature", "isotonic", "none"] = Field(
        default="temperature", description="of probabilities, fitted on validation (50 pairs at least) after tuning"
    )
    augment: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={}, description="{typos: 0.1}: spoil queries, histories and texts of training, each with this chance"
    )
    early_stopping: EarlyStopping = EarlyStopping()
    eval_every_steps: Positive | None = Field(default=None, description="once an epoch where absent")
    eval_records: Positive | None = Field(
        default=None, description="validate on so many records, spread over the split; all where absent"
    )
    checkpoint_every_steps: Positive = 200
    log_every_steps: Positive = 10
    start_from: str | None = Field(default=None, description="a run whose adapter is tuned on")


class EvalSettings(Settings):
    """What is measured, against what."""

    metrics: tuple[str, ...] | None = Field(default=None, description="the task's own where absent")
    baselines: tuple[str, ...] | None = Field(
        default=None, description="classic rows; absent: all quick ones that make sense, []: none"
    )
    fuse: bool = Field(
        default=True, description="add the model's and the classic rows' weighted sum, with and without the model"
    )
    beside: tuple[str, ...] = Field(
        default=(), description="other runs over the same data whose models join the table and the sum"
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description="item_popularity, history_length, cold_item, cold_user, repeat, or a column that prepare kept",
    )
    robustness: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={}, description="{typos: 0.1}: score again with this share of a text's words spoilt"
    )
    synonyms: str | None = Field(default=None, description="a file of words that may stand for each other")
    candidates: Annotated[str, Field(pattern=r"^(all|judged|sampled [1-9]\d*)$")] | None = Field(
        default=None,
        description="rank the catalogue (all), judged items only (judged), or so many random ones (sampled 100); "
        "judged where a task reads query and product together",
    )
    decoding: Annotated[str, Field(pattern=r"^(exact|(beam|free) [1-9]\d*)$")] = Field(
        default="exact",
        description="of likelihoods: score every item (exact), write items by a search of so many beams that the "
        "catalogue holds to itself (beam 20), or freely (free 20), where an output may be no item",
    )
    gain: Literal["linear", "exponential"] = Field(default="linear", description="of a grade g: g, or 2^g - 1")
    records: Positive | None = Field(
        default=None, description="score so many records, spread over the split, and say so; all where absent"
    )
    mask_history: bool = Field(default=False, description="items of the history are neither candidates nor targets")
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    batch_tokens: Annotated[int, Field(ge=64)] = 16384


class Tolerances(Settings):
    """How far an export may be from the tuned model."""

    score: Annotated[float, Field(gt=0)] = 1e-4
    top_k_agreement: Annotated[float, Field(ge=0, le=1)] = 0.99
    metric: Annotated[float, Field(gt=0)] = 1e-3
    effect: Annotated[float, Field(gt=0)] = Field(
        default=0.01, description="in 16 bits: KL, as a share of what the adapter itself changes"
    )
    quantized_metric: Annotated[float, Field(gt=0)] = Field(
        default=1e-2, description="in 8 or 4 bits, in place of metric; scores and KL are told, not judged"
    )
    distilled: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="of distil: KL, as a share of what the adapter itself changes"
    )
    recall: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="of index: recall@100 of the approximate search against the exact one"
    )


class ExportSettings(Settings):
    """How an export is certified and written."""

    tolerances: Tolerances = Tolerances()
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4", "fp4"] = Field(
        default="auto", description="of the weights that are written; auto: the target's own"
    )
    rows: Annotated[int, Field(ge=1, le=500)] = Field(
        default=500, description="held-out inputs that are compared and travel with the export"
    )
    licence: str | None = Field(default=None, description="of your data, for the model card")
    trust_remote_code: bool = Field(default=False, description="of code: run the model code that the export holds")
    targets: dict[str, dict[str, Any]] = Field(
        default={}, description="{index: {…}}: settings of a target; `recft exports` names them"
    )
