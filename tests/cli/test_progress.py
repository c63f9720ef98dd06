"""Events of verbs: a line now and then in a pipe, a live bar in a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from recft.cli._progress import listening
from recft.run import silent


def step(number: int, total: int = 100) -> dict[str, Any]:
    return {
        "step": number,
        "total_steps": total,
        "epoch": number / 50,
        "loss": 1.5,
        "learning_rate": 3e-4,
        "examples_per_second": 41.25,
        "tokens_per_second": 3210.4,
        "seconds_left": 75.2,
        "memory_bytes": 3 * 2**29,
    }


EVENTS: list[tuple[str, Mapping[str, Any]]] = [
    ("stage", {"name": "tuning lora, 100 steps"}),
    *[("step", step(number)) for number in range(10, 101, 10)],
    ("eval", {"step": 100, "metric": "ndcg@10", "value": 0.75, "best": True}),
    ("eval", {"step": 100, "metric": "auc", "value": None, "best": False}),
    ("stage", {"stage": "items"}),
    ("progress", {"name": "scoring", "done": 0, "total": 800, "unit": "texts"}),
    ("progress", {"name": "scoring", "done": 400, "total": 800, "unit": "texts"}),
    ("progress", {"name": "scoring", "done": 800, "total": 800, "unit": "texts"}),
    ("progress", {"name": "reading", "done": 5, "total": None, "unit": "rows"}),
    ("note", {"text": "a [note]"}),
    ("warning", {"text": "careful"}),
    ("something new", {"x": 1}),
]


def test_a_pipe_gets_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as listen:
        for event, values in EVENTS:
            listen(event, values)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("step") and "/" in line] == [
        # The first and the last; those between come too fast after one another.
        "step 10/100  epoch 0.20  loss 1.5000  lr 3.0e-04  41.2 examples/s  3,210 tokens/s  1.5 GiB  1:15 left",
        "step 100/100  epoch 2.00  loss 1.5000  lr 3.0e-04  41.2 examples/s  3,210 tokens/s  1.5 GiB  1:15 left",
    ]
    for line in (
        "step 100: validation ndcg@10 0.7500 (best so far)",
        "step 100: validation auc undefined",
        "items",
        "a [note]",
    ):
        assert line in lines
    assert "warning: careful" in lines
    assert "scoring: 800/800 texts" in lines


def test_lines_come_again_after_a_while(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("recft.cli._progress.time.monotonic", lambda: now[0])
    with listening() as listen:
        for number in range(1, 61):
            now[0] += 1
            listen("step", step(number))
    assert 10 <= len(capsys.readouterr().err.splitlines()) <= 14


def test_quiet_hears_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(quiet=True) as listen:
        assert listen is silent
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with pytest.raises(KeyboardInterrupt), listening() as listen:
        for event, values in EVENTS:
            listen(event, values)
        listen("step", step(42))
        raise KeyboardInterrupt
    text = screen.getvalue()
    assert "42/100" in text
    assert "41.2 examples/s" in text
    assert "a [note]" in text
    # An interrupt too gives the cursor back.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
