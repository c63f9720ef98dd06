"""A real llama.cpp server, over an exported file, answers as the tuned model does."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import registry
from recft.models.encoder import encode

pytest.importorskip("gguf")

N_QUERIES = 200
PATIENCE_SECONDS = 60
NEEDED = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")


def command(model: Path, port: int, pooling: str) -> list[str]:
    """The server that is here; skips where there is none."""
    if (binary := shutil.which("llama-server")) is not None:
        options = ["--embedding", "--pooling", pooling, "-c", "256", "--port", str(port), "--host", "127.0.0.1"]
        return [binary, "-m", str(model), *options, "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"there is no llama-server, and 'llama-cpp-python[server]' lacks {', '.join(missing)}")
    options = ["--embedding", "true", "--n_ctx", "256", "--port", str(port), "--host", "127.0.0.1"]
    # Number 0 is float32: 16 bits, of keys and values too, are the default.
    return [sys.executable, "-m", "llama_cpp.server", "--model", str(model), *options, "--type_k", "0", "--type_v", "0"]


def asked(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.loads(answer.read())


@contextmanager
def running(model: Path, pooling: str, log: Path) -> Iterator[str]:
    """The address of a server over the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as out:
        process = subprocess.Popen(command(model, port, pooling), stdout=out, stderr=subprocess.STDOUT)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    asked(f"{address}/v1/models")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert process.poll() is None, log.read_text(errors="replace")
                    assert time.monotonic() < end, log.read_text(errors="replace")
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_server_embeds_as_the_tuned_model(pooling: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case(f"llama-{pooling}", dtype="float32")
    words = ("red", "黑色", "椅子", "lamp", "数据线", "🎒 oak", "desk")
    queries = [f"{words[n % 7]} {words[n // 7 % 7]} {n}" for n in range(N_QUERIES)]
    serving = replace(made.serving, max_tokens=128)
    (tmp_path / "out").mkdir()
    registry.load("recft.exports", "gguf").write(replace(made.source, serving=serving), tmp_path / "out")
    model = made.source.tuned()
    model.serving = serving
    expected = encode(model, made.source.tokenizer, queries)
    with running(tmp_path / "out" / "model.gguf", pooling, tmp_path / "log") as address:
        answer = asked(f"{address}/v1/embeddings", {"input": queries, "model": "model"})
    found = np.array([row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(found) == N_QUERIES
