"""ONNX: what int8 does to each product, what graph.json tells, left padding, big graphs, and the lines that serve."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recft import registry
from recft.exports._base import Engine, Opening
from recft.exports._certificate import agreement, near
from recft.exports._onnx_servers import servers
from recft.models.base import load_base, tokenizer_of
from recft.models.encoder import encode
from recft.models.text_model import TextModel
from recft.models.tokens import Text

pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

Make = Callable[..., Any]


def written(made: Any, folder: Path) -> tuple[Engine, dict[str, Any]]:
    folder.mkdir()
    member = registry.load("recft.exports", "onnx")
    member.write(made.source, folder)
    told: dict[str, Any] = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    return member.open(folder, Opening(made.serving)), told


def with_likelihood(made: Any, chat: bool = False) -> Any:
    """The case with the head `likelihood`, its rows and its reference."""
    serving = dataclasses.replace(
        made.serving, task="reply", head="likelihood", carrier="answers", labels=(), label_ids=(), chat=chat
    )
    reference, tokenizer = made.source.tuned(), made.source.tokenizer
    reference.serving = serving
    pairs = [("red leather chair", " oak desk"), ("黑色 打印机 🎒", " 墨盒"), ("lamp, " * 30, " usb cable, black")]
    rows: list[Text] = serving.cut(tokenizer, pairs)
    source = dataclasses.replace(made.source, serving=serving)
    return dataclasses.replace(
        made, source=source, serving=serving, rows=rows, expected=encode(reference, tokenizer, rows)
    )


# What int8 does, product by product: graphs of one node each, against the formula written out slowly.


def slow_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The module's formula, number by number. x: (T, K), weight: (K, N)."""
    found = np.zeros((len(x), weight.shape[1]))
    for t, n in np.ndindex(*found.shape):
        scale = np.abs(weight[:, n]).max() / 127
        largest = np.abs(x[t]).max()
        for k in range(weight.shape[0]):
            q = np.rint(weight[k, n] / scale)
            share = x[t, k] / largest if largest else 0.0
            a = np.rint(share * 63)
            b = np.rint((share - a / 63) * 63 * 126)
            assert -127 <= q <= 127 and -63 <= a <= 63 and -63 <= b <= 63
            found[t, n] += largest * scale * q * (a / 63 + b / (63 * 126))
    return found


def graph_of(nodes: list[Any], inputs: list[Any], weights: list[Any], width: int) -> Any:
    output = nodes[-1].outputs[0]
    output.name, output.shape, output.type = "y", ir.Shape(["rows", width]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [output], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="one")
    return ir.Model(graph, ir_version=10)


