"""Item embeddings with ids, a nearest neighbour index over them, and the query tower that belongs to both.

`tower/` is an artefact of another target: merged, or onnx where there is nothing to merge into. It makes the items'
vectors, as it will make the queries'. `index.json` holds its hash, and a tower of another hash is refused: vectors of
two models have no common space, and their products are noise that looks like scores. `index.faiss` is faiss's own file;
`vectors.safetensors` and `ids.parquet` are for any other engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from recft import registry
from recft.errors import ExportError, problem
from recft.exports._base import Engine, Opening, Serve, Source
from recft.exports._engine import require
from recft.exports._tower import engine_hash, refuse_other_tower, tower_hash
from recft.registry import Refusal
from recft.run import Listener, hash_file, write_json
from recft.schema import Settings

if TYPE_CHECKING:
    import numpy as np

    from recft.exports._faiss import Built, Plan
    from recft.exports._rows import Rows
    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["MEMBER", "check_tower", "tower_hash"]

TOWER = "tower"
BLOCK_TEXTS = 4_096
QUERIES = 256
"""So many training texts, and so many items, are the queries that recall is measured with when the index is built."""


class IndexSettings(Settings):
    """Settings of `export.targets.index`."""

    kind: Literal["auto", "exact", "hnsw", "ivf"] = Field(
        default="auto",
        description="auto: exact below 2,000 items, hnsw up to a million, ivf beyond, exact where these miss recall",
    )
    neighbours: Annotated[int, Field(ge=4, le=256)] = Field(default=32, description="of hnsw: links an item and level")
    build_effort: Annotated[int, Field(ge=8)] = Field(default=100, description="of hnsw: efConstruction")
    recall: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.98, description="search effort is doubled until recall@100 is this, against exact search"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="that build the index; with 1 the same index comes again, byte for byte"
    )


@dataclass(frozen=True)
class Index:
    """The target."""

    Config = IndexSettings
    summary = "item embeddings and a faiss index, with the query tower that belongs to them"
    needs: tuple[str, ...] = ()
    extra: str | None = "index"
    carries_base: bool = True
    dtypes: tuple[str, ...] = ("float32", "float16", "int8")
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"head": ("classifier", "answers", "likelihood")},
            reason="an index holds vectors of items, and this task's model gives none",
            fix="export to merged or onnx, or tune task retrieval or next-item by towers",
        ),
        Refusal(
            when={"reads": ("pairs", "contexts")},
            reason="an index holds items that are read alone, and this task reads them with their context or never",
            fix="export to merged or onnx, or tune task retrieval or next-item by towers",
        ),
    )

    def write(self, source: Source, folder: Path) -> None:
        """Writes the tower, the items' vectors and ids, the index over them, and `index.json`."""
        require(("faiss",), "index")
        from recft.exports import _faiss, _vectors
        from recft.exports._index_checks import DESCRIBED
        from recft.models.vector_cache import known_vectors

        texts, ids = source.catalogue.texts, source.catalogue.ids
        if not texts or len(texts) != len(ids):
            raise ExportError(
                problem(
                    "--to index",
                    f"{len(ids)} items, of which {len(texts)} have a text",
                    "an index is of a catalogue whose items have texts",
                    "export to merged",
                )
            )
        name = "merged" if source.merge is not None else "onnx"
        tower = _write_tower(source, name, folder / TOWER)
        model = engine_hash(folder / TOWER, source.serving, tower)
        vectors = known_vectors(model, texts, lambda new: _encoded(tower, source.serving, new, source.listen))
        _refuse_unfit(vectors, ids)
        arrays, errors = _vectors.rounded(vectors, source.dtype)
        _save(arrays, folder / _vectors.VECTORS)
        _vectors.write_ids(folder, ids, texts)
        vectors = _vectors.restored(arrays)
        queries = _queries(source, tower, vectors)
        settings = source.settings if isinstance(source.settings, IndexSettings) else IndexSettings()
        plan = _faiss.Plan(dtype=source.dtype, **settings.model_dump())
        source.listen("stage", {"name": f"building an index of {len(texts):,} items"})
        built = _faiss.build(vectors, plan, queries, source.listen)
        _faiss.faiss().write_index(built.index, str(folder / _faiss.INDEX))
        described = {
            "format": 1,
            "number": len(vectors),
            "dimension": vectors.shape[1],
            "dtype": source.dtype,
            "rounding": {"scale": _scale(arrays), "mean_squared_error": errors} if errors else None,
            "model": tower_hash(folder / TOWER, source.serving),
            "tower": name,
        }
        files = {file: hash_file(folder / file) for file in (_faiss.INDEX, _vectors.VECTORS, _vectors.IDS)}
        write_json(folder / DESCRIBED, described | _described(built, plan, queries, source.serving) | {"files": files})

    def open(self, folder: Path, how: Opening) -> Engine:
        """The tower in its own engine, and faiss; neither stands without the other.

        Raises:
            ExportError: the tower, the vectors, the ids and the index do not belong together.
        """
        require(("faiss",), "index")
        from recft.exports import _faiss, _vectors
        from recft.exports._index_checks import measured, read_description, refuse_changed, refuse_unequal

        described = read_description(folder)
        refuse_changed(folder, described)
        refuse_other_tower(folder / TOWER, how.serving, described["model"])
        index = _faiss.read(folder)
        refuse_unequal(folder, described, index)
        tower = how.others(described["tower"]).open(folder / TOWER, how)

        def search(vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            return _faiss.nearest(index, vectors, depth)

        def own(rows: Rows) -> tuple[dict[str, Any], list[str]]:
            return measured(folder, described, tower, how, index, rows)

        return replace(
            tower,
            name=f"faiss, with {tower.name}",
            version=f"{_faiss.faiss().__version__}, {tower.version}",
            dtype=described["dtype"],
            search=search,
            searched=_vectors.read_ids(folder)["id"].to_list(),
            own=own,
        )

    def serve(self, description: Mapping[str, Any]) -> list[Serve]:
        """With faiss, the tower in transformers or in ONNX Runtime."""
        serving, prompt = description["serving"], description["task"].get("query_prompt", "")
        start = "import faiss, polars, transformers"
        read = 'tokenizer = transformers.AutoTokenizer.from_pretrained("FOLDER/tower")'
        text = f'tokenizer([{prompt + "red chair"!r}], truncation=True, return_tensors="%s")'
        end = (
            'scores, items = faiss.read_index("FOLDER/index.faiss").search(vector, 10)\n'
            'ids = polars.read_parquet("FOLDER/ids.parquet")["id"][items[0].tolist()]'
        )
        if not registry.load("recft.methods", description["method"]["name"]).mergeable:
            graph = 'graph = onnxruntime.InferenceSession("FOLDER/tower/model.onnx")'
            vector = f"vector = graph.run(None, dict({text % 'np'}))[0]"
            lines = "\n".join((f"{start}, onnxruntime", read, graph, vector, end))
            return [Serve("faiss, with ONNX Runtime", lines, "python")]
        pooled = "hidden.mean(dim=1)" if serving["pooling"] == "mean" else "hidden[:, -1]"
        pooled = f"torch.nn.functional.normalize({pooled})" if serving["normalize"] else pooled
        model = 'tower = transformers.AutoModel.from_pretrained("FOLDER/tower")'
        hidden = f"hidden = tower(**{text % 'pt'}).last_hidden_state"
        vector = f"vector = {pooled}.detach().numpy()"
        lines = "\n".join((f"{start}, torch", read, model, hidden, vector, end))
        return [Serve("faiss, with transformers", lines, "python")]


def check_tower(index: Path, tower: Path, serving: Serving) -> None:
    """Nothing, where a tower that is kept elsewhere is the one that made the vectors of the exported folder `index`.

    Raises:
        ExportError: it is another one.
    """
    from recft.exports._index_checks import read_description

    refuse_other_tower(tower, serving, read_description(index)["model"])


def _write_tower(source: Source, name: str, folder: Path) -> Engine:
    """The tower, written and opened again: what makes the queries' vectors makes the items' too."""
    member = source.others(name)
    source.listen("stage", {"name": f"writing the query tower ({name})"})
    folder.mkdir(exist_ok=True)
    member.write(replace(source, dtype="float32", settings=member.Config()), folder)
    return member.open(folder, Opening(source.serving, source.model.trust_remote_code, others=source.others))


def _encoded(tower: Engine, serving: Serving, texts: Sequence[Text], listen: Listener) -> np.ndarray:
    """A vector of each text, (N, D) float32; equal texts are read once, so that their vectors are equal."""
    import numpy as np

    different = list(dict.fromkeys(texts))
    parts = []
    for start in range(0, len(different), BLOCK_TEXTS):
        parts.append(tower.encode(serving.cut(tower.tokenizer, different[start : start + BLOCK_TEXTS])))
        done = min(start + BLOCK_TEXTS, len(different))
        listen("progress", {"name": "reading items", "done": done, "total": len(different), "unit": "items"})
    found = np.concatenate(parts)
    if len(different) == len(texts):
        return found
    place = {text: row for row, text in enumerate(different)}
    return np.asarray(found[[place[text] for text in texts]])


def _refuse_unfit(vectors: np.ndarray, ids: Sequence[str]) -> None:
    import numpy as np

    wrong = ~np.isfinite(vectors).all(axis=1)
    if wrong.any():
        raise ExportError(
            problem(
                f"item {ids[int(wrong.argmax())]!r}",
                "its vector has numbers that are not finite",
                "every item has a vector",
                "look at the item's text, or tune again at a lower learning rate",
            )
        )


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _queries(source: Source, tower: Engine, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """What recall is measured with: training texts, where there are any, and items spread over the catalogue."""
    import numpy as np

    chosen = np.linspace(0, len(vectors) - 1, min(QUERIES, len(vectors))).astype(int)
    texts = source.texts(QUERIES)
    read = {"texts": tower.encode(source.serving.cut(tower.tokenizer, texts))} if texts else {}
    return {"items": vectors[chosen], **read}


def _scale(arrays: Mapping[str, np.ndarray]) -> str:
    return "vector" if arrays["scales"].shape[1] == 1 else "dimension"


def _described(built: Built, plan: Plan, queries: Mapping[str, np.ndarray], serving: Serving) -> dict[str, Any]:
    """The index's part of `index.json`."""
    from recft.exports import _faiss

    return {
        "metric": "inner product (cosine: vectors have length 1)" if serving.normalize else "inner product",
        "index": built.parameters,
        "recall": {
            "at": _faiss.DEPTH,
            "aim": plan.recall,
            "recall@100": min(built.recall.values()),
            "of": built.recall,
            "queries": {name: len(part) for name, part in queries.items()},
        },
        "faiss": _faiss.faiss().__version__,
    }


MEMBER = Index()
