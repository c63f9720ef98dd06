"""What every command file holds, and how a signal ends a command."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from recft.training.signals import Terminated

__all__ = ["Command", "Stopped", "guarded", "resumable", "stoppable"]

_INTERRUPTED, _TERMINATED = 130, 143


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: takes the options; its docstring is the help.
        example: a line that can be typed as it stands.
        place: where it stands in the list of commands, from 0.
    """

    run: Callable[..., None]
    example: str
    place: int

    @property
    def summary(self) -> str:
        """The help: the docstring up to its sections."""
        return (inspect.getdoc(self.run) or "").split("\nArgs:")[0].strip()


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal ended the command: its message says how to go on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`, and either signal leaves as `Stopped`."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
    try:
        with _stopping():
            yield
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        terminated = isinstance(stop, Terminated)
        hint = " ".join(getattr(stop, "__notes__", [])) or "no half-written file is left; run the command again"
        code = _TERMINATED if terminated else _INTERRUPTED
        raise Stopped(f"{'terminated' if terminated else 'interrupted'}; {hint}", code) from None


@contextlib.contextmanager
def resumable(hint: Callable[[], str]) -> Iterator[None]:
    """Within it a signal's message is what `hint` says at that moment."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        stop.add_note(hint())
        raise


def guarded(run: Callable[..., None]) -> Callable[..., None]:
    """The command with signals turned into `Stopped`, before typer gives KeyboardInterrupt a meaning of its own."""

    @functools.wraps(run)
    def wrapped(*args: Any, **options: Any) -> None:
        with _stopping():
            run(*args, **options)

    return wrapped


def is_first_process() -> bool:
    """Whether this process speaks for all of a distributed launch."""
    return os.environ.get("RANK", "0") == "0"
