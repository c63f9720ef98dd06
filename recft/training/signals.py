"""Interrupts that wait for the end of a step, so that the state that is saved is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Terminated", "Waiting", "waiting"]


class Terminated(BaseException):
    """The process was asked to end (SIGTERM); the command line leaves with 143."""


class Waiting:
    """Whether a signal has come; `raise_if_any` is called where the state is whole."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Notes the signal; a second one is not waited for."""
        if self.number is not None:
            raise _error(self.number)
        self.number = number

    def raise_if_any(self) -> None:
        """Raises what the signal means.

        Raises:
            KeyboardInterrupt: SIGINT.
            Terminated: SIGTERM.
        """
        if self.number is not None:
            raise _error(self.number)


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


@contextlib.contextmanager
def waiting() -> Iterator[Waiting]:
    """Within it SIGINT and SIGTERM are noted; outside the main thread signals are left alone."""
    noted = Waiting()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
