"""Help: quick, complete, and without heavy imports."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time

import pytest

from recft import cli, registry
from recft.cli._base import Command

COMMANDS = registry.names("recft.cli")

# The contract's options, by command.
OPTIONS = {
    "prepare": ["RECIPE", "--out", "--set", "--force"],
    "tune": ["RECIPE", "--run", "--set", "--resume", "--force"],
    "eval": ["RUN", "--split", "--gate", "--reference", "--json", "--junit"],
    "export": ["RUN", "--to", "--out", "--onto", "--set", "--no-rows", "--force"],
    "verify": ["DIR", "--run", "--trust-remote-code"],
    "recommend": [
        "RUN_OR_EXPORT",
        "--query",
        "--history",
        "--user",
        "--input",
        "--out",
        "--top",
        "--explain",
        "--items",
    ],
    "compare": ["RUN...", "--split"],
    "methods": [],
    "tasks": [],
    "exports": [],
    "demo": ["--out", "--data", "--seed"],
}


def text_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert not left.value.code
    return capsys.readouterr().out


def test_the_contract_s_commands_are_there() -> None:
    assert sorted(OPTIONS) == COMMANDS


def test_help_lists_every_command_file(capsys: pytest.CaptureFixture[str]) -> None:
    text = text_of(capsys, "--help")
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()]
    assert sorted(listed) == COMMANDS
    assert "..." not in text.partition("Commands:")[2], "a summary is too long for its line"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_has_its_options_and_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = text_of(capsys, name, "--help")
    for word in [*OPTIONS[name], "--help", "--quiet", "--json"]:
        assert word in text
    example = text.partition("Example:")[2].strip()
    assert example.startswith(f"recft {name}")
    assert "\x1b" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_example_can_be_parsed(name: str) -> None:
    """The example's options are options of the command."""
    command = registry.load("recft.cli", name)
    assert isinstance(command, Command)
    words = command.example.split()
    assert words[:2] == ["recft", name]
    source = inspect.getsource(inspect.getmodule(command.run)) + inspect.getsource(sys.modules["recft.cli._options"])  # type: ignore[arg-type]
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in source


SCRIPT = """
import sys
from recft.cli import main
try:
    main({words!r})
except SystemExit as left:
    assert not left.code, left.code
heavy = {{'torch', 'transformers', 'peft', 'bitsandbytes', 'accelerate', 'polars', 'matplotlib'}} & set(sys.modules)
assert not heavy, sorted(heavy)
"""


@pytest.mark.parametrize("words", [["--help"], ["tune", "--help"], ["methods"], ["tasks"], ["exports"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT.format(words=words)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("listing", ["methods", "exports"])
def test_targets_and_methods_are_listed_without_numpy(listing: str) -> None:
    script = SCRIPT.format(words=[listing]) + "assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_completion_imports_nothing_heavy() -> None:
    script = """
import os, sys
os.environ.update(_RECFT_COMPLETE="complete_bash", COMP_WORDS="recft export x --to ", COMP_CWORD="4")
from recft.cli import main
try:
    main([])
except SystemExit:
    pass
assert not {'torch', 'transformers', 'numpy', 'polars'} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "merged" in done.stdout.split()


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """The best of several: a busy machine is not the command's fault."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "recft", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
        if times[-1] < 0.3:
            return
    pytest.fail(f"the quickest of {len(times)} took {min(times):.2f} s")
