"""The streaming merge beside `cp` of the same bytes and beside PEFT's merge_and_unload, for a 1.7B-parameter shape.

    python tests/benchmarks/merge.py --work /tmp/merge                      # about 11 GB of disk

Qwen3-1.7B's shape with random weights in bfloat16, in shards of 2 GB, and a LoRA of rank 16 on every linear layer of
the blocks. Each side runs in a process of its own, in turn, three times; every one ends with `sync`. Memory is the
process's peak (VmHWM) over what it held once its imports were done (VmRSS); the time is that of the work after the
imports. Warm: the base was read just before; cold: its pages were dropped from the cache before (posix_fadvise). The
last lines say whether both sides wrote the same tensors, and the whole result goes to WORK/merge.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recft.models.shards import SHARD_BYTES, Piece, write_shards
from recft.models.tensor_files import Planned, read, stored_in
from recft.run import silent, write_json

SHAPE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
RANK, ALPHA = 16, 32
TARGET_RATIO, TARGET_BYTES = 3.0, 2.5e9
ROUNDING = 2.0**-7
"""The distance of two neighbouring bfloat16 numbers, at most, as a share of them."""


def main() -> None:
    """Makes what is missing, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer for a quick look")
    parser.add_argument("--sides", nargs="+", default=["cp", "recft", "peft"], choices=["cp", "recft", "peft"])
    parser.add_argument("--caches", nargs="+", default=["warm", "cold"], choices=["warm", "cold"])
    parser.add_argument("--child", choices=["recft", "peft"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work.resolve()
    if given.child:
        torch.set_num_threads(given.threads)
        print(json.dumps({"recft": merge_recft, "peft": merge_peft}[given.child](work)))
        return
    make_base(work / "base", given.layers)
    make_adapter(work / "adapter", given.layers)
    runs: list[dict[str, Any]] = []
    for cache in given.caches:
        for number in range(given.rounds):
            for side in given.sides:
                settle(work, cache)
                shutil.rmtree(work / side, ignore_errors=True)
                (work / side).mkdir()
                found = copy(work) if side == "cp" else child(work, side, given.threads)
                runs.append({"side": side, "cache": cache, "round": number, **found})
                print(runs[-1], file=sys.stderr, flush=True)
    result = {"threads": given.threads, "layers": given.layers, "runs": runs, "table": table(runs)}
    if {"recft", "peft"} <= set(given.sides):
        result["same"] = same(work)
    write_json(work / "merge.json", result)
    show(result)


def make_base(folder: Path, layers: int) -> None:
    """Writes the base, a block of random numbers over and over: only its size matters."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**{**SHAPE, "num_hidden_layers": layers, "dtype": "bfloat16"})
    if (folder / "config.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    block = (torch.randn((1 << 22) + 3, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def make(names: Any) -> Any:
        for name in names:
            size = torch.Size(shapes[name]).numel()
            yield {name: block.repeat(-(-size // len(block)))[:size].reshape(shapes[name])}

    pieces = [Piece(name, (Planned(name, torch.bfloat16, shape),)) for name, shape in shapes.items()]
    write_shards(folder, pieces, make, "", SHARD_BYTES, silent)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)


def make_adapter(folder: Path, layers: int) -> None:
    """Writes a LoRA of every linear layer of the blocks, as PEFT keeps one."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    hidden, inner = int(SHAPE["hidden_size"]), int(SHAPE["intermediate_size"])
    queries, keys = (int(SHAPE[f"num_{kind}_heads"]) * int(SHAPE["head_dim"]) for kind in ("attention", "key_value"))
    sizes = {
        f"self_attn.{name}_proj": size
        for name, size in zip("qkv", [(hidden, queries), *[(hidden, keys)] * 2], strict=True)
    }
    sizes |= {"self_attn.o_proj": (queries, hidden), "mlp.down_proj": (inner, hidden)}
    sizes |= {f"mlp.{name}_proj": (hidden, inner) for name in ("gate", "up")}
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, (n_in, n_out) in sizes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, n_in, generator=generator) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(n_out, RANK, generator=generator) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    names = [name.rpartition(".")[2] for name in sizes]
    LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM").save_pretrained(str(folder))


def settle(work: Path, cache: str) -> None:
    """Waits for the disk, and leaves the base's bytes in the cache or outside it."""
    os.sync()
    for path in sorted((work / "base").glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            if cache == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass


def copy(work: Path) -> dict[str, Any]:
    """Seconds that `cp` and `sync` take."""
    start, used = time.perf_counter(), os.times().children_system
    subprocess.run(["cp", "-r", f"{work / 'base'}/.", str(work / "cp")], check=True)
    os.sync()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_seconds": os.times().children_system - used, "peak_bytes": None}


def child(work: Path, side: str, threads: int) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--work", str(work), "--threads", str(threads), "--child", side]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(work: Callable[[], None]) -> dict[str, Any]:
    """Seconds of `work` with the `sync` after it, and the process's peak over what it holds now."""
    before = memory("VmRSS")
    start, used = time.perf_counter(), time.process_time()
    work()
    os.sync()
    seconds = time.perf_counter() - start
    used = time.process_time() - used
    peak = memory("VmHWM") - before
    return {"seconds": seconds, "cpu_seconds": used, "peak_bytes": peak, "imports_bytes": before}


def memory(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def merge_recft(work: Path) -> dict[str, Any]:
    """The streaming merge into bfloat16."""
    import bitsandbytes  # noqa: F401
    import safetensors.torch
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    from recft import registry
    from recft.models.merging import Merge
    from recft.schema import ModelSettings

    def merge() -> None:
        config = json.loads((work / "adapter" / "adapter_config.json").read_text())
        tensors = safetensors.torch.load_file(work / "adapter" / "adapter_model.safetensors")
        change = partial(registry.load("recft.methods", "lora").merge, config, tensors)
        model = ModelSettings(base=str(work / "base"), compute_dtype="bfloat16")
        Merge(model, "likelihood", 1, "original", change, {}, identity="benchmark").write(work / "recft", "bfloat16")

    return measured(merge)


def merge_peft(work: Path) -> dict[str, Any]:
    """PEFT's way: the whole model in memory."""
    import bitsandbytes  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def merge() -> None:
        model = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, str(work / "adapter")).merge_and_unload()
        merged.save_pretrained(work / "peft", max_shard_size="2GB")

    return measured(merge)


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians by side and cache, the time as a multiple of cp's."""
    rows = []
    for cache, side in dict.fromkeys((run["cache"], run["side"]) for run in runs):
        mine = [run for run in runs if (run["cache"], run["side"]) == (cache, side)]
        seconds = statistics.median(run["seconds"] for run in mine)
        peaks = [run["peak_bytes"] for run in mine if run["peak_bytes"]]
        row = {"cache": cache, "side": side, "seconds": seconds, "peak_bytes": statistics.median(peaks or [0])}
        row["cpu_seconds"] = statistics.median(run["cpu_seconds"] for run in mine)
        copied = [run["seconds"] for run in runs if (run["cache"], run["side"]) == (cache, "cp")]
        rows.append({**row, "times_cp": seconds / statistics.median(copied) if copied else None})
    return rows


def same(work: Path) -> dict[str, Any]:
    """Whether both sides have the same tensors, up to a rounding of what goes into them."""
    ours, theirs, base = (
        {name: stored for path in (work / side).glob("*.safetensors") for name, stored in stored_in(path).items()}
        for side in ("recft", "peft", "base")
    )
    furthest, equal, moved, total = 0.0, 0, 0, 0
    for name, stored in ours.items():
        one, other, before = (read(part, torch.float32) for part in (stored, theirs[name], base[name]))
        scale = torch.maximum(torch.maximum(one.abs(), other.abs()), before.abs()).clamp(min=1e-30)
        furthest = max(furthest, float(((one - other).abs() / scale).max()))
        equal, moved = equal + int((one == other).sum()), moved + int((one != before).sum())
        total += one.numel()
    return {
        "names": set(ours) == set(theirs),
        "furthest": furthest,
        "within": furthest <= ROUNDING,
        "equal": equal / total,
        "moved": moved / total,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table and whether the targets are met."""
    print(f"{'cache':6}{'side':8}{'seconds':>9}{'x cp':>7}{'cpu s':>8}{'peak over imports':>20}")
    for row in result["table"]:
        times = "" if row["times_cp"] is None else f"{row['times_cp']:.2f}"
        peak = f"{row['peak_bytes'] / 1e9:.2f} GB" if row["peak_bytes"] else "-"
        print(f"{row['cache']:6}{row['side']:8}{row['seconds']:>9.2f}{times:>7}{row['cpu_seconds']:>8.1f}{peak:>20}")
    for row in result["table"]:
        if row["side"] == "recft" and row["times_cp"] is not None:
            limits = f"{TARGET_RATIO:g} x cp and {TARGET_BYTES / 1e9:g} GB"
            met = row["times_cp"] <= TARGET_RATIO and row["peak_bytes"] <= TARGET_BYTES
            print(f"{row['cache']}: at most {limits}: {'met' if met else 'missed'}")
    if "same" in result:
        found = result["same"]
        print(
            f"tensors: same names {found['names']}, {found['moved']:.0%} of the base's numbers moved, "
            f"{found['equal']:.2%} equal, furthest {found['furthest']:.2e} "
            f"of a weight (one rounding {ROUNDING:.2e}): "
            f"{'same' if found['within'] and found['names'] else 'DIFFERENT'}"
        )


if __name__ == "__main__":
    main()
