"""Where results, messages and errors go: results to stdout, all else to stderr, plain where no terminal reads them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from recft.cli._base import is_first_process
from recft.reports.tables import Sheet, plain, rich_sheet

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["complain", "console", "deliver", "is_plain", "say", "show"]


def is_plain(stream: TextIO) -> bool:
    """Whether control codes must stay away: no terminal, a dumb one, or NO_COLOR."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def console(stream: TextIO) -> Console:
    """A rich console for a terminal."""
    from rich.console import Console

    return Console(file=stream, highlight=False)


def show(*parts: Sheet | str) -> None:
    """Writes results to stdout, one empty line between them."""
    if not is_first_process():
        return
    try:
        if is_plain(sys.stdout):
            sys.stdout.write("\n".join(f"{part}\n" if isinstance(part, str) else plain(part) for part in parts))
        else:
            out = console(sys.stdout)
            for part in parts:
                out.print(
                    part if isinstance(part, str) else rich_sheet(part), markup=False, soft_wrap=isinstance(part, str)
                )
        sys.stdout.flush()
    except BrokenPipeError:
        _close_quietly()


def deliver(value: Any, to: str | None, *parts: Sheet | str) -> None:
    """Shows a result, and writes it as JSON where asked for; with `-` stdout holds the JSON alone."""
    if not is_first_process():
        return
    if to == "-":
        try:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            _close_quietly()
        return
    if to is not None:
        from recft.run import write_text

        write_text(Path(to), json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")
    show(*parts)


def _plain(value: object) -> object:
    """A value that JSON does not know, as one that it does."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # a numpy scalar
    return item() if callable(item) else str(value)


def say(text: str) -> None:
    """Writes a message to stderr."""
    if is_first_process():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def complain(message: str, mark: str = "error") -> None:
    """Writes an error's message to stderr: one line a mistake."""
    lines = message.splitlines() or [""]
    head = f"{mark}: " if is_plain(sys.stderr) else f"\x1b[1;31m{mark}:\x1b[0m "
    sys.stderr.write(head + "\n       ".join(lines) + "\n")
    sys.stderr.flush()


def _close_quietly() -> None:
    """The reader has gone (`| head`): what is left is written nowhere, and the exit code stays the command's own."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
