"""What the next step needs, made while this one computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """`make(step)` for one step after the other; where `on`, in a thread, one step ahead.

    What a step is given depends on its number alone, so both ways give the same. Between `wait` and the next `take`
    the thread rests: what it reads (tables, a tokenizer) is then the caller's.
    """

    def __init__(self, make: Callable[[int], T], total: int, on: bool) -> None:
        self._make, self._total = make, total
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="next-batch") if on else None
        self._next: tuple[int, Future[T]] | None = None

    def take(self, step: int) -> T:
        """What `make` gives for a step; the step after it is begun."""
        found, self._next = self._next, None
        ready = found[1].result() if found and found[0] == step else self._make(step)
        if self._pool and step + 1 < self._total:
            self._next = step + 1, self._pool.submit(self._make, step + 1)
        return ready

    def wait(self) -> None:
        """Comes back when nothing is being made; an error of the next step is told when it is taken."""
        if self._next:
            self._next[1].exception()

    def close(self) -> None:
        """Ends the thread."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