def floats(name: str, value: np.ndarray) -> Any:
    return ir.Value(
        name=name,
        shape=ir.Shape(value.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(value.astype(np.float32), name=name),
    )


def entry(name: str, dtype: Any, axes: list[Any]) -> Any:
    return ir.Value(name=name, shape=ir.Shape(axes), type=ir.TensorType(dtype))


def ran(model: Any, path: Path, **inputs: np.ndarray) -> np.ndarray:
    import onnxruntime

    ir.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(["y"], inputs)[0]
    return answer


def weight_of(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def activations(width: int) -> np.ndarray:
    """Rows of very different sizes: one of zeros, one with a value that towers above the rest."""
    x = np.random.default_rng(1).standard_normal((5, width)).astype(np.float32)
    x[1], x[2] = 0, x[2] * 1e-3
    x[3, 7] = 1000
    return x


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "turned Gemm", "Transpose"])
def test_a_product_is_what_the_formula_says(kind: str, tmp_path: Path) -> None:
    from recft.exports._onnx_int8 import quantize

    weight, x = weight_of(24, 16), activations(24)
    given = entry("x", ir.DataType.FLOAT, ["rows", 24])
    turned = kind in ("turned Gemm", "Transpose")
    kept = floats("w", weight.T if turned else weight)
    nodes, right, bias = [], kept, []
    if kind == "Transpose":
        nodes.append(ir.node("Transpose", [kept], {"perm": [1, 0]}))
        right = nodes[0].outputs[0]
    if "Gemm" in kind:
        bias = [floats("bias", np.arange(16.0))]
        nodes.append(ir.node("Gemm", [given, kept, *bias], {"transB": int(turned), "alpha": 1.0, "beta": 1.0}))
    else:
        nodes.append(ir.node("MatMul", [given, right]))
    model = graph_of(nodes, [given], [kept, *bias], 16)
    assert quantize(model)["matrices"] == 1
    assert not {"MatMul", "Gemm"} & {node.op_type for node in model.graph}
    assert "w" not in model.graph.initializers
    found = ran(model, tmp_path / "one.onnx", x=x)
    expected = slow_product(x, weight) + (np.arange(16.0) if bias else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    exact = x @ weight + (np.arange(16.0) if bias else 0)
    # Half a step of each weight; the towering value takes nothing from the others.
    bound = np.abs(x) @ np.ones((24, 16)) * np.abs(weight).max() / 127
    assert (np.abs(found - exact) <= bound + 1e-4).all()


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    from recft.exports._onnx_int8 import quantize

    table = weight_of(50, 16)
    ids, kept = entry("ids", ir.DataType.INT64, ["rows"]), floats("table", table)
    look = ir.node("Gather", [kept, ids], {"axis": 0})
    turn = ir.node("Transpose", [kept], {"perm": [1, 0]})
    model = graph_of([look, turn, ir.node("MatMul", [look.outputs[0], turn.outputs[0]])], [ids], [kept], 50)
    told = quantize(model)
    assert (told["tables"], told["matrices"]) == (1, 1)
    big = [value for value in model.graph.initializers.values() if value.const_value.size >= 800]
    assert [value.const_value.dtype.name for value in big] == ["INT8"]
    rows = np.array([0, 49, 7, 7])
    looked = np.rint(table / (s := np.abs(table).max(1, keepdims=True) / 127)) * s
    found = ran(model, tmp_path / "tied.onnx", ids=rows)
    np.testing.assert_allclose(found, slow_product(looked[rows], table.T), rtol=1e-5, atol=1e-5)


def test_what_stays_float32() -> None:
    from recft.exports._onnx_int8 import quantize

    def given() -> Any:
        return entry("x", ir.DataType.FLOAT, ["rows", 24])

    x, label = given(), floats("label", weight_of(24, 2))
    small = graph_of([ir.node("MatMul", [x, label])], [x], [label], 2)
    x, two = given(), floats("two", weight_of(24, 16))
    scaled = graph_of([ir.node("Gemm", [x, two], {"alpha": 2.0})], [x], [two], 16)
    x, table = given(), floats("places", weight_of(32, 16))
    places = ir.node("Shape", [x])
    positions = graph_of([places, ir.node("Gather", [table, places.outputs[0]])], [x], [table], 16)
    for model in (small, scaled, positions):
        before = [node.op_type for node in model.graph]
        assert quantize(model)["matrices"] == 0
        assert [node.op_type for node in model.graph] == before
        assert model.opset_imports == {"": 20}


# Whole models.


def rounded(made: Any) -> np.ndarray:
    """What the model gives when its matrices are rounded to 8 bits, in torch: what int8 may cost, and no more."""
    source = made.source
    model: Any = TextModel(source.merge.load(), made.serving) if source.merge else copy.deepcopy(source.tuned())
    words = model.base.get_input_embeddings()
    weights: dict[int, Any] = {id(words.weight): words.weight}
    if made.serving.head != "answers":  # the answers' rows of a tied head are float32
        weights |= {id(part.weight): part.weight for part in model.modules() if isinstance(part, torch.nn.Linear)}
    else:
        head = model.base.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        layers = (part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head)
        weights |= {id(part.weight): part.weight for part in layers}
    with torch.no_grad():
        for weight in weights.values():
            if min(weight.shape) >= 16:
                scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-20) / 127
                weight.copy_((weight / scale).round() * scale)
    return encode(model.eval(), source.tokenizer, made.rows)


def as_rounded(found: np.ndarray, made: Any) -> None:
    """The outputs are those of rounded matrices; activations lose next to nothing."""
    expected = rounded(made)
    cost = np.abs(expected - made.expected).mean()
    assert cost > 1e-4
    assert np.abs(found - expected).mean() < 0.1 * cost


