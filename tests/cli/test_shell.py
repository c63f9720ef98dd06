"""stdout for results, stderr for the rest; control codes for terminals only."""

from __future__ import annotations

import errno
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from recft import cli
from recft.cli._shell import complain, deliver, is_plain, say, show
from recft.reports.tables import Sheet

SHEET = Sheet(columns=("item", "n"), rows=[("a [bold]title[/]", "1"), ("保温瓶", "22")], title="t", notes=["[note]"])


class Terminal(io.StringIO):
    """A stream that a person reads."""

    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on stdout and stderr are a terminal. (No fixture: pytest sets its own streams after set-up.)"""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


def test_a_pipe_gets_plain_lines_on_the_right_streams(capsys: pytest.CaptureFixture[str]) -> None:
    show(SHEET, "and text")
    say("a message")
    complain("a mistake")
    out, err = capsys.readouterr()
    assert out == "t\nitem                n\na [bold]title[/]    1\n保温瓶             22\n[note]\n\nand text\n"
    assert err == "a message\nerror: a mistake\n"


def test_a_terminal_gets_styles_and_titles_are_never_read_as_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    show(SHEET)
    complain("a mistake")
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "a [bold]title[/]" in text
    assert "[note]" in text


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_are_plain(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    terminal = at_terminal(monkeypatch)
    assert not is_plain(terminal)
    monkeypatch.setenv(name, value)
    assert is_plain(terminal)
    show(SHEET)
    complain("a mistake")
    assert "\x1b" not in terminal.getvalue()


def test_narrow_terminals_lose_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "24")
    show(Sheet(columns=("row", "metric"), rows=[("a", "0.1234 [0.1111, 0.2222]")]))
    text = terminal.getvalue()
    assert all(figure in text for figure in ("0.1234", "0.1111", "0.2222"))


def test_json_is_written_whole_and_keeps_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "deep" / "result.json"
    deliver({"title": "保温瓶", "path": Path("x"), "score": np.float32(0.5)}, str(to), "shown")
    assert json.loads(to.read_text(encoding="utf-8")) == {"title": "保温瓶", "path": "x", "score": 0.5}
    assert "保温瓶" in to.read_text(encoding="utf-8")
    assert list(to.parent.iterdir()) == [to]
    assert capsys.readouterr().out == "shown\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), "rule: there is room"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "rule: there is room"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied"),
    ],
)
def test_a_full_disk_or_a_closed_folder_is_one_message_and_no_bug(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr("recft.cli.build", failing)
    with pytest.raises(SystemExit) as left:
        cli.main([])
    assert left.value.code == 1
    assert words in capsys.readouterr().err


def test_any_other_error_is_a_bug_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("recft.cli.build", failing)
    with pytest.raises(KeyError, match="a bug"):
        cli.main([])
