"""The command line: one file a command, found by its name; the only place that prints or exits.

`main` builds the application from the files of this folder, and turns what a command raises into an exit code:
0 done, 1 an error a user can mend, 2 wrong usage, 3 a gate failed, 130 interrupted, 143 terminated. Anything else is
a bug and shows its traceback. Nothing here imports torch: verbs do, and they are imported when a command runs.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from errno import EDQUOT, EFBIG, ENAMETOOLONG, ENOSPC, EROFS
from typing import NoReturn

import typer

from recft import registry
from recft.cli._base import Command, Stopped, guarded, stoppable
from recft.cli._shell import complain
from recft.errors import RecftError, problem
from recft.models import machine

__all__ = ["build", "main"]

_ABOUT = """Adapts pretrained language models to shop search and recommendation.

prepare -> tune -> eval -> export: four commands from raw tables to a certified, servable model."""


def build() -> typer.Typer:
    """The application, with a command for every file of this folder."""
    app = typer.Typer(
        name="recft",
        help=_ABOUT,
        no_args_is_help=True,
        # Plain help: it is the same in a pipe, and needs no import of rich.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_program)
    commands: dict[str, Command] = {name: registry.load("recft.cli", name) for name in registry.names("recft.cli")}
    for name, command in sorted(commands.items(), key=lambda entry: (entry[1].place, entry[0])):
        # \b keeps click from filling the lines of the example into a paragraph.
        epilog = f"\b\nExample:\n  {command.example}"
        app.command(name, help=command.summary, epilog=epilog)(guarded(command.run))
    return app


def _program(
    version: bool = typer.Option(
        False, "--version", help="Show the version and leave.", is_eager=True, callback=lambda asked: _version(asked)
    ),
) -> None:
    """What stands before a command."""


def _version(asked: bool) -> None:
    if asked:
        import recft

        typer.echo(f"recft {recft.__version__}")
        raise typer.Exit


FULL, FULL_WORDS = (ENOSPC, EDQUOT, EFBIG), ("No space left on device", "File too large")
"""Of a disk, a quota or a process's own limit; libraries that are not Python's say it in words alone."""


def _machine_s_fault(error: Exception) -> str | None:
    """A message where the disk or its rights are to blame, whichever library noticed; None for a bug."""
    text = str(error)
    full = (isinstance(error, OSError) and error.errno in FULL) or any(words in text for words in FULL_WORDS)
    if full:
        return problem("disk", text, "there is room for what is written", "free some space, or write elsewhere")
    unwritable = isinstance(error, OSError) and error.errno in (EROFS, ENAMETOOLONG)
    if unwritable or isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        assert isinstance(error, OSError)  # noqa: S101  # all of these are
        return problem(str(error.filename), str(error.strerror), "a path that can be written", "correct the path")
    return None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and leaves with its exit code."""
    machine.settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a title is shown even where the locale lacks its signs
    try:
        with stoppable():
            build()(args=list(arguments) if arguments is not None else None, prog_name="recft")
    except RecftError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except Stopped as stop:
        complain(str(stop), mark="stopped")
        sys.exit(stop.exit_code)
    except Exception as error:
        if not (message := _machine_s_fault(error)):
            raise
        complain(message)
        sys.exit(1)
    sys.exit(0)
