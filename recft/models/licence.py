"""A base's licence, as its own files state it: nothing is guessed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from recft.errors import ModelError
from recft.models.base import resolve
from recft.schema import ModelSettings

__all__ = ["front_matter", "licence_of"]

STATED = ("license", "license_name", "license_link")
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
MOST_BYTES = 1 << 20
SECONDS = 3.0
"""How long the hub may take to say whether it has a file."""

Read = Callable[[str], str | None]


def licence_of(settings: ModelSettings) -> str | None:
    """The licence that a base states: an identifier (`apache-2.0`), a name with its address, or a file's first line.

    It is looked for in the README's front matter (`license`, `license_name`, `license_link`), then in a licence file;
    of a hub id in the local copy, and at the hub where it can be reached. None where nothing is found.
    """
    try:
        base = resolve(settings.base)
    except ModelError:
        return None
    folder = Path(base)

    def local(name: str) -> str | None:
        return _text(folder / name)

    def copied(name: str) -> str | None:
        return _copied(base, name, settings.revision)

    read: Read = local if folder.is_dir() else copied
    found = _stated(front_matter(read("README.md") or "")) or _first_line(read)
    return found or (None if folder.is_dir() else _stated(_at_the_hub(base, settings.revision)))


def front_matter(text: str) -> dict[str, Any]:
    r"""The YAML between two lines of three dashes at a text's start; nothing where there is none.

    >>> front_matter("---\nlicense: mit\n---\n# A model")
    {'license': 'mit'}
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    ends = [number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"]
    if not ends:
        return {}
    try:
        found = YAML(typ="safe", pure=True).load("\n".join(lines[1 : ends[0]]))
    except (YAMLError, ValueError):
        return {}  # somebody else's README need not be well-formed
    return dict(found) if isinstance(found, Mapping) else {}


def _stated(facts: Mapping[str, Any]) -> str | None:
    """The licence of a README's front matter; `other` has a name of its own."""
    licence = facts.get("license")
    names = [str(part) for part in (licence if isinstance(licence, list) else [licence]) if part]
    if facts.get("license_name"):
        names = [str(facts["license_name"])] if names in ([], ["other"]) else [*names, str(facts["license_name"])]
    link = str(facts.get("license_link") or "")
    words = ", ".join(names)
    if words and words != "other":
        return f"{words} ({link})" if "://" in link else words
    return link if "://" in link else None


def _first_line(read: Read) -> str | None:
    for name in FILES:
        lines = [line.strip(" #*=\t") for line in (read(name) or "").splitlines()]
        if line := next((line for line in lines if line), None):
            return line[:200]
    return None


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(MOST_BYTES).decode("utf-8", errors="replace")


def _copied(base: str, name: str, revision: str | None) -> str | None:
    """A file of the local copy of a hub's repository."""
    from huggingface_hub import try_to_load_from_cache

    try:
        kept = try_to_load_from_cache(base, name, revision=revision or "main")
    except (OSError, ValueError):  # a name that the hub does not allow
        return None
    return _text(Path(kept)) if isinstance(kept, str) else None


def _at_the_hub(base: str, revision: str | None) -> Mapping[str, Any]:
    """The front matter as the hub knows it: one request, not repeated; nothing where there is no answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if _offline():
        return {}
    # Whichever HTTP library this version of the hub's client is built on: of its errors the client's are made.
    bases = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    unreached: tuple[type[Exception], ...] = (*bases, OSError, ValueError)
    try:
        card: Any = HfApi().model_info(base, revision=revision, timeout=SECONDS).card_data
    except unreached:
        return {}
    return {name: getattr(card, name, None) for name in STATED}


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
