"""Help: quick, complete, and without heavy imports."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

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
before = set(sys.modules)
from recft.cli import main
try:
    main({words!r})
except SystemExit as left:
    assert not left.code, left.code
found = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
sys.stderr.write(" ".join(sorted(found)))
"""

PARSER = {"recft", "typer", "click", "annotated_doc", "shellingham"}
"""What reads a command line; which of them are there depends on typer's version."""

SETTINGS = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
"""What settings are made of; typer asks pydantic too, for the options of the one command that is called."""

MAY_BE_LOADED = [
    (["--help"], PARSER),
    (["--version"], PARSER),
    *((([name, "--help"]), PARSER | SETTINGS) for name in COMMANDS),
    (["methods"], PARSER | SETTINGS),
    (["exports"], PARSER | SETTINGS),
    (["tasks"], PARSER | SETTINGS | {"numpy"}),
]


@pytest.mark.parametrize(("words", "allowed"), MAY_BE_LOADED, ids=[" ".join(words) for words, _ in MAY_BE_LOADED])
def test_nothing_is_loaded_but_what_reads_the_command_line(words: list[str], allowed: set[str]) -> None:
    """Start-up is quick because of what it leaves alone: a library that is not named here has crept in."""
    command = [sys.executable, "-c", SCRIPT.format(words=words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = {name for name in done.stderr.split() if not name.startswith("_")}
    assert found <= allowed, sorted(found - allowed)
    assert "recft" in found


def test_completion_loads_no_more() -> None:
    words = {"_RECFT_COMPLETE": "complete_bash", "COMP_WORDS": "recft export x --to ", "COMP_CWORD": "4"}
    command = [sys.executable, "-c", SCRIPT.format(words=[])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | words)
    assert "merged" in done.stdout.split()
    found = {name for name in done.stderr.split() if not name.startswith("_")}
    assert found <= PARSER | SETTINGS, sorted(found - PARSER - SETTINGS)
