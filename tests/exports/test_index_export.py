"""The index target: vectors, ids and tower belong together, recall is measured, and what is stale is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recft import registry
from recft.errors import ExportError
from recft.exports import _faiss, _vectors
from recft.exports._base import Catalogue, Engine, NoSettings, Opening
from recft.exports._rows import Rows
from recft.exports.index import check_tower, tower_hash
from recft.recipe import Recipe
from recft.run import hash_file, read_json, silent, write_json

pytest.importorskip("faiss")

INDEX = registry.load("recft.exports", "index")
TEXTS = [
    *("red leather office chair", "usb cable", "黑色 打印机 墨盒", "🎒 oak desk", "", "lamp, " * 40),
    *(f"{colour} {thing}" for colour in ("red", "black", "黑色", "oak") for thing in ("chair", "desk", "椅子", "lamp")),
    "usb cable",  # two products may have one text
]
IDS = [f"sku-{number}" for number in range(len(TEXTS))]
QUERIES = ["red chair", "黑色 椅子", "🎒", "usb"]
ENDINGS = {".safetensors", ".json", ".parquet", ".faiss", ".txt", ".jinja", ".onnx", ".data"}


def indexed(made: Any, **changes: Any) -> Any:
    """The case's source with a catalogue."""
    return replace(made.source, catalogue=Catalogue(IDS, TEXTS), settings=INDEX.Config(), **changes)


def written(source: Any, folder: Path) -> Path:
    folder.mkdir()
    INDEX.write(source, folder)
    return folder


def opened(made: Any, folder: Path) -> Engine:
    engine: Engine = INDEX.open(folder, Opening(made.serving))
    return engine


def rows_of(made: Any) -> Rows:
    """What a certificate asks: queries, and some of the items, by the tuned model."""
    from recft.models.encoder import encode

    tuned = made.source.tuned()
    items = [TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[8], TEXTS[9]]
    contexts, read = (encode(tuned, made.source.tokenizer, texts) for texts in (QUERIES, items))
    return Rows(QUERIES, items, contexts, read)