CASES = [
    ("bert-mean", "lora", {"quantization": "nf4"}, "right"),
    pytest.param("bert-head", "lora", {}, "right", marks=pytest.mark.slow),
    pytest.param("llama-answers", "lora", {"quantization": "nf4"}, "either", marks=pytest.mark.slow),
    pytest.param(
        "llama-answers", "prefix", {"virtual_tokens": 4, "quantization": "nf4"}, "right", marks=pytest.mark.slow
    ),
    pytest.param("bert-mean", "bottleneck", {"quantization": "nf4"}, "right", marks=pytest.mark.slow),
    pytest.param("bert-head", "prefix", {"virtual_tokens": 4}, "right", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("case", "method", "options", "padding"), CASES)
def test_int8_of_each_head_and_method(
    case: str, method: str, options: dict[str, Any], padding: str, make_case: Make, tmp_path: Path
) -> None:
    made = make_case(case, method, dtype="int8", **options)
    engine, told = written(made, tmp_path / "out")
    assert engine.dtype == told["dtype"] == "int8"
    found = engine.encode(made.rows)
    as_rounded(found, made)
    alone = np.concatenate([engine.encode([row]) for row in made.rows])
    np.testing.assert_allclose(alone, found, atol=1e-5)  # no text's scales come from another's
    assert told["padding"] == padding
    assert (engine.other_side is not None) is (padding == "either")
    if engine.other_side:
        np.testing.assert_allclose(engine.other_side(made.rows), found, atol=5e-2)
    assert set(told["opset"]) == {"ai.onnx", "com.microsoft"}
    assert told["quantization"]["matrices"] >= 12
    held(tmp_path / "out", told)


def held(folder: Path, told: dict[str, Any]) -> None:
    """The file is as graph.json says, and no float32 matrix is left in the folder."""
    onnx = pytest.importorskip("onnx")
    assert [path.name for path in folder.glob("*.onnx*")] == [told["file"]]
    model = onnx.load(folder / told["file"])
    onnx.checker.check_model(model)
    assert told["ir_version"] == model.ir_version
    assert told["opset"] == {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    for part in ("inputs", "outputs"):
        for value in getattr(model.graph, part[:-1]):
            kind = value.type.tensor_type
            axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
            assert told[part][value.name]["axes"] == axes
            assert axes[0] == "batch" and (part == "outputs" or axes == ["batch", "length"])
            assert told[part][value.name]["dtype"] == ("int64" if part == "inputs" else "float32")
    floats_left = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2 and min(tensor.dims) >= 16
    ]
    assert len(floats_left) == ("token_type_ids" in told["inputs"])  # a table of positions


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), pytest.param("int8", 5e-2, marks=pytest.mark.slow)]
)
def test_a_likelihood_and_its_lines(dtype: str, tolerance: float, make_case: Make, tmp_path: Path) -> None:
    made = with_likelihood(make_case("llama-answers", dtype=dtype))
    engine, told = written(made, tmp_path / "out")
    assert set(told["inputs"]) == {"input_ids", "attention_mask", "tail_mask"}
    found = engine.encode(made.rows)
    expected = made.expected if dtype == "float32" else rounded(made)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert engine.dtype == dtype
    assert engine.other_side is not None
    np.testing.assert_allclose(engine.other_side(made.rows), found, atol=tolerance)
    (text,) = [one.lines for one in servers({"serving": made.serving.to_json()}) if not one.refused]
    body, tail = made.rows[0]
    text = text.replace('"BODY"', repr(body)).replace('"REPLY"', repr(tail))
    np.testing.assert_allclose(answered(text, tmp_path / "out", "[log_p, n_tokens]"), found[0], atol=1e-4)


