"""Exports serve: a process that has the engine alone answers 200 held-out queries as the tuned model does.

Each little server is written as a user would write it: it imports its engine, never recft, reads JSON lines from
stdin and answers each on stdout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft.data.shop import make_shop
from recft.exports._rows import Rows
from recft.models.encoder import encode
from recft.recipe import Recipe
from recft.run import RunFolder, read_json
from recft.training.reference import reference
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]
Ask = Callable[[Sequence[Any]], np.ndarray]

ROOT = Path(__file__).parents[2]
QUERIES = 200

LOOP = """
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line)).tolist()), flush=True)
assert not [name for name in sys.modules if name.split(".")[0] == "recft"]
"""

ONNX = """
import json, sys
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer
tokenizer, session = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json"), InferenceSession(sys.argv[1] + "/model.onnx")
tokenizer.enable_padding()
tokenizer.enable_truncation(json.load(open(sys.argv[1] + "/tokenizer_config.json"))["model_max_length"])
def answer(texts):
    rows = tokenizer.encode_batch([tuple(text) if isinstance(text, list) else text for text in texts])
    batch = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows],
             "token_type_ids": [row.type_ids for row in rows]}
    return session.run(["outputs"], {name: np.array(ids) for name, ids in batch.items()})[0]
"""

BI_ENCODER = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
def answer(texts):
    return model.encode(texts)
"""

CROSS_ENCODER = """
import json, sys
import torch
from sentence_transformers import CrossEncoder
model = CrossEncoder(sys.argv[1], device="cpu")
def answer(texts):
    pairs = [tuple(text) for text in texts]
    return model.predict(pairs, activation_fn=torch.nn.Identity()).reshape(len(texts), -1)
"""

TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModel.from_pretrained(sys.argv[1]).eval()
def answer(texts):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
"""


@contextmanager
def server(code: str, folder: Path) -> Iterator[Ask]:
    """Asks a process that runs `code` on the folder; it must end well."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", code + LOOP, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdin is not None and process.stdout is not None

    def ask(texts: Sequence[Any]) -> np.ndarray:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(texts) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "the server ended"
        return np.array(json.loads(line), np.float32)

    try:
        assert process.stdout.readline() == "ready\n"
        yield ask
    except AssertionError as error:
        process.kill()
        raise AssertionError(process.communicate()[1][-2000:]) from error
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def tuned(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tuned run of a task on a shop with over 400 queries, made once for each task."""
    made: dict[str, Path] = {}

    def run(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            make_shop(folder, language="zh", scale=0.9)
            queries = {"path": "ratings.csv", "query": "query", "item": "docid", "grade": "rating"}
            data = {
                "items": {"path": str(folder / "products.jsonl.gz"), "id": "id", "text": ["title"], "title": "title"},
                "queries": queries | {"path": str(folder / "ratings.csv")},
                "split": {"by": "query", "valid": 0.1, "test": 0.6},
            }
            recipe = toy_recipe(
                task, "encoder", {"name": "lora", "rank": 4}, data=data, export={"rows": 250}, tune={"max_tokens": 48}
            )
            tune(recipe, folder / "run")
            made[task] = folder / "run"
        return made[task]

    return run


def exported(run: Path, target: str, out: Path) -> Path:
    """The export of the real command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "recft", "export", str(run), "--to", target, "--out", str(out), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out


CASES = [
    ("onnx", "retrieval", ONNX, "onnxruntime"),
    pytest.param("onnx", "relevance", ONNX, "onnxruntime", marks=pytest.mark.slow),
    pytest.param("sentence-transformers", "retrieval", BI_ENCODER, "sentence_transformers", marks=pytest.mark.slow),
    pytest.param("sentence-transformers", "relevance", CROSS_ENCODER, "sentence_transformers", marks=pytest.mark.slow),
    pytest.param("merged", "retrieval", TRANSFORMERS, "transformers", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("target", "task", "code", "engine"), CASES)
def test_a_process_without_recft_serves_what_was_tuned(
    target: str, task: str, code: str, engine: str, tuned: Callable[[str], Path], tmp_path: Path
) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    run = tuned(task)
    out = exported(run, target, tmp_path / "out")
    rows = Rows.read(out / "certificate" / "rows.parquet")
    assert len(rows.contexts) >= QUERIES
    told = read_json(out / "recft-export.json")
    assert told["certificate"]["effect_kl"] > 1e-3, "the untuned model would be served as well"
    model = reference(Recipe.load(run / "recipe.yaml"), RunFolder(run), told["onto"])
    queries = model.model.serving.cut(model.tokenizer, list(rows.contexts))
    expected = encode(model.model.eval(), model.tokenizer, queries)
    with server(code, out) as ask:
        found = np.concatenate([ask([query]) for query in queries])
        together = ask(queries[:32])
        items = ask(list(rows.items)) if len(rows.items) else None
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(together, found[:32], atol=1e-4)
    if items is None:
        in_order(expected.T, found.T)
    else:
        catalogue = encode(model.model, model.tokenizer, list(rows.items))
        in_order(expected @ catalogue.T, found @ items.T)


def in_order(expected: np.ndarray, found: np.ndarray) -> None:
    """The lists are ranked alike: no two entries have changed places but those that rounding makes equal."""
    assert np.ptp(expected, axis=1).min() > 1e-3  # or any order would do
    order = np.argsort(-found, axis=1, kind="stable")
    rises = np.diff(np.take_along_axis(expected, order, axis=1), axis=1)
    assert rises.max() < 1e-5
