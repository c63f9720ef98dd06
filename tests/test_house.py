"""The house's rules, held to the code: layers, families, docstrings, commands, the README."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from recft import registry
from recft.schema import MethodSettings, Settings, TaskSettings
from recft.tasks._base import Output, Reads

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "recft"
README = ROOT / "README.md"

# From the top: a module imports from its own layer's row and from those below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__"),
    ("prepare", "tune", "evaluate", "export", "verify", "recommend", "compare"),
    ("training", "reports"),
    ("tasks", "methods", "metrics", "baselines", "exports", "perturbations"),
    ("models", "data"),
    ("recipe", "run"),
    ("schema",),
    ("registry",),
    ("errors",),
)
FAMILIES = ("tasks", "methods", "metrics", "baselines", "exports", "perturbations", "cli")
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The recipe checks a member's settings by loading it through the registry: it imports nothing of the families.
SPEAKING = ("print", "sys.exit", "exit", "quit", "sys.stdout.write", "sys.stderr.write")
TOP_LEVEL = {"recft", "recipes", "tests", "pyproject.toml", "README.md"}


def modules() -> list[Path]:
    """Every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def place(path: Path) -> str:
    """The part of the package a file belongs to: a folder, or a module of the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imported recft modules of a file, wherever they stand, those for type checking too: name and line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "recft")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "recft":
            if node.module == "recft":
                yield from ((f"recft.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"(relative import of {node.module})", node.lineno


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def misplaced(path: Path, tree: ast.Module) -> list[str]:
    """Imports of a file that run against the layers or between families."""
    here = place(path)
    if here == "__init__":
        return []  # the public API imports everything, lazily
    wrong = []
    for module, line in imports(tree):
        parts = module.split(".")
        there = parts[1] if len(parts) > 1 else ""
        if module.startswith("("):
            wrong.append(f"{name_of(path)}:{line}: {module}")
        elif there not in RANK:
            # `import recft` and names of the public API are for the command line and the manifest's version.
            if there and there not in ("__version__", "Recipe"):
                wrong.append(f"{name_of(path)}:{line}: {module} is in no layer")
        elif RANK[there] < RANK[here]:
            wrong.append(f"{name_of(path)}:{line}: {here} imports {module}, which is above it")
        elif there != here and there in FAMILIES and here in FAMILIES and here != "cli":
            wrong.append(f"{name_of(path)}:{line}: the family {here} imports the family {there}")
    return wrong


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {place(path) for path in modules()} - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    assert not misplaced(path, parsed(path))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("recft/metrics/x.py", "from recft.tasks import retrieval"),
        ("recft/models/x.py", "def f():\n    from recft.methods._base import Plan"),
        ("recft/registry.py", "import recft.recipe"),
        ("recft/data/x.py", "from recft import evaluate"),
        ("recft/tune.py", "from recft.cli import main"),
        ("recft/exports/x.py", "from . import onnx"),
    ],
)
def test_the_layer_test_can_fail(file: str, source: str) -> None:
    assert misplaced(ROOT / file, ast.parse(source))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_say_what_they_are_and_what_they_give(path: Path) -> None:
    tree = parsed(path)
    assert ast.get_docstring(tree), "no docstring"
    public = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    listed = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    assert listed or not public or path.stem == "__main__", "no __all__"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if place(path) in ("cli", "__main__"):
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in SPEAKING, f"line {node.lineno}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_shortcuts(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"bare except, line {node.lineno}"
        if isinstance(node, ast.Assert):
            # For the type checker alone: what a user gives is never checked by assert.
            assert re.search(r" is not None$|^isinstance\(", ast.unparse(node.test)), f"assert, line {node.lineno}"
        if isinstance(node, ast.Name):
            assert node.id != "NotImplementedError", f"line {node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "joblib", "dill"} & set(imported), f"pickle, line {node.lineno}"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8"))


def members() -> list[tuple[str, str]]:
    """Every member of every family."""
    return [(family, name) for family in FAMILIES for name in registry.names(f"recft.{family}")]


def ways_of(member: Any) -> set[str]:
    """The ways in which a task may meet a record, whatever its settings, and what its output is."""
    settings = member.Config()
    choices = {
        name: get_args(field.annotation)
        for name, field in member.Config.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    each = [settings.model_copy(update={name: value}) for name, values in choices.items() for value in values]
    return {member.reads(config) for config in (settings, *each)} | {getattr(member, "output", "")}


def lacking(member: Any, wanted: dict[str, str]) -> list[str]:
    """What a member has not of its protocol: a docstring's `(towers, contexts)` says which tasks need the method."""
    found = []
    for attribute, words in wanted.items():
        named = [set(part.split(", ")) for part in re.findall(r"\(([a-z, ]+)\)", words)]
        only = next((ways for ways in named if ways <= {*get_args(Reads), *get_args(Output)}), None)
        if (only is None or only & ways_of(member)) and not hasattr(member, attribute):
            found.append(attribute)
    return found