def test_int8_weights_beyond_one_file(make_case: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recft.exports.onnx as target

    made = make_case("bert-mean", dtype="int8")
    monkeypatch.setattr(target, "LARGEST_FILE_BYTES", 0)
    engine, told = written(made, tmp_path / "out")
    assert told["data"] == "model.onnx.data"
    assert (tmp_path / "out" / told["data"]).stat().st_size > 20_000
    as_rounded(engine.encode(made.rows), made)
    description = {"serving": made.serving.to_json(), "task": {"query_prompt": "history: "}}
    line, tei = servers(description)
    text = line.lines.replace("history: red chair", str(made.rows[0]))
    np.testing.assert_allclose(answered(text, tmp_path / "out", "vectors"), engine.encode(made.rows[:1]), atol=1e-5)
    assert "sentence-transformers" in tei.refused and not tei.lines


def answered(lines: str, folder: Path, name: str) -> np.ndarray:
    """What the lines give in a process of their own, with `FOLDER` named."""
    assert str(folder) not in lines
    code = f"{lines.replace('FOLDER', str(folder))}\nimport json, sys, numpy as np\n"
    code += f"assert 'recft' not in sys.modules\nprint(json.dumps(np.asarray({name}).tolist()))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("kind", "task", "lines"),
    [
        ("encoder", {"before": "", "between": " item: ", "after": "", "query_first": True}, "[' item: QUERY'], ['PROD"),
        ("encoder", {"before": "p ", "between": "q ", "after": "", "query_first": False}, "['p PRODUCT'], ['q QUERY']"),
        ("causal", {"before": "h ", "between": " i ", "after": "?"}, "['h HISTORY i ITEM?']"),
        ("encoder", {"before": "a ", "after": " z"}, "['a TEXT z']"),
    ],
)
def test_lines_put_the_tasks_words_around_the_texts(kind: str, task: dict[str, Any], lines: str) -> None:
    serving = {"head": "classifier", "kind": kind, "max_tokens": 64}
    first = servers({"serving": serving, "task": task})[0].lines
    assert lines in first
    assert ("within 64 tokens" in first) is (kind == "causal" and "between" in task)
    compile(first, "lines", "exec")
    chat = servers({"serving": {"head": "likelihood", "kind": "causal", "chat": True}})[0].lines
    assert "apply_chat_template" in chat
    compile(chat, "lines", "exec")


DATA = Path(os.environ.get("RECFT_DATA") or Path(__file__).parents[3] / "shared" / "data") / "online-retail"


@pytest.mark.slow
def test_int8_keeps_the_first_ten_of_a_real_catalogue(make_case: Make, tmp_path: Path) -> None:
    """MiniLM, the shop's 3,659 titles, and histories of ten titles: 99% of the first ten, in less than a third."""
    if not (DATA / "items.csv").is_file():
        pytest.skip(f"no Online Retail files in {DATA}: set RECFT_DATA")
    titles, histories = online_retail(120)
    made = make_case("bert-mean", dtype="int8")
    settings = made.source.model.model_copy(update={"base": "minilm"})
    tokenizer, serving = tokenizer_of(settings), dataclasses.replace(made.serving, max_tokens=128)
    model = TextModel(load_base(settings, "embedding", torch.device("cpu"), torch.float32).model, serving).eval()
    source = dataclasses.replace(made.source, serving=serving, tokenizer=tokenizer, merge=None, tuned=lambda: model)
    engine, _ = written(dataclasses.replace(made, source=source, serving=serving), tmp_path / "out")
    ours, theirs = (
        both[: len(histories)] @ both[len(histories) :].T
        for both in (encode(model, tokenizer, [*histories, *titles]), engine.encode([*histories, *titles]))
    )
    agree = agreement(list(ours), list(theirs), near(list(ours), "int8"))
    assert agree is not None and agree >= 0.99
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.3 * sum(p.numel() * 4 for p in model.parameters())


def online_retail(most: int) -> tuple[list[str], list[str]]:
    """The titles, and histories: of each customer the ten purchases before the last."""
    items = pl.read_csv(DATA / "items.csv", infer_schema_length=0).filter(pl.col("title").is_not_null())
    log = pl.read_csv(DATA / "interactions.csv.gz", infer_schema_length=0).with_columns(pl.col("ts").cast(pl.Int64))
    log = log.join(items.select("StockCode", "title"), on="StockCode", maintain_order="left").sort(
        "ts", maintain_order=True
    )
    bought = log.group_by("CustomerID", maintain_order=True).agg("title").filter(pl.col("title").list.len() > 10)
    return items["title"].to_list(), ["; ".join(row[-11:-1]) for row in bought["title"].head(most).to_list()]
