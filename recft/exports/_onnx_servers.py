"""How people serve a graph: the lines for ONNX Runtime, and who refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recft.exports._base import Serve
from recft.exports._servers import example

__all__ = ["servers"]

OPEN = """\
from onnxruntime import InferenceSession
from transformers import AutoTokenizer
tokenizer, session = AutoTokenizer.from_pretrained("FOLDER"), InferenceSession("FOLDER/model.onnx")
"""

RUN = """\
batch = tokenizer({texts}, padding=True, truncation={cut}, return_tensors="np")
{found} = session.run(["outputs"], dict(batch))[0]"""

TAIL = """\
import numpy
from onnxruntime import InferenceSession
from transformers import AutoTokenizer
tokenizer, session = AutoTokenizer.from_pretrained("FOLDER"), InferenceSession("FOLDER/model.onnx")
body, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ({body}, "REPLY"))
begin = {begin}
ids, tail = begin + body + tail + [tokenizer.eos_token_id], len(tail) + 1
batch = {{"input_ids": [ids], "attention_mask": [[1] * len(ids)], "tail_mask": [[0] * (len(ids) - tail) + [1] * tail]}}
log_p, n_tokens = session.run(["outputs"], {{name: numpy.array(rows) for name, rows in batch.items()}})[0][0]"""

BEGIN = '[i for i in tokenizer("")["input_ids"] if i != tokenizer.eos_token_id] or [tokenizer.eos_token_id]'
CHAT = (
    'tokenizer.apply_chat_template([{"role": "user", "content": "BODY"}], tokenize=False, add_generation_prompt=True)'
)


def servers(description: Mapping[str, Any]) -> list[Serve]:
    """ONNX Runtime serves it; TEI does not."""
    return [Serve("ONNX Runtime", _lines(description), "python"), _tei(description["serving"])]


def _lines(description: Mapping[str, Any]) -> str:
    task, serving = description.get("task") or {}, description["serving"]
    if serving["head"] == "likelihood":
        chat = bool(serving.get("chat"))
        return TAIL.format(body=CHAT if chat else '"BODY"', begin="[]" if chat else BEGIN)
    if serving["head"] == "embedding":
        return OPEN + RUN.format(texts=[f"{task.get('query_prompt') or ''}red chair"], cut=True, found="vectors")
    texts = example(task)
    if len(texts) == 1:
        return OPEN + RUN.format(texts=list(texts), cut=True, found="logits")
    first, second = texts
    if serving["kind"] == "causal":
        note = f"# keep it within {serving['max_tokens']} tokens: cut the first part, the end holds the question\n"
        return OPEN + note + RUN.format(texts=[first + second], cut=False, found="logits")
    return OPEN + RUN.format(texts=f"[{first!r}], [{second!r}]", cut="'only_first'", found="logits")


def _tei(serving: Mapping[str, Any]) -> Serve:
    other = "sentence-transformers" if serving["head"] == "embedding" else "merged"
    return Serve(
        "TEI",
        refused="its ONNX backend pools token vectors by itself, or reads `logits`, and this graph gives what is "
        f"served under one name, `outputs`: export to {other} (a prefix or a bottleneck: to distil)",
        tried=False,
    )