def described(folder: Path, **changes: Any) -> None:
    """index.json with changes, and with the hashes of the files as they are now."""
    found = read_json(folder / "index.json")
    files = {name: hash_file(folder / name) for name in found["files"]}
    write_json(folder / "index.json", found | {"files": files} | changes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("case", ["bert-mean", "llama-last"])
def test_search_gives_the_order_of_exact_scores(
    case: str, dtype: str, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_case(case)
    folder = written(indexed(made, dtype=dtype), tmp_path / "out")
    engine = opened(made, folder)
    assert engine.dtype == dtype and engine.search is not None and engine.own is not None
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-5)
    vectors = _vectors.restored(_vectors.read_vectors(folder))
    assert vectors.shape == (len(TEXTS), made.expected.shape[1])
    within = {"float32": 1e-6, "float16": 1e-3, "int8": 2e-2}[dtype]
    np.testing.assert_allclose(vectors, engine.encode(TEXTS), atol=within)
    np.testing.assert_array_equal(vectors[1], vectors[-1])
    queries = engine.encode(QUERIES)
    items, scores = engine.search(queries, 30)
    assert items.shape == scores.shape == (len(QUERIES), 30)
    assert (items[:, len(TEXTS) :] == -1).all() and np.isneginf(scores[:, len(TEXTS) :]).all()
    for query, row, values in zip(queries, items, scores, strict=True):
        found = row[: len(TEXTS)]
        assert sorted(found) == list(range(len(TEXTS)))
        np.testing.assert_allclose(values[: len(TEXTS)], vectors[found] @ query, atol=within)
        assert list(row).index(1) + 1 == list(row).index(len(TEXTS) - 1)  # equal texts stand together, in order
    figures, wrong = engine.own(rows_of(made))
    assert not wrong
    assert figures["recall@100"] == 1
    assert figures["stored_top_k_agreement"] == 1
    assert figures["largest_vector_difference"] <= within
    assert figures["search_ms"] > 0
    whole = read_json(folder / "index.json")
    assert (whole["number"], whole["dimension"], whole["dtype"]) == (*vectors.shape, dtype)
    assert whole["tower"] == "merged" and whole["model"] == tower_hash(folder / "tower", made.serving)
    assert whole["index"]["kind"] == "exact" and whole["recall"]["recall@100"] == 1
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= ENDINGS
    assert _vectors.read_ids(folder)["id"].to_list() == IDS


def test_a_prefix_has_its_tower_in_onnx(make_case: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = make_case("bert-mean", "prefix", virtual_tokens=4)
    folder = written(indexed(made, dtype="float16"), tmp_path / "out")
    assert read_json(folder / "index.json")["tower"] == "onnx"
    engine = opened(made, folder)
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-5)
    assert engine.own is not None and not engine.own(rows_of(made))[1]
    assert lines_give(folder, "prefix", made) == ranked(engine)


@pytest.mark.parametrize("case", ["bert-mean", "llama-last"])
def test_the_lines_that_serve_it_rank_as_the_engine_does(
    case: str, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_case(case)
    folder = written(indexed(made), tmp_path / "out")
    assert lines_give(folder, "lora", made) == ranked(opened(made, folder))


def ranked(engine: Engine) -> list[str]:
    assert engine.search is not None
    return [TEXTS[item] for item in engine.search(engine.encode(["query: red chair"]), 10)[0][0]]


def lines_give(folder: Path, method: str, made: Any) -> list[str]:
    """The texts of the ids that the printed lines find, run as a person would run them."""
    description = {
        "task": {"name": "retrieval", "query_prompt": "query: "},
        "method": {"name": method},
        "serving": made.serving.to_json(),
    }
    (serve,) = INDEX.serve(description)
    names: dict[str, Any] = {}
    exec(serve.lines.replace("FOLDER", str(folder)), names)
    return [TEXTS[IDS.index(name)] for name in names["ids"]]


def test_another_tower_is_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    folder = written(indexed(made), tmp_path / "out")
    own = tower_hash(folder / "tower", made.serving)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder / "tower", elsewhere)
    (elsewhere / "MODEL_CARD.md").write_text("of an export of its own", encoding="utf-8")
    check_tower(folder, elsewhere, made.serving)
    assert tower_hash(elsewhere, replace(made.serving, pooling="last")) != own
    assert tower_hash(elsewhere, replace(made.serving, temperature=0.5)) == own
    with pytest.raises(ExportError, match=r"tower.*hash.*stale index.*fix: export the index again"):
        check_tower(folder, elsewhere, replace(made.serving, max_tokens=8))
    other = make_case("bert-mean", rank=2)  # another run over the same base
    theirs = written(indexed(other), tmp_path / "other") / "tower"
    shutil.rmtree(folder / "tower")
    shutil.copytree(theirs, folder / "tower")
    with pytest.raises(ExportError, match=f"{folder / 'tower'}.*stale index"):
        opened(made, folder)
    with pytest.raises(ExportError, match="stale index"):
        check_tower(folder, theirs, made.serving)
    # Were its hash written down as the index's own, the certificate would still see that its vectors are others.
    described(folder, model=tower_hash(folder / "tower", made.serving))
    engine = opened(made, folder)
    assert engine.own is not None
    assert any("stale index" in line for line in engine.own(rows_of(made))[1])


@pytest.mark.parametrize("name", ["vectors.safetensors", "ids.parquet", "index.faiss"])
def test_one_changed_byte_is_refused(name: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    folder = written(indexed(made), tmp_path / "out")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name}: has changed: SHA-256 .*fix: export again"):
        opened(made, folder)
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name}: is missing"):
        opened(made, folder)


