"""What the two GGUF targets share: opening a file in its engine, checking what it says of itself, how it is served."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.exports._base import Engine, Serve
from recft.exports._engine import open_tokenizer, require
from recft.registry import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recft.exports._gguf_back import ReadBack
    from recft.exports._gguf_tokenizer import Vocabulary
    from recft.exports._llama_cpp import LlamaCpp
    from recft.exports._rows import Rows
    from recft.models.text_model import Serving

__all__ = ["CAUSAL_ONLY", "EXTRA", "MODELFILE", "NO_CLASSIFIER", "open_file", "servers", "vocabulary_for"]

EXTRA = "gguf"
MODELFILE = "Modelfile"
DTYPES = {"0": "float32", "1": "float16", "7": "int8", "32": "bfloat16"}
"""GGUF's numbers of file types (`general.file_type`)."""

CAUSAL_ONLY = Refusal(
    when={"kind": "encoder"},
    reason="recft writes GGUF for causal models",
    fix="export to onnx or sentence-transformers",
)
NO_CLASSIFIER = Refusal(
    when={"head": "classifier"},
    reason="llama.cpp has no place for a classifier's head over a causal base",
    fix="export to merged or onnx",
)


def has_llama_cpp() -> bool:
    """Whether llama.cpp's Python binding is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def vocabulary_for(tokenizer: PreTrainedTokenizerBase, rows: int, serving: Serving) -> Vocabulary:
    """The tokenizer's tables, so that an engine puts around a text what the tuned model was given.

    A chat's template may write no begin token where the tokenizer would: then no engine may add one.
    """
    from recft.exports._gguf_tokenizer import vocabulary_of

    found = vocabulary_of(tokenizer, rows, embeds=serving.head == "embedding")
    if not serving.chat:
        return found
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return replace(found, begins=found.begins and str(chat).startswith(str(tokenizer.bos_token)))


def open_file(
    folder: Path,
    path: Path,
    serving: Serving,
    adapter: Path | None = None,
    dtype: str = "",
    scratch: Path | None = None,
) -> Engine:
    """A GGUF file in llama.cpp, or read back by transformers where that is not installed.

    Args:
        folder: of the artefact: its tokenizer's files.
        path: of the model's file.
        serving: how texts become numbers.
        adapter: a LoRA's file, over the model.
        dtype: that the artefact was written in; the model's where empty.
        scratch: a folder that is removed when the engine is.

    Raises:
        ExportError: the engine refuses the file.
    """
    tokenizer = open_tokenizer(folder)
    if has_llama_cpp():
        import llama_cpp

        from recft.exports._llama_cpp import LlamaCpp

        engine: LlamaCpp | ReadBack = LlamaCpp(path, serving, adapter)
        tokens = getattr(engine, "tokens", None)
        name, version = "llama.cpp", f"llama-cpp-python {llama_cpp.__version__}"
    else:
        require((EXTRA,), EXTRA)
        import transformers

        from recft.exports._gguf_back import ReadBack

        engine, tokens = ReadBack(path, serving, tokenizer, adapter), None
        name, version = "transformers, reading the GGUF back: llama.cpp is not installed", transformers.__version__
    if scratch is not None:
        weakref.finalize(engine, shutil.rmtree, scratch, ignore_errors=True)
    own = _own(engine.said, tokenizer, serving, folder / MODELFILE)
    dtype = dtype or DTYPES.get(engine.said("general.file_type"), "unknown")
    return Engine(name, version, engine.encode, tokenizer, dtype, tokens=tokens, own=own)


def _own(
    said: Callable[[str], str], tokenizer: PreTrainedTokenizerBase, serving: Serving, modelfile: Path
) -> Callable[[Rows], tuple[dict[str, Any], list[str]]]:
    """What the file says of itself, and whether its templates are the tokenizer's."""

    def check(_: Rows) -> tuple[dict[str, Any], list[str]]:
        from recft.exports._gguf_tokenizer import chat_template
        from recft.exports._modelfile import modelfile_template

        architecture = said("general.architecture")
        figures = {
            "architecture": architecture,
            "quantization": DTYPES.get(said("general.file_type"), said("general.file_type")),
            "context_tokens": int(said(f"{architecture}.context_length") or 0),
            "tokenizer": f"{said('tokenizer.ggml.model')} ({said('tokenizer.ggml.pre')})",
        }
        wrong = []
        if said("tokenizer.chat_template") != chat_template(tokenizer):
            wrong.append("the chat template in the GGUF file is not the tokenizer's (export again)")
        begins = said("tokenizer.ggml.add_bos_token").lower() == "true"
        written = modelfile.read_text(encoding="utf-8") if modelfile.is_file() else ""
        if modelfile_template(tokenizer, serving, begins) not in written:
            wrong.append("the template in the Modelfile is not the tokenizer's (export again)")
        return figures, wrong

    return check


def servers(description: Mapping[str, Any], model: str) -> list[Serve]:
    """How a GGUF artefact is served: `model` are llama-server's options that name it."""
    serving, name = description["serving"], str(description["name"])
    embeds = serving["head"] == "embedding"
    most = int(serving["max_tokens"])
    llama = f"llama-server {model} -c {most} --port 8080"
    if embeds:
        # A whole text is pooled at once: the batch holds the longest.
        llama += f" --embedding --pooling {serving['pooling']} -b {most} -ub {most}"
        call = _posted("http://localhost:8080/v1/embeddings", {"input": ["TEXT"]})
        ollama = f"ollama create {name} -f FOLDER/Modelfile\n" + _posted(
            "http://localhost:11434/api/embed", {"model": name, "input": ["TEXT"]}
        )
    elif serving.get("chat"):
        messages = [{"role": "user", "content": "TEXT"}]
        call = _posted("http://localhost:8080/v1/chat/completions", {"messages": messages, "temperature": 0})
        llama += " --jinja"
        ollama = f"ollama create {name} -f FOLDER/Modelfile\nollama run {name} 'TEXT'"
    else:
        body = {"prompt": "TEXT", "n_predict": 1, "n_probs": 20, "temperature": 0}
        call = _posted("http://localhost:8080/completion", body)
        ollama = f"ollama create {name} -f FOLDER/Modelfile\nollama run {name} 'TEXT'"
    return [Serve("llama.cpp", f"{llama}\n{call}", tried=False), Serve("Ollama", ollama, tried=False)]


def _posted(address: str, body: Mapping[str, Any]) -> str:
    sent = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {address} -H 'Content-Type: application/json' \\\n  -d {sent}"
