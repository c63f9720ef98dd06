"""How people serve a sentence-transformers folder: in the library, in TEI and in vLLM, line by line.

A cross-encoder reads two texts in the order that it was tuned with. Endpoints named `rerank` put the query first, so
the lines say which text goes where, and carry the words that the task puts around them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from recft.exports._base import Serve

__all__ = ["classifier_servers", "embedding_servers", "example"]

TEI, VLLM = "text-embeddings-router --model-id FOLDER --port 8080", "vllm serve FOLDER --runner pooling"
TEI_BODY, VLLM_BODY = "http://localhost:8080", "http://localhost:8000"
SHOPS = ("PRODUCT", "QUERY", "HISTORY", "ITEM")
TEI_KNOWS = "# of causal bases, TEI knows Qwen2, Qwen3, Mistral and Gemma 3; otherwise take vLLM\n"


def embedding_servers(description: Mapping[str, Any]) -> list[Serve]:
    """How a bi-encoder is served; prompts are added by name where the engine can, and written out where it cannot."""
    task = description["task"]
    query = str(task.get("query_prompt") or "")
    library = (
        "from sentence_transformers import SentenceTransformer\n"
        'model = SentenceTransformer("FOLDER")\n'
        'scores = model.similarity(model.encode_query(["red chair"]), model.encode_document(["oak desk"]))'
    )
    causal = description["serving"]["kind"] == "causal"
    tei = _posted(TEI, f"{TEI_BODY}/embed", {"inputs": ["red chair"], "prompt_name": "query"})
    vllm = _posted(VLLM, f"{VLLM_BODY}/v1/embeddings", {"model": "FOLDER", "input": [f"{query}red chair"]})
    return [
        Serve("sentence-transformers", library, "python"),
        Serve("TEI", (TEI_KNOWS if causal else "") + tei, tried=False),
        Serve("vLLM", vllm, tried=False),
    ]


def classifier_servers(description: Mapping[str, Any]) -> list[Serve]:
    """How a cross-encoder or a classifier is served."""
    texts, serving = example(description["task"]), description["serving"]
    joined = serving["kind"] == "causal"
    order = f"  # this order: {' then '.join(_capitals(texts))}" if len(texts) > 1 else ""
    library = (
        "from sentence_transformers import CrossEncoder\n"
        'model = CrossEncoder("FOLDER")\n'
        f"scores = model.predict({_python(texts, joined)}){order}"
    )
    several = len(serving["labels"]) > 1
    return [
        Serve("sentence-transformers", library, "python"),
        _tei(texts, joined, several),
        _vllm(texts, joined, several),
    ]


def example(task: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model of this task reads: one text or two, in order, capitals standing for the shop's own."""
    before, between, after = (str(task.get(part) or "") for part in ("before", "between", "after"))
    if "between" not in task:
        return (f"{before}TEXT{after}",)
    if "query_first" not in task:  # a history and what it is asked about
        return f"{before}HISTORY", f"{between}ITEM{after}"
    query, product = f"{between}QUERY{after}", f"{before}PRODUCT"
    return (query, product) if task["query_first"] else (product, query)


def _capitals(texts: tuple[str, ...]) -> list[str]:
    """What stands for the shop's own in each of the texts."""
    return [next(word for word in SHOPS if word in text) for text in texts]


def _ordered(texts: tuple[str, ...], server: str) -> str:
    """The server's line, after a warning where its field named query takes another text."""
    first, second = _capitals(texts)
    return (
        server
        if first == "QUERY"
        else f"# tuned on {first} first, {second} after it: so the fields are filled\n{server}"
    )


def _python(texts: tuple[str, ...], joined: bool) -> str:
    return repr("".join(texts)) if joined or len(texts) == 1 else f"[{texts!r}]"


def _tei(texts: tuple[str, ...], joined: bool, several: bool) -> Serve:
    if joined:
        return Serve(
            "TEI",
            refused="it knows sequence classifiers of encoders only: take vLLM or sentence-transformers",
            tried=False,
        )
    if len(texts) == 1 or several:
        inputs = texts[0] if len(texts) == 1 else [list(texts)]
        return Serve("TEI", _posted(TEI, f"{TEI_BODY}/predict", {"inputs": inputs, "raw_scores": True}), tried=False)
    body = {"query": texts[0], "texts": [texts[1]], "raw_scores": True}
    return Serve("TEI", _posted(_ordered(texts, TEI), f"{TEI_BODY}/rerank", body), tried=False)


def _vllm(texts: tuple[str, ...], joined: bool, several: bool) -> Serve:
    if joined or len(texts) == 1:
        body = {"model": "FOLDER", "input": ["".join(texts)], "use_activation": False}
        return Serve("vLLM", _posted(VLLM, f"{VLLM_BODY}/classify", body), tried=False)
    if several:
        reason = (
            "it scores two texts by one number only, and this model gives several: take TEI or sentence-transformers"
        )
        return Serve("vLLM", refused=reason, tried=False)
    body = {"model": "FOLDER", "text_1": [texts[0]], "text_2": [texts[1]]}
    return Serve("vLLM", _posted(_ordered(texts, VLLM), f"{VLLM_BODY}/score", body), tried=False)


def _posted(server: str, address: str, body: Mapping[str, Any]) -> str:
    """The server's line and one request."""
    sent = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"{server}\ncurl {address} -H 'Content-Type: application/json' \\\n  -d {sent}"