def attributes_of(family: str) -> dict[str, str]:
    """What the family's protocol asks a member to have, with docstrings: the class named as the family, singular."""
    tree = parsed(PACKAGE / family / "_base.py")
    wanted = family.removesuffix("s").capitalize() if family != "cli" else "Command"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            fields = {ast.unparse(part.target): "" for part in node.body if isinstance(part, ast.AnnAssign)}
            hooks = {
                part.name: ast.get_docstring(part) or "" for part in node.body if isinstance(part, ast.FunctionDef)
            }
            return {name: words for name, words in (fields | hooks).items() if not name.startswith("_")}
    raise LookupError(f"recft/{family}/_base.py has no class {wanted}")


@pytest.mark.parametrize(("family", "name"), members(), ids=lambda word: word)
def test_members_meet_their_protocol(family: str, name: str) -> None:
    member = registry.load(f"recft.{family}", name)
    assert not lacking(member, attributes_of(family))
    summary = member.summary
    assert summary, "no summary"
    assert "\n" not in summary
    assert not summary.endswith(".") or family == "cli"


@pytest.mark.parametrize(
    ("ways", "needs"),
    [
        (("towers",), {"contexts", "candidates"}),
        (("pairs",), {"pairs", "scores"}),
        (("contexts",), {"contexts", "scores"}),
        (("towers", "pairs"), {"contexts", "candidates", "pairs", "scores"}),
    ],
)
def test_the_protocol_test_can_fail(ways: tuple[str, ...], needs: set[str]) -> None:
    """A task that has nothing but its ways of reading lacks just what they need, and what every task needs."""

    class Settings(TaskSettings):
        name: str = "bare"
        way: Literal["first", "last"] = "first"

    class Bare:
        Config = Settings

        def reads(self, config: Settings) -> str:
            return ways[0 if config.way == "first" else -1]

    found = set(lacking(Bare(), attributes_of("tasks")))
    assert found & {"contexts", "candidates", "pairs", "scores"} == needs
    assert {"summary", "head", "labels", "batch", "loss", "needs_base"} <= found


@pytest.mark.parametrize("family", ["tasks", "methods"])
def test_a_member_s_settings_belong_to_the_recipe_s(family: str) -> None:
    parent: type[Settings] = TaskSettings if family == "tasks" else MethodSettings
    for name in registry.names(f"recft.{family}"):
        config = registry.load(f"recft.{family}", name).Config
        assert issubclass(config, parent), name
        assert config(name=name).name == name


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "cli"])
def test_nothing_in_the_core_names_a_member(family: str) -> None:
    """No import list: a member's module is imported by nobody but the registry and its own family."""
    for path in modules():
        if place(path) == family:
            continue
        for module, line in imports(parsed(path)):
            parts = module.split(".")
            if len(parts) > 2 and parts[1] == family:
                assert parts[2].startswith("_"), f"{name_of(path)}:{line}: {module}"


def test_the_top_level_holds_what_was_agreed() -> None:
    ours = {line.strip("/\n ") for line in (ROOT / ".gitignore").read_text().splitlines()}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    ignored = {name for name in found if any(Path(name).match(pattern) for pattern in ours if pattern)}
    assert found - ignored <= TOP_LEVEL


def readme() -> str:
    if not README.is_file():
        pytest.skip("README.md is not written yet")
    return README.read_text(encoding="utf-8")


def test_the_readme_s_tree_is_the_tree() -> None:
    """Every name in the annotated tree exists, and every folder and module of the package's top is in it."""
    found = re.search(r"```[a-z]*\n(recft/\n.*?)```", readme(), re.DOTALL)
    assert found, "no tree"
    names = set()
    folders = ["recft"]
    for line in found[1].splitlines()[1:]:
        words = re.match(r"(?P<indent> *)(?P<names>(?:[\w.\-]+(?:/|\.\w+)(?:  ?|$))+)", line)
        if not words:
            continue
        depth = len(words["indent"]) // 2
        if depth == 0:
            folders = [words["names"].strip().rstrip("/")]
            assert (ROOT / folders[0]).exists(), line
            continue
        for name in words["names"].split():
            path = Path(*folders[:depth], name)
            assert (ROOT / path).exists(), f"the README's tree has {path}"
            names.add(str(path))
            if name.endswith("/"):
                folders = [*folders[:depth], name.rstrip("/")]
    top = [path for path in PACKAGE.iterdir() if (path.suffix == ".py" or (path / "__init__.py").is_file())]
    # A name may also stand in the words beside another.
    missing = {path.name for path in top if str(path.relative_to(ROOT)) not in names and path.name not in found[1]}
    assert not missing


def test_the_readme_s_commands_exist() -> None:
    """Every `recft ...` line of a code block names a command, and only options that it has."""
    blocks = re.findall(r"```(?:bash|sh|console|shell)?\n(.*?)```", readme(), re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|", line)]
    commands = [part for part in parts if part.startswith("recft ")]
    assert commands
    shared = (PACKAGE / "cli" / "_options.py").read_text()
    for command in commands:
        words = command.split()
        if words[1].startswith("-"):
            continue
        assert words[1] in registry.names("recft.cli"), command
        source = (PACKAGE / "cli" / f"{words[1]}.py").read_text() + shared + '"--help"'
        for word in words:
            if word.startswith("--"):
                assert f'"{word.partition("=")[0]}"' in source, command


def test_the_readme_s_recipes_exist() -> None:
    for path in re.findall(r"\brecipes/[\w\-/]+\.yaml", readme()):
        assert (ROOT / path).is_file(), path
