"""llama.cpp through its Python binding: a GGUF file, texts in, K numbers out.

On the CPU, with float32 keys and values, one text at a time: nothing but the file decides what comes out. Texts that
begin alike share what was computed for their beginning.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ExportError, problem
from recft.exports._engine import unreadable
from recft.exports._gguf import POOLING

if TYPE_CHECKING:
    import numpy as np

    from recft.models.text_model import Serving
    from recft.models.tokens import Text

__all__ = ["LlamaCpp"]

MOST_AT_ONCE = 512
"""Tokens a step: the logits of a step are all kept."""

FLOAT32 = 0
"""ggml's number for the type."""

ERROR_LEVEL = 4
"""Of llama.cpp's own levels: why it refuses something."""

_errors: deque[str] = deque(maxlen=20)
_silencer: Any = None


def _silence() -> None:
    """llama.cpp talks to stderr by itself; of what it says only errors are kept. Holds for the whole process."""
    global _silencer  # C keeps its address: it must live as long as the process
    import llama_cpp

    if _silencer is None:

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def hear(level: int, text: bytes, _: Any) -> None:
            if level == ERROR_LEVEL:
                _errors.append(text.decode("utf-8", "replace").strip())

        _silencer = hear
        llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_silencer, ctypes.c_void_p(0))


def _release(model: Any, context: Any, adapter: Any, batch: Any) -> None:
    import llama_cpp

    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    if adapter is not None:
        llama_cpp.llama_adapter_lora_free(adapter)
    llama_cpp.llama_model_free(model)


