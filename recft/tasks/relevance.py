"""Query and product read together: how well does this product answer this query?

One text a pair: on an encoder its two segments go through a new head (a cross-encoder), on a causal base the score
is read from the answer tokens after a prompt. With s the score and g the grade of a query's judged products:

    listwise   -sum_j g_j / (sum of g) · log softmax(s)_j                        ListNet (Cao et al. 2007)
    pairwise   mean of log(1 + e^(s_j - s_i)) over g_i > g_j, weighted g_i - g_j  RankNet (Burges et al. 2005)
    pointwise  cross-entropy of sigmoid(s) with g / (highest grade)
    classes    cross-entropy over the levels `grades`; s is the expected grade

The first two are means over queries, the others over pairs. A product's text is long and a query's short: the product
is the body, which a cut shortens, and query and question are the tail. Encoders pretrained for search have met the
query first; `query_first` gives them their order, and the product, then the tail, three quarters of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from recft.errors import DataError, problem
from recft.registry import Refusal
from recft.schema import TaskSettings
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, drawn, own_pairs, softmax

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]

MOST_CHARACTERS = 20_000
"""Of a product's text: more than is ever left of it, and a text of a megabyte takes a second to tokenize."""


class RelevanceSettings(TaskSettings):
    """Settings of `task: relevance`."""

    name: Literal["relevance"] = "relevance"
    loss: Literal["pointwise", "classes", "pairwise", "listwise"] = Field(
        default="listwise", description="a grade, a class, two products or all judged products of a query at a time"
    )
    grades: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        default=None, validate_default=True, description="all grades that there are, worst first: of loss classes"
    )
    judged_per_query: Annotated[int, Field(ge=2)] = Field(
        default=32, description="at most so many judged products of a query are drawn for a batch"
    )
    query_first: bool = Field(
        default=False, description="an encoder reads the query before the product, as bases pretrained for search do"
    )
    before: str = Field(default="Product: ", description="stands before the product")
    between: str = Field(default="\nQuery: ", description="stands before the query")
    after: str = Field(
        default="\nIs the product what the query asks for? Answer:", description="stands after the query"
    )
    answers: tuple[str, ...] = Field(
        default=(),
        validate_default=True,
        description="what a causal base is asked to answer; where empty: yes and no, or of loss classes the grades",
    )

    @field_validator("grades")
    @classmethod
    def _levels(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if value is None and info.data.get("loss") == "classes":
            raise ValueError("loss classes needs all grades that there are, such as [0, 1, 2, 3]")
        if value is not None and (len(value) < 2 or list(value) != sorted(set(value))):
            raise ValueError("two grades or more, worst first, each once")
        return value

    @field_validator("answers")
    @classmethod
    def _one_each(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        levels = info.data.get("grades") if info.data.get("loss") == "classes" else None
        wanted = tuple(f"{level:g}" for level in levels) if levels else (" yes", " no")
        if value and len(value) != len(wanted):
            raise ValueError(f"{len(wanted)} answers, one for each of {', '.join(word.strip() for word in wanted)}")
        return value or wanted


class Relevance:
    """The task's object; see the module."""

    Config = RelevanceSettings
    summary = "query and product read together: graded relevance"
    tables: tuple[Table, ...] = ("queries",)
    labelled = False
    output: Literal["ranking"] = "ranking"
    metrics = ("ndcg@10", "mrr@10", "map@10")
    monitor = "ndcg@10"
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"task.name": "relevance", "kind": "causal", "task.query_first": True},
            reason="a causal base reads one string, whose end, the question, must not be cut off",
            fix="leave task.query_first out",
        ),
        Refusal(
            when={"task.name": "relevance", "data.queries.grade": None, "data.grades": None},
            reason="without grades every judged product is right, and nothing can be told apart",
            fix="name data.queries.grade, or tune retrieval, which draws other products as wrong ones",
        ),
    )

    def reads(self, config: RelevanceSettings) -> Reads:  # noqa: ARG002
        """Query and product together."""
        return "pairs"

    def head(self, config: RelevanceSettings, kind: str) -> Head:  # noqa: ARG002
        """A new head on an encoder, the answer tokens on a causal base."""
        return "classifier" if kind == "encoder" else "answers"

    def labels(self, config: RelevanceSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """The grades, or yes and no; of a new head one score."""
        if config.loss == "classes":
            return tuple(f"{level:g}" for level in config.grades or ())
        return ("yes", "no") if head == "answers" else ("relevance",)

    def batch(
        self,
        config: RelevanceSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some queries with their judged products.

        Arrays: `text` and `grade` of each pair, and `query`, whose place in `rows` it belongs to, (P,); `best`, the
        highest grade of all training, ().

        Raises:
            DataError: grades that this loss can learn nothing from.
        """
        _check_grades(config, records)
        judged = [_judged(config, records, int(row), rng) for row in rows]
        texts = [
            self._text(config, records, int(row), pair, items)
            for row, pairs in zip(rows, judged, strict=True)
            for pair in pairs
        ]
        different, places = distinct(texts)
        arrays = {
            "text": places,
            "grade": records.grades[np.concatenate(judged)].astype(np.float32),
            "query": np.repeat(np.arange(len(rows)), [len(pairs) for pairs in judged]),
            "best": np.array(records.grades.max(), np.float32),
        }
        return Batch(texts=different, arrays=arrays, n_examples=len(rows))

    def _text(self, config: RelevanceSettings, records: Records, row: int, pair: int, items: Sequence[str]) -> Text:
        assert records.queries is not None  # noqa: S101  # prepare has seen to it: the task's table is `queries`
        product = config.before + items[records.items[pair]][:MOST_CHARACTERS]
        query = config.between + records.queries[row] + config.after
        return (query, product) if config.query_first else (product, query)

    def needs_base(self, config: RelevanceSettings) -> bool:  # noqa: ARG002
        """No."""
        return False

    def loss(self, config: RelevanceSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """See the module. outputs: (N, levels) of loss classes, else (N, 2) logits of yes and no, or (N, 1)."""
        import torch

        found = outputs[torch.as_tensor(batch.arrays["text"], device=outputs.device)]  # (P, K)
        grades = torch.as_tensor(batch.arrays["grade"], device=outputs.device).to(outputs)  # (P,)
        if config.loss == "classes":
            levels = np.searchsorted(np.array(config.grades, np.float32), batch.arrays["grade"])
            return torch.nn.functional.cross_entropy(found, torch.as_tensor(levels, device=outputs.device))
        scores = found[:, 0] - found[:, 1] if found.shape[1] == 2 else found[:, 0]
        if config.loss == "pointwise":
            targets = grades / float(batch.arrays["best"])
            return torch.nn.functional.binary_cross_entropy_with_logits(scores, targets)
        compare = _listwise if config.loss == "listwise" else _pairwise
        return compare(scores, grades, batch.arrays["query"], batch.n_examples)

    def pairs(self, config: RelevanceSettings, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """One text for each judged product of the queries."""
        return [
            self._text(config, records, int(row), pair, items) for row in rows for pair in own_pairs(records, int(row))
        ]

    def scores(self, config: RelevanceSettings, outputs: np.ndarray) -> np.ndarray:
        """The expected grade of loss classes, else the logit of relevant, (P,)."""
        logits = outputs.astype(np.float64)
        if config.loss == "classes":
            expected: np.ndarray = softmax(logits) @ np.array(config.grades)
            return expected
        return logits[:, 0] - logits[:, 1] if logits.shape[1] == 2 else logits[:, 0]


def _judged(config: RelevanceSettings, records: Records, row: int, rng: np.random.Generator) -> np.ndarray:
    """The pairs of a query that a batch sees; one best product stays, or there would be nothing to learn."""
    judged = own_pairs(records, row)
    if len(judged) <= config.judged_per_query:
        return judged
    best = judged[records.grades[judged].argmax()]
    return np.append(drawn(judged[judged != best], config.judged_per_query - 1, rng), best)


def _check_grades(config: RelevanceSettings, records: Records) -> None:
    """Passes where the training grades can be learned from.

    Raises:
        DataError: all are the same, or one is none of the levels.
    """
    grades = records.grades
    if grades.min() == grades.max():
        raise DataError(
            problem(
                "data.queries.grade",
                f"every training judgement has grade {grades[0]:g}",
                "relevance is learned from products of different grades",
                "check the column, or add judgements of worse products",
            )
        )
    if config.loss != "classes":
        return
    unknown = np.setdiff1d(grades, np.array(config.grades, np.float32))
    if len(unknown):
        raise DataError(
            problem(
                "task.grades",
                f"training has grade {unknown[0]:g}",
                f"every grade is one of {', '.join(f'{level:g}' for level in config.grades or ())}",
                "add the grade, or map it with data.queries.grade_map",
            )
        )


def _listwise(scores: Tensor, grades: Tensor, query: np.ndarray, n_queries: int) -> Tensor:
    """ListNet's cross-entropy with targets in proportion to grades; a query without a grade above 0 adds nothing."""
    import torch

    owner = torch.as_tensor(query, device=scores.device)  # (P,), ascending
    place = torch.as_tensor(np.arange(len(query)) - np.searchsorted(query, query), device=scores.device)
    table = torch.full((n_queries, int(place.max()) + 1), -torch.inf, device=scores.device, dtype=scores.dtype)
    table = table.index_put((owner, place), scores)  # (B, M)
    totals = torch.zeros(n_queries, device=scores.device, dtype=scores.dtype).index_add(0, owner, grades)
    targets = grades / totals.clamp(min=torch.finfo(totals.dtype).tiny)[owner]
    return -(targets * (scores - table.logsumexp(dim=1)[owner])).sum() / n_queries


def _pairwise(scores: Tensor, grades: Tensor, query: np.ndarray, n_queries: int) -> Tensor:
    """RankNet's cross-entropy over products of unequal grade; within a query the weights add up to one."""
    import torch

    owner = torch.as_tensor(query, device=scores.device)
    better, worse = torch.nonzero((owner[:, None] == owner) & (grades[:, None] > grades), as_tuple=True)  # (J,) each
    weights = grades[better] - grades[worse]
    totals = torch.zeros(n_queries, device=scores.device, dtype=scores.dtype).index_add(0, owner[better], weights)
    each = torch.nn.functional.softplus(scores[worse] - scores[better])
    return (weights / totals[owner[better]] * each).sum() / n_queries


MEMBER = Relevance()