def test_parts_of_different_catalogues_are_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    """Each part is whole and its hash is written down: what is refused is that they are not of the same items."""
    made = make_case("bert-mean")
    folder = written(indexed(made), tmp_path / "out")
    rows = rows_of(made)
    kept = {name: (folder / name).read_bytes() for name in ("ids.parquet", "vectors.safetensors", "index.json")}

    def restore() -> None:
        for name, content in kept.items():
            (folder / name).write_bytes(content)

    _vectors.write_ids(folder, IDS[:-1], TEXTS[:-1])
    described(folder)
    with pytest.raises(ExportError, match=r"ids\.parquet: 22, not 23.*row = item number"):
        opened(made, folder)
    restore()
    from safetensors.numpy import save_file

    save_file({"vectors": _vectors.read_vectors(folder)["vectors"][:-1]}, folder / "vectors.safetensors")
    described(folder)
    with pytest.raises(ExportError, match=r"vectors\.safetensors: \(22, 32\), not \(23, 32\)"):
        opened(made, folder)
    restore()
    pl.DataFrame({"id": IDS[::-1], "text": TEXTS[::-1]}).write_parquet(folder / "items.parquet")
    with pytest.raises(ExportError, match=r"items\.parquet has the ids of ids\.parquet"):
        opened(made, folder)
    (folder / "items.parquet").unlink()
    # Vectors in another order than their ids, hashes and lengths right: the certificate's rows find it.
    save_file({"vectors": _vectors.read_vectors(folder)["vectors"][::-1].copy()}, folder / "vectors.safetensors")
    described(folder)
    engine = opened(made, folder)
    assert engine.own is not None
    assert any("stale index" in line for line in engine.own(rows)[1])
    restore()
    # A changed item prompt: no row's text is one that the tower has read.
    other = replace(rows, items=[f"item: {text}" for text in rows.items])
    engine = opened(made, folder)
    assert engine.own is not None
    (line,) = engine.own(other)[1]
    assert "no such text" in line


def test_catalogues_that_cannot_be_indexed_are_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    (tmp_path / "out").mkdir()
    for catalogue in (Catalogue(), Catalogue(IDS, [])):
        with pytest.raises(ExportError, match=r"--to index: \d+ items, of which 0 have a text"):
            INDEX.write(replace(made.source, catalogue=catalogue), tmp_path / "out")
    for fact in ({"head": "classifier"}, {"head": "answers"}, {"reads": "pairs"}, {"reads": "contexts"}):
        refusal = registry.refused(INDEX.refusals, fact)
        assert refusal is not None and "towers" in refusal.fix
    assert registry.refused(INDEX.refusals, {"head": "embedding", "reads": "towers"}) is None


def test_a_vector_that_is_no_number_is_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")

    class Broken:
        Config = NoSettings

        def write(self, source: Any, folder: Path) -> None: ...

        def open(self, folder: Path, how: Any) -> Engine:
            def encode(texts: Any) -> np.ndarray:
                return np.array([[np.nan if "oak desk" in text else 1.0] for text in texts], np.float32)

            return Engine("none", "0", encode, made.source.tokenizer, "float32")

    source = indexed(made, others=lambda _name: Broken())
    with pytest.raises(ExportError, match="item 'sku-3': its vector has numbers that are not finite"):
        written(source, tmp_path / "out")