class LlamaCpp:
    """A GGUF file in llama.cpp.

    Attributes:
        model: llama.cpp's own handle.
    """

    def __init__(self, path: Path, serving: Serving, adapter: Path | None = None) -> None:
        """Loads the file.

        Raises:
            ExportError: llama.cpp refuses it.
        """
        import llama_cpp

        self._api, self._serving = llama_cpp, serving
        _silence()
        _errors.clear()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        # Weights laid out anew for matrix units: with 8-bit rows as short as a test's, llama.cpp 0.3.36 crashes on AMX.
        settings.use_extra_bufts = False
        self.model = path.is_file() and llama_cpp.llama_model_load_from_file(os.fsencode(path), settings)
        if not self.model:
            raise unreadable(path.parent, OSError(_last_error(f"there is no readable {path.name}")))
        self._vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self._at_once = serving.max_tokens if self._embeds else min(serving.max_tokens, MOST_AT_ONCE)
        self._context = llama_cpp.llama_init_from_model(self.model, self._settings())
        if not self._context:
            raise unreadable(path.parent, OSError(_last_error("it makes no context")))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self._at_once, 0, 1)
        loaded = self._adapt(adapter) if adapter else None
        weakref.finalize(self, _release, self.model, self._context, loaded, self._batch)
        self._held: list[int] = []

    @property
    def _embeds(self) -> bool:
        return self._serving.head == "embedding"

    def _settings(self) -> Any:
        import torch

        settings = self._api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max(self._serving.max_tokens, 1)
        settings.n_batch = settings.n_ubatch = self._at_once
        settings.n_seq_max = 1
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.type_k = settings.type_v = FLOAT32
        settings.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.offload_kqv = settings.op_offload = False
        if self._embeds:
            settings.embeddings = True
            settings.pooling_type = getattr(self._api, f"LLAMA_POOLING_TYPE_{POOLING[self._serving.pooling]}")
        return settings

    def _adapt(self, path: Path) -> Any:
        api = self._api
        adapter = path.is_file() and api.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise unreadable(path.parent, OSError(_last_error(f"there is no readable {path.name}")))
        adapters, scales = (api.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if api.llama_set_adapters_lora(self._context, adapters, 1, scales):
            raise unreadable(path.parent, OSError(_last_error("the adapter does not fit the base")))
        return adapter

    def said(self, key: str) -> str:
        """The file's value of a key as text; empty where it has none."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._api.llama_model_meta_val_str(self.model, key.encode(), buffer, size)
            if length < size:
                return buffer.value.decode("utf-8", "replace") if length >= 0 else ""
            size = length + 1

    def _ids(self, text: str, special: bool) -> list[int]:
        raw = text.encode("utf-8")
        size = len(raw) + 8
        found = (self._api.llama_token * size)()
        length = self._api.llama_tokenize(self._vocabulary, raw, len(raw), found, size, special, True)
        return list(found[:length])

    def tokens(self, texts: Sequence[Text]) -> list[list[int]]:
        """llama.cpp's own token ids of each text, cut to `max_tokens`; a (body, tail) is a likelihood's."""
        return [self._single(text) if isinstance(text, str) else [*chain(*self._pair(text))] for text in texts]

    def _single(self, text: str) -> list[int]:
        found, most = self._ids(text, special=True), self._serving.max_tokens
        if len(found) <= most:
            return found
        end = [found[-1]] if self._api.llama_vocab_get_add_eos(self._vocabulary) else []
        return found[: most - len(end)] + end

    def _pair(self, text: tuple[str, str]) -> tuple[list[int], list[int]]:
        """What is given and what is judged: the tail with its end token."""
        if self._serving.head != "likelihood":
            raise ExportError(
                problem(
                    "export",
                    "texts of two segments",
                    "llama.cpp reads one text",
                    "take a base whose tokenizer has no separator token, or export to merged or onnx",
                )
            )
        end, most = int(self._api.llama_vocab_eos(self._vocabulary)), self._serving.max_tokens
        begin = [token for token in self._ids("", special=True) if token != end] or [end]
        tail = [*self._ids(text[1], special=False)[: most * 3 // 4], end]
        begin = [] if self._serving.chat else begin
        body = self._ids(text[0], special=False)
        return [*begin, *body[max(0, len(body) - (most - len(begin) - len(tail))) :]], tail

    def encode(self, texts: Sequence[Text]) -> np.ndarray:
        """(N, K) float32, as `models.text_model.encode` gives for the tuned model."""
        import numpy as np

        if self._serving.head == "likelihood":
            split = [self._pair(text) for text in texts]  # type: ignore[arg-type]
            rows, starts = [body + tail for body, tail in split], [len(body) for body, _ in split]
        else:
            rows = self.tokens(texts)
            starts = [len(row) for row in rows]
        found: list[Any] = [None] * len(rows)
        for row in sorted(range(len(rows)), key=rows.__getitem__):  # equal beginnings one after the other
            found[row] = self._embedded(rows[row]) if self._embeds else self._judged(rows[row], starts[row])
        return np.array(found, np.float32) if found else np.zeros((0, 0), np.float32)

    def _embedded(self, row: list[int]) -> np.ndarray:
        import numpy as np

        size = self._api.llama_model_n_embd(self.model)
        if not row:
            return np.zeros(size, np.float32)
        self._forget(0)
        self._step(row, 0, outputs=range(len(row)))
        vector = np.ctypeslib.as_array(self._api.llama_get_embeddings_seq(self._context, 0), (size,)).copy()
        return vector / np.linalg.norm(vector) if self._serving.normalize else vector

    def _judged(self, row: list[int], start: int) -> list[float]:
        """The answers' logits after the last token, or log p of the tokens from `start` on and their number."""
        import numpy as np

        first = max(min(start, len(row)) - 1, 0)
        shared = next((n for n, (a, b) in enumerate(zip(row, self._held, strict=False)) if a != b), None)
        shared = min(len(row), len(self._held)) if shared is None else shared
        at = min(shared, first)
        self._forget(at)
        total, logits = 0.0, np.zeros(0, np.float32)
        while at < len(row):
            part = row[at : at + self._at_once]
            wanted = range(max(first - at, 0), len(part))
            self._step(part, at, wanted)
            for place in wanted:
                logits = self._logits(place)
                if self._serving.head == "likelihood" and (following := at + place + 1) < len(row):
                    wide = logits.astype(np.float64)
                    top = wide.max()
                    total += float(wide[row[following]] - top - np.log(np.exp(wide - top).sum()))
            at += len(part)
        self._held = row
        if self._serving.head == "likelihood":
            return [total, float(len(row) - start)]
        return [float(logits[label]) for label in self._serving.label_ids]

    def _logits(self, place: int) -> np.ndarray:
        import numpy as np

        size = self._api.llama_vocab_n_tokens(self._vocabulary)
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, place), (size,)).copy()

    def _forget(self, start: int) -> None:
        self._held = self._held[:start]
        self._api.llama_memory_seq_rm(self._memory, 0, start, -1)

    def _step(self, row: Sequence[int], start: int, outputs: range) -> None:
        batch = self._batch
        batch.n_tokens = len(row)
        for place, token in enumerate(row):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place in outputs
        if code := self._api.llama_decode(self._context, batch):
            self._held = []
            raise ExportError(
                problem(
                    "llama.cpp",
                    f"it stopped with {code} ({_last_error('no reason given')})",
                    "it reads every text",
                    "export again, or export to merged",
                )
            )


def _last_error(otherwise: str) -> str:
    return _errors[0] if _errors else otherwise
