"""Events of verbs, as a live bar in a terminal and as a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from recft.cli._base import is_first_process
from recft.cli._shell import console, is_plain, say
from recft.run import Listener, silent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.progress import Progress, TaskID

__all__ = ["duration", "listening"]

_SECONDS_BETWEEN_LINES = 5.0


@contextlib.contextmanager
def listening(quiet: bool = False) -> Iterator[Listener]:
    """A listener for one verb, fit for whoever reads stderr."""
    if quiet or not is_first_process():
        yield silent
    elif is_plain(sys.stderr):
        yield _Lines()
    else:
        with _live() as listener:
            yield listener


def duration(seconds: float) -> str:
    """A span of time for people.

    >>> duration(4), duration(75), duration(7384)
    ('4s', '1:15', '2:03:04')
    """
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _figures(values: Mapping[str, Any]) -> str:
    """What a training step says besides how far it is."""
    shown = [f"loss {values['loss']:.4f}"] if values.get("loss") is not None else []
    if values.get("epoch") is not None:
        shown.insert(0, f"epoch {values['epoch']:.2f}")
    if values.get("learning_rate") is not None:
        shown.append(f"lr {values['learning_rate']:.1e}")
    if values.get("examples_per_second"):
        shown.append(f"{values['examples_per_second']:.1f} examples/s")
    if values.get("tokens_per_second"):
        shown.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if values.get("memory_bytes"):
        shown.append(f"{values['memory_bytes'] / 2**30:.1f} GiB")
    if values.get("seconds_left") is not None:
        shown.append(f"{duration(values['seconds_left'])} left")
    return "  ".join(shown)


def _sentence(event: str, values: Mapping[str, Any]) -> str | None:
    """An event that is told as a line of its own; None for those that only move a bar."""
    if event == "stage":
        return str(values.get("name") or values.get("stage"))
    if event == "note":
        return str(values["text"])
    if event == "warning":
        return f"warning: {values['text']}"
    if event == "eval":
        value = "undefined" if values["value"] is None else f"{values['value']:.4f}"
        best = " (best so far)" if values.get("best") else ""
        return f"step {values['step']}: validation {values['metric']} {value}{best}"
    return None


class _Lines:
    """Plain lines, at most one every few seconds for what moves."""

    def __init__(self) -> None:
        self._last = -_SECONDS_BETWEEN_LINES

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        sentence = _sentence(event, values)
        if sentence is not None:
            say(sentence)
            return
        if event == "step":
            line = f"step {values['step']}/{values['total_steps']}  {_figures(values)}"
            last = values["step"] >= values["total_steps"]
        elif event == "progress":
            unit = f" {values['unit']}" if values.get("unit") else ""
            line = (
                f"{values['name']}: {values['done']:,}/{values['total']:,}{unit}"
                if values.get("total")
                else f"{values['name']}: {values['done']:,}{unit}"
            )
            last = values["done"] == values.get("total")
        else:
            return
        if last or time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            say(line)


@contextlib.contextmanager
def _live() -> Iterator[Listener]:
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    screen = console(sys.stderr)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
    )
    bars = _Bars(progress, screen)
    with Live(bars, console=screen, transient=True, refresh_per_second=8):
        yield bars


class _Bars:
    """A live bar for the stage that runs, its figures on a line of their own; what is told stays above."""

    def __init__(self, progress: Progress, screen: Console) -> None:
        self._progress = progress
        self._screen = screen
        self._task: TaskID | None = None
        self._name = ""
        self._words = ""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield self._progress.get_renderable()
        if self._words:
            yield Text(f"  {self._words}", style="dim")

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        sentence = _sentence(event, values)
        if sentence is not None:
            style = {"stage": "bold", "warning": "yellow"}.get(event)
            self._screen.print(sentence, style=style, markup=False)
        if event == "stage":
            self._begin(str(sentence), None)
        elif event == "step":
            self._move("tuning", values["step"], values["total_steps"], _figures(values))
        elif event == "progress":
            self._move(values["name"], values["done"], values.get("total"), values.get("unit") or "")

    def _begin(self, name: str, total: float | None) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._name, self._words = name, ""
        self._task = self._progress.add_task(name, total=total)

    def _move(self, name: str, done: float, total: float | None, words: str) -> None:
        if self._task is None or self._name != name:
            self._begin(name, total)
        self._words = words
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