def clustered(number: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Unit vectors with structure, as embeddings have it."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, dimension))
    vectors = centres[draw.integers(0, 50, number)] + draw.standard_normal((number, dimension))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def plan(**changes: Any) -> _faiss.Plan:
    return _faiss.Plan(**{"dtype": "float32", **INDEX.Config(threads=1).model_dump(), **changes})


@pytest.mark.parametrize("kind", ["auto", "hnsw", "ivf", "exact"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_recall_is_what_a_slow_search_counts(kind: str, dtype: str) -> None:
    vectors = _vectors.restored(_vectors.rounded(clustered(3000, 24), dtype)[0])
    queries = clustered(20, 24, seed=5)
    heard: list[Any] = []
    built = _faiss.build(vectors, plan(kind=kind, dtype=dtype), {"some": queries}, lambda *event: heard.append(event))
    assert built.parameters["kind"] == ("hnsw" if kind == "auto" else kind)
    assert heard[-1][1] == {"name": "building the index", "done": 3000, "total": 3000, "unit": "items"}
    items, scores = _faiss.nearest(built.index, queries, 100)
    assert (np.diff(scores, axis=1) <= 0).all()
    slow = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    share = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(items, slow, strict=True)])
    assert share == pytest.approx(built.recall["some"], abs=2e-3)
    assert share >= 0.98 - 2e-3
    # What was searched with is written into the index: a stock engine needs no setting.
    stock = _faiss.faiss().deserialize_index(_faiss.faiss().serialize_index(built.index))
    np.testing.assert_array_equal(_faiss.nearest(stock, queries, 100)[0], items)


def test_effort_is_doubled_until_recall_is_reached_and_auto_falls_back() -> None:
    vectors, queries = clustered(4000, 24), {"some": clustered(10, 24, seed=5)}
    easy = _faiss.build(vectors, plan(kind="hnsw", recall=0.5, neighbours=4), queries, silent)
    hard = _faiss.build(vectors, plan(kind="hnsw", recall=0.99, neighbours=4), queries, silent)
    assert easy.recall["some"] < 0.99 <= hard.recall["some"]
    assert hard.parameters["efSearch"] / easy.parameters["efSearch"] in (2, 4, 8, 16, 32, 64)
    # Islands that no link leaves: a graph of few links never finds what stands on another.
    islands = np.repeat(clustered(40, 24), 100, axis=0)
    islands += np.random.default_rng(1).standard_normal(islands.shape).astype(np.float32) * 1e-4
    few = plan(neighbours=4, build_effort=8, recall=1.0)
    exact = _faiss.build(islands, few, queries, silent)
    assert exact.parameters["kind"] == "exact" and exact.recall["some"] == 1
    with pytest.raises(ExportError, match=r"export\.targets\.index: recall@100 of kind hnsw .*set kind: exact"):
        _faiss.build(islands, replace(few, kind="hnsw"), queries, silent)


def test_one_thread_builds_the_same_index_again() -> None:
    vectors, queries = clustered(3000, 16), {"some": clustered(5, 16, seed=5)}
    library = _faiss.faiss()
    before = library.omp_get_max_threads()
    first, second = (_faiss.build(vectors, plan(kind="hnsw"), queries, silent).index for _ in range(2))
    np.testing.assert_array_equal(library.serialize_index(first), library.serialize_index(second))
    assert library.omp_get_max_threads() == before


def test_int8_takes_the_scale_that_errs_less() -> None:
    vectors = clustered(500, 24)
    arrays, errors = _vectors.rounded(vectors, "int8")
    assert arrays["scales"].shape == (500, 1) and errors["vector"] < errors["dimension"]
    apart = vectors * np.where(np.arange(24) % 6 == 0, 50, 0.2).astype(np.float32)  # some dimensions dwarf the others
    arrays, errors = _vectors.rounded(apart, "int8")
    assert arrays["scales"].shape == (1, 24) and errors["dimension"] < errors["vector"]
    assert np.abs(_vectors.restored(arrays) - apart).max() <= arrays["scales"].max() / 2 * 1.0001
    nothing = _vectors.rounded(np.zeros((2, 3), np.float32), "int8")[0]
    assert not _vectors.restored(nothing).any()


def test_recommend_ranks_with_the_index_as_the_run_does(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    from recft.export import export
    from recft.recommend import _open, recommend, recommend_file
    from recft.tune import tune
    from recft.verify import verify

    task = {"name": "retrieval", "query_prompt": "find: ", "item_prompt": "item: "}
    tune(toy_recipe(task=task, tune={"max_steps": 2}), tmp_path / "run")
    found = export(tmp_path / "run", "index", tmp_path / "index")
    assert found["certificate"]["own"]["recall@100"] == 1
    assert verify(tmp_path / "index")["certificate"]["verdict"] == "passed"
    query = "black desk 打印机 🎒"
    ours = recommend(tmp_path / "run", query=query, top=100)
    events: list[Any] = []
    theirs = recommend(tmp_path / "index", query=query, top=100, listen=lambda *event: events.append(event))
    assert not any("reading" in str(values.get("name")) for _, values in events)  # the catalogue is not encoded
    assert len(ours) == len(theirs) == 40
    same_order(ours, theirs)
    table = tmp_path / "queries.csv"
    table.write_text("query\n" + "\n".join(f"chair {number}" for number in range(300)), encoding="utf-8")
    events.clear()
    for name in ("run", "index"):
        recommend_file(
            tmp_path / name, table, tmp_path / f"{name}.parquet", top=3, listen=lambda *event: events.append(event)
        )
    one, other = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("run", "index"))
    assert one["items"].to_list() == other["items"].to_list()
    np.testing.assert_allclose(one["scores"].to_list(), other["scores"].to_list(), atol=1e-5)
    assert events[-1] == ("progress", {"name": "ranking", "done": 300, "total": 300, "unit": "lists"})
    # Of another catalogue the index knows nothing: its items are read, as with every other export.
    items = pl.read_parquet(tmp_path / "index" / "items.parquet")
    items.reverse().write_parquet(tmp_path / "mine.parquet")
    assert _open(tmp_path / "index").search is not None
    assert _open(tmp_path / "index", items=tmp_path / "mine.parquet").search is None
    same_order(ours, recommend(tmp_path / "index", query=query, top=100, items=tmp_path / "mine.parquet"), ties=False)


def test_histories_are_ranked_by_a_graph_of_eight_bits_without_the_catalogue_in_the_export(
    toy_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from recft.export import export
    from recft.recommend import _open, recommend
    from recft.tune import tune

    targets = {"targets": {"index": {"kind": "hnsw", "threads": 1}}, "dtype": "int8"}
    tune(toy_recipe(task="next-item", kind="causal", tune={"max_steps": 2}, export=targets), tmp_path / "run")
    found = export(tmp_path / "run", "index", tmp_path / "index", rows=False)
    assert found["certificate"]["dtype"] == "int8" and found["certificate"]["verdict"] == "passed"
    assert read_json(tmp_path / "index" / "index.json")["index"]["kind"] == "hnsw"
    items = tmp_path / "run" / "data" / "items.parquet"
    assert _open(tmp_path / "index", items=items).search is not None
    ours = recommend(tmp_path / "run", history=["i3", "i0"], top=40)
    theirs = recommend(tmp_path / "index", history=["i3", "i0"], top=40, items=items)
    score = {place["item"]: place["score"] for place in ours}
    assert [place["score"] for place in theirs] == pytest.approx([score[place["item"]] for place in theirs], abs=2e-2)
    assert len(theirs) == 40
    # One changed bit of the tower.
    weights = tmp_path / "index" / "tower" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.safetensors"):
        recommend(tmp_path / "index", history=["i3"], items=items)


def same_order(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], ties: bool = True) -> None:
    np.testing.assert_allclose([one["score"] for one in ours], [one["score"] for one in theirs], atol=1e-5)
    if ties:
        assert [one["item"] for one in ours] == [one["item"] for one in theirs]
    assert {one["item"] for one in ours} == {one["item"] for one in theirs}


def test_an_index_that_is_no_index_is_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("bert-mean")
    folder = written(indexed(made), tmp_path / "out")
    (folder / "index.faiss").write_bytes(b"no index at all")
    described(folder)
    with pytest.raises(ExportError, match=r"index\.faiss: the engine cannot load it"):
        opened(made, folder)
    (folder / "index.json").write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(ExportError, match=r"index\.json: does not describe an index.*export again"):
        opened(made, folder)
