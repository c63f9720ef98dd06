"""What a GGUF export holds: the Modelfile's template, metadata, refusals; and that what is tampered with is caught."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import TemplateError

from recft import registry
from recft.errors import ExportError
from recft.exports._base import Opening
from recft.exports._gguf import layout_of
from recft.exports._gguf_engine import has_llama_cpp
from recft.exports._modelfile import Turns, turns_of

gguf = pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed")

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = '<<SYS>>' + messages[0].content + '<</SYS>>' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {% if loop.first %}{{ system }}{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    '{"{{ m.role }}": "{{ m.content }}"}{{ "" }}{% endfor %}{{ "{{reply" if add_generation_prompt }}'
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}"
SHOUTED = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}"
PLAIN = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TEMPLATES = {"chatml": CHATML, "inst": INST, "no-system": NO_SYSTEM, "plain": PLAIN}

USER, REPLY = {"role": "user", "content": "红色 椅子 {{ x }}"}, {"role": "assistant", "content": 'say "no"\n\nor { yes'}
SYSTEM, LAST = {"role": "system", "content": "Be brief. 🎒"}, {"role": "user", "content": "<again>"}
CHATS = [
    [USER],
    [USER, REPLY, LAST],
    [SYSTEM, USER],
    [SYSTEM, USER, REPLY, LAST],
    [SYSTEM, USER, REPLY, LAST, REPLY, USER],
]


def go(template: str, messages: Sequence[dict[str, str]]) -> str:
    """The template as Go's text/template would write it: a slow reading of the few actions that are used."""
    pieces = re.split(r"(\{\{(?:[^\"}]|\"(?:\\.|[^\"\\])*\"|\}(?!\}))*\}\})", template)
    out, _ = _run([piece for piece in pieces if piece], 0, messages, None)
    return out


def _run(pieces: list[str], at: int, messages: Sequence[dict[str, str]], number: int | None) -> tuple[str, int]:
    """Text up to the matching `end` or `else`, and its place."""
    out = []
    while at < len(pieces):
        piece = pieces[at]
        action = piece[2:-2].strip() if piece.startswith("{{") else None
        if action is None:
            out.append(piece)
        elif action.startswith('"'):
            out.append(json.loads(action))
        elif action == "$m.Content":
            out.append(messages[number or 0]["content"])
        elif action == "range $i, $m := .Messages":
            ends = {at}
            for place in range(len(messages)):
                text, end = _run(pieces, at + 1, messages, place)
                out.append(text)
                ends.add(end)
            at = max(ends)
        elif action.startswith("if "):
            done = False
            while True:
                holds = not done and action is not None and _holds(action.removeprefix("else "), messages, number or 0)
                text, at = _run(pieces, at + 1, messages, number)
                out.append(text if holds else "")
                done = done or holds
                action = pieces[at][2:-2].strip()
                if action == "end":
                    break
        elif action == "end" or action.startswith("else "):
            return "".join(out), at
        else:
            raise AssertionError(action)
        at += 1
    return "".join(out), at


def _holds(action: str, messages: Sequence[dict[str, str]], number: int) -> bool:
    def value(word: str) -> Any:
        words = {"$i": number, "$m.Role": messages[number]["role"]}
        return words[word] if word in words else json.loads(word)

    text = action.removeprefix("if ").replace("(index $.Messages 0).Role", json.dumps(messages[0]["role"]))
    both = re.fullmatch(r"(and|or) \((.*)\) \((.*)\)", text)
    parts = [part.split(" ") for part in ([both[2], both[3]] if both else [text])]
    found = [(value(left) == value(right)) == (kind == "eq") for kind, left, right in parts]
    return any(found) if both and both[1] == "or" else all(found)


def tokenizer_with(template: str, tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_go_template_writes_what_jinja_writes(name: str, begins: bool, tiny_llama: Path) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name], tiny_llama)
    turns = turns_of(tokenizer, begins)
    assert turns is not None
    compared = 0
    for chat in CHATS:
        try:
            expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            assert name == "no-system"
            continue
        # The engine's own begin token stands where the template's stood.
        text = go(turns.go(), chat)
        assert ("<s>" + text if begins and name == "inst" else text) == expected
        assert turns.text(chat) == text
        compared += 1
    assert compared >= 2
    assert '"""' not in turns.go()


