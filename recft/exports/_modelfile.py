"""A Modelfile for Ollama: the file, the chat format in Ollama's own template language, and where replies stop.

Ollama renders chats by Go templates. A tokenizer's Jinja template is asked, with marked messages, what it writes
before and after each; a Go template that writes the same is made of the answers and kept only if it reproduces other
chats too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recft.models.text_model import Serving

__all__ = ["Turns", "modelfile", "modelfile_template", "turns_of"]

ROLES = ("system", "user", "assistant")
MARKS = {"system": "Xsystemx", "user": "Xfirstx", "assistant": "Xreplyx", "again": "Xsecondx"}
LEAST_CONTEXT = 4096
"""Ollama's own default: room for a reply."""

Message = Mapping[str, str]


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around messages.

    Attributes:
        begin: where the chat has no system message.
        before: each role's messages.
        after: the same.
        bare: whether a first user's message after the system's has nothing before it.
        reply: at the end, where the reply begins.
    """

    begin: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    bare: bool
    reply: str

    def text(self, messages: Sequence[Message]) -> str:
        """A chat, up to where the reply begins."""
        parts = [] if messages[0]["role"] == "system" else [self.begin]
        for place, message in enumerate(messages):
            role = message["role"]
            follows = place == 1 and messages[0]["role"] == "system"
            before = "" if self.bare and role == "user" and follows else self.before[role]
            parts.append(before + message["content"] + self.after[role])
        return "".join([*parts, self.reply])

    def go(self) -> str:
        """The same as a Go template."""
        first = f'{{{{ if and (eq $i 0) (ne $m.Role "system") }}}}{_literal(self.begin)}{{{{ end }}}}'
        parts = ["{{ range $i, $m := .Messages }}", first if self.begin else ""]
        for number, role in enumerate(role for role in ROLES if role in self.before):
            before = _literal(self.before[role])
            if role == "user" and self.bare:
                before = f'{{{{ if or (ne $i 1) (ne (index $.Messages 0).Role "system") }}}}{before}{{{{ end }}}}'
            parts.append(f'{{{{ {"else " if number else ""}if eq $m.Role "{role}" }}}}')
            parts.append(f"{before}{{{{ $m.Content }}}}{_literal(self.after[role])}")
        return "".join([*parts, "{{ end }}{{ end }}", _literal(self.reply)])


def _literal(text: str) -> str:
    # Braces would begin an action and quotes end the Modelfile's own: both go as a Go string.
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if set(text) & set('{}"') else text


def turns_of(tokenizer: PreTrainedTokenizerBase, begins: bool) -> Turns | None:
    """What the tokenizer's chat template writes around messages; None where that is not all it does.

    Args:
        tokenizer: with a chat template.
        begins: whether the engine puts the begin token before the text itself.
    """
    from jinja2 import TemplateError

    def render(messages: Sequence[Message], reply: bool = True) -> str:
        text = str(
            tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=False, add_generation_prompt=reply)
        )
        return text.removeprefix(tokenizer.bos_token or "") if begins else text

    try:
        found = _derived(render)
        return found if all(found.text(chat) == render(chat) for chat in _chats("system" in found.before)) else None
    except (TemplateError, ValueError, TypeError):
        return None


def _derived(render: Callable[..., str]) -> Turns:
    """Raises: ValueError: a message is not written as it is, once."""
    user, reply, again = (
        {"role": role, "content": MARKS[mark]}
        for role, mark in (("user", "user"), ("assistant", "assistant"), ("user", "again"))
    )
    start, after_user = _split(render([user], False), [MARKS["user"]])
    prompt = _split(render([user]), [MARKS["user"]])[1]
    after_reply = _split(render([user, reply], False), [MARKS["user"], MARKS["assistant"]])[2]
    marks = [MARKS["user"], MARKS["assistant"], MARKS["again"]]
    _, before_reply, between, _ = _split(render([user, reply, again]), marks)
    before = {"user": _rest(between, start=after_reply), "assistant": _rest(before_reply, start=after_user)}
    after = {"user": after_user, "assistant": after_reply}
    begin = _rest(start, end=before["user"])
    bare = False
    if (with_system := _with_system(render, user)) is not None:
        head, middle = with_system
        bare = not middle.endswith(before["user"])
        before["system"], after["system"] = head, middle if bare else _rest(middle, end=before["user"])
    return Turns(begin, before, after, bare, _rest(prompt, start=after_user))


def _with_system(render: Callable[..., str], user: Message) -> tuple[str, str] | None:
    """What stands before a system message and between it and the user's; None where the template takes none."""
    from jinja2 import TemplateError

    try:
        text = render([{"role": "system", "content": MARKS["system"]}, user])
    except TemplateError:
        return None
    head, middle, _ = _split(text, [MARKS["system"], MARKS["user"]])
    return head, middle


def _split(text: str, marks: Sequence[str]) -> list[str]:
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(mark)
        parts.append(before)
    return [*parts, text]


def _rest(text: str, start: str = "", end: str = "") -> str:
    if not text.startswith(start) or not text.endswith(end) or len(text) < len(start) + len(end):
        raise ValueError(text)
    return text[len(start) : len(text) - len(end)]


def _chats(with_system: bool) -> list[list[Message]]:
    """Chats unlike those that the template was asked with."""
    contents = ["红色 椅子？", 'a {{ "b" }}', "no\nyes", "🎒", "last one"]
    turns: list[Message] = [
        {"role": ROLES[1 + place % 2], "content": content} for place, content in enumerate(contents)
    ]
    chats = [turns[:1], turns[:3], turns]
    system: Message = {"role": "system", "content": "You sell chairs. 简短"}
    return [*chats, *([system, *chat] for chat in chats)] if with_system else chats


def modelfile_template(tokenizer: PreTrainedTokenizerBase, serving: Serving, begins: bool) -> str:
    """The Modelfile's lines on the template."""
    if not serving.chat:
        return '# Tuned on plain prompts: no chat format is put around them.\nTEMPLATE """{{ .Prompt }}"""\n'
    turns = turns_of(tokenizer, begins)
    if turns is None:
        return "# Ollama's language cannot say this chat template: Ollama reads the one in the GGUF file.\n"
    return f'TEMPLATE """{turns.go()}"""\n'


def modelfile(
    name: str, tokenizer: PreTrainedTokenizerBase, serving: Serving, begins: bool, files: str, context: int
) -> str:
    """The Modelfile's text.

    Args:
        name: of the model, in a comment.
        tokenizer: the artefact's.
        serving: how it was tuned: with the chat template, or on plain prompts.
        begins: whether the engine puts the begin token before a text.
        files: the lines `FROM`, and `ADAPTER` where there is one.
        context: tokens that the model can read.
    """
    stops = [tokenizer.eos_token]
    if serving.chat and (turns := turns_of(tokenizer, begins)) is not None:
        stops.append(turns.after["assistant"].strip())
    special = {str(token) for token in tokenizer.all_special_tokens}
    stops = [json.dumps(stop, ensure_ascii=False) for stop in dict.fromkeys(stops) if stop in special]
    return (
        f"# {name}, written by recft: ollama create {name} -f Modelfile\n{files}\n"
        + modelfile_template(tokenizer, serving, begins)
        + "".join(f"PARAMETER stop {stop}\n" for stop in stops)
        + f"PARAMETER num_ctx {min(context, max(LEAST_CONTEXT, serving.max_tokens))}\n"
    )
