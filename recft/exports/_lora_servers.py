"""How people serve an adapter over its base: in PEFT, and in vLLM where that takes it.

vLLM's rules, from `vllm/lora/peft_helper.py` and `vllm/config/lora.py` of 2026: a plain or rank-stabilised LoRA
without DoRA, biases or `modules_to_save`, of a rank up to `--max-lora-rank`, which takes a few values only; and a model
class that supports LoRA, which those of the causal bases do and the encoders' do not. A k-bit base is quantized while
it is loaded, to nf4 with double quantization and to nothing else.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from recft.exports._base import Serve
from recft.models.base import PUBLISHED

__all__ = ["RANKS", "in_peft", "in_vllm"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""

BITS: Mapping[str, str] = {
    "int8": "load_in_8bit=True",
    "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4"',
    "fp4": 'load_in_4bit=True, bnb_4bit_quant_type="fp4"',
}


def in_peft(description: Mapping[str, Any]) -> Serve:
    """How stock PEFT loads the adapter over its base."""
    from recft.models.base import AUTO_CLASS

    model, serving = description["base"]["model"], description["serving"]
    name = AUTO_CLASS[serving["carrier"]]
    options = [repr(_base(description))]
    if serving["carrier"] == "classifier":
        options.append(f"num_labels={serving['n_outputs']}")
    extra = ""
    if model["quantization"] != "none":
        options.append("quantization_config=k_bit")
        extra = f"k_bit = transformers.BitsAndBytesConfig({BITS[model['quantization']]})\n"
    lines = (
        f"import peft, transformers\n{extra}"
        f"base = transformers.{name}.from_pretrained({', '.join(options)})\n"
        'model = peft.PeftModel.from_pretrained(base, "FOLDER").eval()'
    )
    return Serve("PEFT", lines, "python")


def in_vllm(description: Mapping[str, Any]) -> Serve:
    """How vLLM puts the adapter on its base, or why it does not."""
    if refused := _refused(description):
        return Serve("vLLM", refused=refused, tried=False)
    model, serving, name = description["base"]["model"], description["serving"], description["name"]
    words = ["vllm", "serve", _base(description)]
    words += ["--revision", model["revision"]] if model.get("revision") else []
    again = ""
    if model["quantization"] == "nf4":
        words += ["--quantization", "bitsandbytes"]
        again = (
            "# vLLM quantizes the base anew, with double quantization: near the certified weights, not equal to them\n"
        )
    if serving["head"] == "embedding":
        pooling = {"pooling_type": serving["pooling"].upper()}
        words += ["--runner", "pooling", "--pooler-config", json.dumps(pooling)]
    elif serving["head"] == "answers":
        words += ["--logprobs-mode", "processed_logits"]
    words += ["--enable-lora", "--max-lora-rank", str(_room(_rank(description["method"]))), "--lora-modules"]
    path, body = _request(description)
    lines = (
        f"{again}{shlex.join(words)} {shlex.quote(name)}=FOLDER\n"
        f"curl http://localhost:8000{path} -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps({'model': name, **body}, ensure_ascii=False))}"
    )
    return Serve("vLLM", lines, tried=False)


def _refused(description: Mapping[str, Any]) -> str:
    """Why vLLM refuses the adapter, and what to take instead; empty where it does not."""
    method, serving = description["method"], description["serving"]
    quantization = description["base"]["model"]["quantization"]
    if "rank" not in method:
        return f"vLLM puts LoRAs on a base, and {method['name']} is none: take onnx, which carries it"
    reason = ""
    if method.get("dora"):
        reason = "vLLM has no DoRA"
    elif serving["kind"] == "encoder":
        reason = "vLLM puts LoRAs on causal bases only, not on encoders"
    elif serving["carrier"] == "classifier":
        reason = "vLLM takes no trained head (modules_to_save) beside a LoRA"
    elif quantization in ("int8", "fp4"):
        reason = f"vLLM quantizes a base to nf4 only, and this adapter was tuned over {quantization}"
    elif _rank(method) > RANKS[-1]:
        reason = f"vLLM takes ranks up to {RANKS[-1]}, and this is {_rank(method)}"
    return f"{reason}: take merged" if reason else ""


def _rank(method: Mapping[str, Any]) -> int:
    """The rank of the plain LoRA, or, where layers are pruned while tuning, the most that it can be."""
    most = method["rank"] * 3 // 2 if "initial_rank" in method else method["rank"]
    return int(method.get("initial_rank") or most)


def _room(rank: int) -> int:
    return next(room for room in RANKS if room >= rank)


def _base(description: Mapping[str, Any]) -> str:
    base = str(description["base"]["model"]["base"])
    return PUBLISHED.get(base, base)


def _request(description: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a request goes, and what it says besides the adapter's name."""
    task, serving = description["task"], description["serving"]
    if serving["head"] == "embedding":
        return "/v1/embeddings", {"input": [f"{task.get('query_prompt') or ''}red chair"]}
    if serving["head"] == "likelihood" and serving["chat"]:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": "TEXT"}]}
    words = {part: str(task.get(part) or "") for part in ("before", "between", "after")}
    prompt = "{before}TEXT{between}ITEM{after}" if "between" in task else "{before}TEXT{after}"
    body: dict[str, Any] = {"prompt": prompt.format(**words)}
    if serving["head"] == "answers":
        # The answers' logits at the last position: only they are let through, and all of them are shown.
        ids = list(serving["label_ids"])
        body |= {"max_tokens": 1, "temperature": 0, "allowed_token_ids": ids, "logprobs": len(ids)}
    return "/v1/completions", body