@pytest.mark.parametrize(
    "template", [NUMBERED, SHOUTED, "{{ messages }}", "{{ nothing.at.all }}", "{{ raise_exception('no') }}"]
)
def test_templates_that_go_cannot_say_are_left_out(
    template: str, tiny_llama: Path, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    assert turns_of(tokenizer_with(template, tiny_llama), begins=False) is None


def chat_case(make_case: Callable[..., Any], template: str) -> Any:
    made = make_case("llama-answers", dtype="float32")
    tokenizer = made.source.tokenizer
    tokenizer.chat_template = template
    serving = replace(made.serving, head="likelihood", carrier="likelihood", labels=(), label_ids=(), chat=True)
    return replace(made, source=replace(made.source, serving=serving), serving=serving)


def write(made: Any, folder: Path, target: str = "gguf") -> Any:
    folder.mkdir()
    member = registry.load("recft.exports", target)
    member.write(made.source, folder)
    return member


def test_modelfile_carries_the_chat_format(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = chat_case(make_case, CHATML)
    made.source.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    with pytest.raises(ExportError, match="tokens for"):
        write(made, tmp_path / "more")  # a token without a row
    made = chat_case(make_case, INST)
    write(made, tmp_path / "out")
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()
    turns = turns_of(made.source.tokenizer, begins=True)
    assert turns is not None
    assert lines[1:] == [
        "FROM ./model.gguf",
        f'TEMPLATE """{turns.go()}"""',
        'PARAMETER stop "</s>"',
        "PARAMETER num_ctx 128",
    ]
    made = chat_case(make_case, NUMBERED)
    write(made, tmp_path / "numbered")
    text = (tmp_path / "numbered" / "Modelfile").read_text(encoding="utf-8")
    assert "TEMPLATE" not in text
    assert "Ollama reads the one in the GGUF file" in text


def test_modelfile_of_plain_prompts_puts_nothing_around_them(make_case: Callable[..., Any], tmp_path: Path) -> None:
    write(make_case("llama-answers"), tmp_path / "out")
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_file_holds_the_keys_and_types(dtype: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-mean", dtype=dtype)
    write(made, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    keys = {key: field.contents() for key, field in reader.fields.items()}
    assert keys["llama.pooling_type"] == gguf.PoolingType.MEAN
    assert keys["llama.rope.freq_base"] == 10000.0
    assert (keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"]) == (4, 2)
    assert keys["tokenizer.chat_template"] == made.source.tokenizer.chat_template
    assert keys["tokenizer.ggml.tokens"] == made.source.tokenizer.convert_ids_to_tokens(
        range(len(made.source.tokenizer))
    )
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    wanted = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}[dtype]
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down.weight"] == wanted
    assert kinds["output_norm.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"
    assert "output.weight" not in kinds  # tied
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.gguf", "Modelfile", "tokenizer.json"}


def test_rows_that_8_bits_do_not_divide_stay_in_16(
    make_case: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(tiny_llama)), hidden_size=48, num_attention_heads=4,
        num_hidden_layers=1, intermediate_size=64, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "base")
    made = make_case("llama-answers", base=tmp_path / "base", dtype="int8")
    member = write(made, tmp_path / "out")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")
    if has_llama_cpp():
        engine = member.open(tmp_path / "out", Opening(made.serving))
        np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=0.3)
        assert engine.dtype == "int8"


def test_values_beyond_float16_are_refused(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-answers", dtype="float16")
    merge = replace(made.source.merge, change=lambda name, weight: weight * 1e6 if "down_proj" in name else weight)
    with pytest.raises(ExportError, match=r"values above 65504 .*fix: set export.dtype: bfloat16"):
        write(replace(made, source=replace(made.source, merge=merge)), tmp_path / "out")


@needs_llama_cpp
@pytest.mark.parametrize("place", ["blk.1.ffn_down.weight", "blk.0.attn_q.weight", "output_norm.weight"])
def test_a_flipped_sign_is_seen(place: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-answers", dtype="float32")
    member = write(made, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf", "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == place)
    tensor.data[:] = -tensor.data
    reader.data.flush()
    engine = member.open(tmp_path / "out", Opening(made.serving))
    assert np.abs(engine.encode(made.rows) - made.expected).max() > 1e-2


@needs_llama_cpp
def test_a_flipped_sign_in_the_adapter_is_seen(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-answers", dtype="float32")
    member = write(made, tmp_path / "out", "gguf-adapter")
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf", "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_k.weight.lora_b")
    tensor.data[:] = -tensor.data
    reader.data.flush()
    engine = member.open(tmp_path / "out", Opening(made.serving))
    assert np.abs(engine.encode(made.rows) - made.expected).max() > 1e-3


@pytest.mark.parametrize("target", ["gguf", "gguf-adapter"])
def test_a_changed_template_is_told(target: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = chat_case(make_case, CHATML)
    folder = tmp_path / "out"
    member = write(made, folder, target)
    assert member.open(folder, Opening(made.serving)).own(None)[1] == []
    (folder / "chat_template.jinja").write_text(INST, encoding="utf-8")
    wrong = member.open(folder, Opening(made.serving)).own(None)[1]
    # The adapter's base is written from the folder's own template: there the Modelfile tells.
    assert [line.split(" is not")[0] for line in wrong] == [
        *(["the chat template in the GGUF file"] if target == "gguf" else []),
        "the template in the Modelfile",
    ]
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    (folder / "Modelfile").write_text('FROM ./model.gguf\nTEMPLATE """{{ .Prompt }}"""\n', encoding="utf-8")
    assert member.open(folder, Opening(made.serving)).own(None)[1] == [
        "the template in the Modelfile is not the tokenizer's (export again)"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "the architecture 'gemma2' .*llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"sliding_window": 16}, "sliding attention over 16 tokens, for texts of up to 24.*tune.max_tokens: 16"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotary"),
    ],
)
def test_models_that_llama_cpp_computes_otherwise_are_refused(changes: dict[str, Any], message: str) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=1)
    for name, value in changes.items():
        object.__setattr__(config, name, value) if name == "model_type" else setattr(config, name, value)
    with pytest.raises(ExportError, match=message):
        layout_of(config, max_tokens=24)


def test_rope_that_llama_cpp_scales_otherwise_is_refused(
    make_case: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "base")
    for number, rope in enumerate(
        (
            {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 2.0,
                "beta_fast": 16.0,
                "original_max_position_embeddings": 8,
            },
        )
    ):
        model.config.rope_parameters = rope
        model.save_pretrained(tmp_path / "base")
        made = make_case("llama-answers", base=tmp_path / "base")
        with pytest.raises(ExportError, match="scales positions by linear"):
            write(made, tmp_path / f"out{number}")


@pytest.mark.parametrize("target", ["gguf", "gguf-adapter"])
@pytest.mark.parametrize(
    ("facts", "fix"),
    [
        ({"kind": "encoder", "head": "embedding"}, "onnx or sentence-transformers"),
        ({"kind": "causal", "head": "classifier"}, "merged or onnx"),
        ({"kind": "causal", "head": "answers"}, None),
        ({"kind": "causal", "head": "likelihood"}, None),
    ],
)
def test_refusals(target: str, facts: dict[str, object], fix: str | None) -> None:
    refusal = registry.refused(registry.load("recft.exports", target).refusals, facts)
    assert (refusal is None) == (fix is None)
    assert refusal is None or fix is None or fix in refusal.fix


def test_dora_is_no_gguf_adapter(make_case: Callable[..., Any], tmp_path: Path) -> None:
    facts = {"kind": "causal", "head": "answers", "method.name": "lora", "method.dora": True}
    member = registry.load("recft.exports", "gguf-adapter")
    refusal = registry.refused(member.refusals, facts)
    assert refusal is not None
    assert "export to gguf" in refusal.fix
    with pytest.raises(ExportError, match=r"no plain LoRA .*fix: export to gguf"):
        write(make_case("llama-answers", dora=True), tmp_path / "out", "gguf-adapter")
    assert member.needs == ("plain_lora",)


@needs_llama_cpp
def test_dora_merges_into_gguf(make_case: Callable[..., Any], tmp_path: Path) -> None:
    made = make_case("llama-answers", dtype="float32", dora=True)
    engine = write(made, tmp_path / "out").open(tmp_path / "out", Opening(made.serving))
    np.testing.assert_allclose(engine.encode(made.rows), made.expected, atol=1e-4)


@pytest.mark.parametrize("target", ["gguf", "gguf-adapter"])
@pytest.mark.parametrize(("head", "chat"), [("embedding", False), ("answers", False), ("likelihood", True)])
def test_serving_lines_name_the_files(target: str, head: str, chat: bool) -> None:
    serving = {"head": head, "chat": chat, "max_tokens": 48, "pooling": "last"}
    member = registry.load("recft.exports", target)
    llama, ollama = member.serve({"name": "shop", "serving": serving, "target": target})
    assert "llama-server -m" in llama.lines
    assert ("--embedding --pooling last" in llama.lines) == (head == "embedding")
    assert "ollama create shop -f FOLDER/Modelfile" in ollama.lines
    assert (("FOLDER/model.gguf" in llama.lines), ("--lora FOLDER/adapter.gguf" in llama.lines)) == (
        (True, False) if target == "gguf" else (False, True)
    )
    assert not ollama.tried


def test_missing_library_names_the_extra(
    make_case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    made = make_case("llama-answers")
    folder = tmp_path / "out"
    member = write(made, folder)
    members = (member, registry.load("recft.exports", "gguf-adapter"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    for target in members:
        with pytest.raises(ExportError, match=r"'gguf' is not installed.*pip install 'recft\[gguf\]'"):
            target.write(made.source, folder)
        with pytest.raises(ExportError, match=r"'gguf' is not installed.*pip install 'recft\[gguf\]'"):
            target.open(folder, Opening(made.serving))


def test_turns_are_data() -> None:
    turns = Turns("", {"user": "U:", "assistant": "A:"}, {"user": "\n", "assistant": "\n"}, False, "A:")
    assert turns.text([{"role": "user", "content": "x"}]) == "U:x\nA:"
