"""Tiny bases that any test may load from disk: a BERT and a Llama with tokenizers of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# An example that took long says that the machine was busy, not that the code is wrong.
settings.register_profile("recft", deadline=None)
settings.load_profile("recft")

# What the tokenizers know: the longer words stay whole, all else falls into pieces or bytes.
WORDS = (
    *("red", "leather", "office", "chair", "with", "wheels,", "oak", "desk", "lamp", "usb", "cable", "black", "paper"),
    *("yes", "no", "Yes", "No", "history:", "item:", "candidate:", "answer:"),
    *("打印机", "墨盒", "黑色", "桌子", "椅子", "数据线"),
)

# In the style of Qwen and Llama 3: an engine that applies it serves other scores.
CHAT_TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of two layers, random weights, and a WordPiece tokenizer that knows Chinese."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    tokenizer = BertTokenizer(tokenizer_object=_word_pieces())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("bases") / "tiny-bert"
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, tied embeddings, grouped heads, and a byte-level BPE tokenizer.

    As Llama 3's, the tokenizer has no padding token, puts a begin token before each of a pair, and has a template
    for chats.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_pairs(), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _word_pieces() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = sorted(set("".join(WORDS)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,:!"))
    pieces = [*special, *single, *(f"##{character}" for character in single)]
    # Normalized text is lower case, and Chinese characters stand alone: longer Chinese words are never met.
    pieces += sorted({word.lower() for word in WORDS if word.isascii()} - set(pieces))
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _byte_pairs() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # With a space before and without: both forms of the answers become one token.
    tokenizer.train_from_iterator([form for word in WORDS for form in (word, f" {word}")] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer
