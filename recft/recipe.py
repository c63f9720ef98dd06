"""The recipe: reading it from YAML 1.2, overriding it, and writing it back.

Settings of a task or a method are found by the member's name; this module checks the whole at once, so that one
reading of the errors mends a recipe.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from recft import registry
from recft.errors import RecipeError, problem
from recft.schema import (
    DataSettings,
    EvalSettings,
    ExportSettings,
    LabelSettings,
    MethodSettings,
    ModelSettings,
    Settings,
    TaskSettings,
    TuneSettings,
)

__all__ = ["Recipe"]


class Recipe(Settings):
    """All that decides a run. `Recipe.load` reads one; equal recipes give equal runs."""

    name: str = Field(pattern=r"^[\w][\w.\-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    task: SerializeAsAny[TaskSettings]
    tasks: tuple[SerializeAsAny[TaskSettings], ...] = Field(
        default=(), description="several tasks in one run, in place of task; the first one chooses the best step"
    )
    data: DataSettings
    model: ModelSettings = ModelSettings()
    method: SerializeAsAny[MethodSettings]
    tune: TuneSettings = TuneSettings()
    eval: EvalSettings = EvalSettings()
    export: ExportSettings = ExportSettings()

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """The recipe in a YAML file, with `key=value` overrides laid over it.

        Paths in it are relative to the recipe's folder and come back absolute.

        Raises:
            RecipeError: with every mistake at once.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                problem(str(path), f"cannot be read ({error})", "a recipe is a YAML file in UTF-8", "check the path")
            ) from error
        raw = _parse(text, str(path))
        if not isinstance(raw, dict):
            raise RecipeError(
                problem(
                    str(path),
                    f"holds {type(raw).__name__}",
                    "a recipe is a mapping of keys",
                    "see recipes/ for examples",
                )
            )
        for override in overrides:
            _lay_over(raw, override)
        return cls.from_mapping(raw, folder=path.parent)

    @classmethod
    def from_mapping(cls, raw: dict[str, Any], folder: Path | None = None) -> Self:
        """The recipe in a plain mapping; relative paths are taken from `folder`.

        Raises:
            RecipeError: with every mistake at once.
        """
        mistakes: list[str] = []
        filled = dict(raw)
        if filled.get("tasks"):
            filled["tasks"] = _several(filled, mistakes)
            filled["task"] = filled["tasks"][0]
        else:
            filled["task"] = _member(filled.get("task"), "task", "recft.tasks", mistakes)
        filled["method"] = _member(filled.get("method"), "method", "recft.methods", mistakes)
        mistakes.extend(_target_mistakes(filled.get("export")))
        try:
            recipe = cls.model_validate(filled)
        except ValidationError as error:
            mistakes = _explain(error, cls, ()) + mistakes
        if mistakes:
            raise RecipeError("\n".join(mistakes))
        return recipe._with_paths(folder.resolve()) if folder else recipe

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; `from_mapping` of it is equal to this one."""
        text = self._dumped(allow_unicode=True)
        # These end a line in YAML, and would be folded away: written as escapes they stay.
        return self._dumped(allow_unicode=False) if any(end in text for end in "\x85\u2028\u2029") else text

    def _dumped(self, allow_unicode: bool) -> str:
        stream = io.StringIO()
        yaml = YAML(typ="safe")
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.allow_unicode = allow_unicode
        yaml.width = 4096
        yaml.dump(self.model_dump(mode="json", exclude={"task"} if self.tasks else None), stream)
        return stream.getvalue()

    def parts(self) -> tuple[Self, ...]:
        """This recipe for each of its tasks alone, with the tables that the task reads; itself where there is one."""
        return tuple(self._alone(task) for task in self.tasks) or (self,)

    def _alone(self, task: TaskSettings) -> Self:
        member = registry.load("recft.tasks", task.name)
        given = [table for table in ("interactions", "queries", "texts") if getattr(self.data, table) is not None]
        # Where the task's own table is missing, another one stays: what is wrong can then be said of the two.
        own = next((table for table in (*member.tables, *given) if table in given), None)
        gone = {table for table in given if table != own}
        gone |= {"grades"} if own != "queries" else set()
        gone |= {"users"} if own != "interactions" else set()
        gone |= {"items", "triples", "reviews"} if own == "texts" else set()
        labels = {} if member.labelled and own == "interactions" else {"labels": LabelSettings()}
        data = self.data.model_copy(update=dict.fromkeys(gone) | labels)
        return self.model_copy(update={"task": task, "tasks": (), "data": data})

    def target_settings(self, target: str) -> Settings:
        """The settings of an export target."""
        given = {name.replace("_", "-"): values for name, values in self.export.targets.items()}
        found: Settings = registry.load("recft.exports", target).Config.model_validate(given.get(target, {}))
        return found

    def facts(self) -> dict[str, object]:
        """The recipe as flat dotted keys: what refusals are matched against."""
        flat: dict[str, object] = {}

        def walk(value: object, place: str) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(inner, f"{place}.{key}" if place else key)
            else:
                flat[place] = value

        walk(self.model_dump(), "")
        return flat

    def _with_paths(self, folder: Path) -> Self:
        """Every path of the recipe made absolute; hub ids are left as they are."""
        update: dict[str, Any] = {"data": self.data.under(folder)}
        base = folder / self.model.base
        if base.is_dir():
            update["model"] = self.model.model_copy(update={"base": str(base.resolve())})
        beside = tuple(str((folder / path).resolve()) for path in self.eval.beside)
        synonyms = str((folder / self.eval.synonyms).resolve()) if self.eval.synonyms else None
        update["eval"] = self.eval.model_copy(update={"beside": beside, "synonyms": synonyms})
        if self.tune.start_from:
            start = str((folder / self.tune.start_from).resolve())
            update["tune"] = self.tune.model_copy(update={"start_from": start})
        return self.model_copy(update=update)


def _parse(text: str, place: str) -> Any:
    # ruamel.yaml reads YAML 1.2: `3e-4` is a number and `no` is a word.
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise RecipeError(
            problem(place, f"not YAML: {' '.join(str(error).split())}", "YAML 1.2", "mend the line that is named")
        ) from error


def _lay_over(raw: dict[str, Any], override: str) -> None:
    """Lays one `a.b=value` over a mapping, making the mappings in between."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            problem("--set", f"'{override}'", "key=value with a dotted key", "for example --set tune.epochs=1")
        )
    *parents, last = key.strip().split(".")
    place = raw
    for depth, part in enumerate(parents):
        inner = place.get(part)
        if inner is None:
            inner = {}
        elif isinstance(inner, str) and depth == 0 and part in ("task", "method"):
            inner = {"name": inner}  # `task: retrieval` is short for `task: {name: retrieval}`
        elif not isinstance(inner, dict):
            raise RecipeError(
                problem(
                    f"--set {key}",
                    f"'{part}' holds {inner!r}, not a mapping",
                    "a dotted key names a setting",
                    "correct the key",
                )
            )
        place[part] = inner
        place = inner
    place[last] = _parse(text, f"--set {key}")


def _several(filled: dict[str, Any], mistakes: list[str]) -> tuple[Any, ...]:
    """The settings of several tasks, whose names differ; mistakes are collected."""
    raw = filled["tasks"]
    if not isinstance(raw, list | tuple):
        mistakes.append(problem("tasks", repr(raw), "a list of tasks", "write one task a line, with a dash"))
        return (TaskSettings(name="?"),)
    found = tuple(_member(one, "task", "recft.tasks", mistakes, f"tasks.{place}") for place, one in enumerate(raw))
    names = [getattr(one, "name", "?") for one in found]
    if "task" in filled and filled["task"] != found[0]:
        mistakes.append(problem("task", "given beside tasks", "a run has one task or a list of them", "remove one"))
    if len(set(names)) < len(names):
        mistakes.append(problem("tasks", ", ".join(names), "each task stands once", "remove the repeated one"))
    return found


def _member(raw: object, key: str, package: str, mistakes: list[str], place: str = "") -> object:
    """The settings of a task or method, checked by the member's own `Config`; mistakes are collected."""
    if isinstance(raw, Settings):
        return raw
    placeholder = TaskSettings(name="?") if key == "task" else MethodSettings(name="?")
    if raw is not None and not isinstance(raw, str | dict):
        mistakes.append(
            problem(place or key, repr(raw), "a name, or a mapping with a name", f"for example {key}: {{name: …}}")
        )
        return placeholder
    settings: dict[str, Any] = {"name": raw} if isinstance(raw, str) else dict(cast("dict[str, Any]", raw or {}))
    name = settings.get("name")
    if not isinstance(name, str):
        mistakes.append(
            problem(f"{place or key}.name", "is missing", f"one of {', '.join(registry.names(package))}", "name one")
        )
        return placeholder
    try:
        config = registry.load(package, name).Config
        settings["name"] = name.replace("_", "-")
        return config.model_validate(settings)
    except RecipeError as error:
        mistakes.append(f"{place or key}.name: {error}")
    except ValidationError as error:
        mistakes.extend(_explain(error, config, (place or key,)))
    return placeholder


def _target_mistakes(export: object) -> Iterator[str]:
    """What is wrong with `export.targets`, each entry checked by the target's own `Config`."""
    targets = export.get("targets") if isinstance(export, dict) else None
    for name, values in targets.items() if isinstance(targets, dict) else ():
        place = ("export", "targets", str(name))
        try:
            config = registry.load("recft.exports", str(name)).Config
            config.model_validate(values)
        except RecipeError as error:
            yield f"export.targets.{name}: {error}"
        except ValidationError as error:
            yield from _explain(error, config, place)


def _explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> list[str]:
    """A validation error as lines of place, value, rule and fix."""
    lines = []
    for detail in error.errors():
        location = [str(part) for part in detail["loc"]]
        place = ".".join([*prefix, *location])
        if detail["type"] == "extra_forbidden":
            known = _fields_at(model, location[:-1])
            hint = registry.suggestion(location[-1], known)
            lines.append(problem(place, f"unknown key.{hint}", f"one of {', '.join(known)}", "correct or remove it"))
        elif detail["type"] == "missing":
            lines.append(problem(place, "is missing", "this key is required", "add it to the recipe"))
        else:
            lines.append(problem(place, f"{detail['input']!r}", detail["msg"], "correct the value"))
    return lines


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The known keys at a place of the schema."""
    current: type[BaseModel] = model
    for part in location:
        field = current.model_fields.get(part)
        inner = _settings_in(field.annotation) if field else None
        if inner is None:
            break
        current = inner
    return sorted(current.model_fields)


def _settings_in(annotation: object) -> type[BaseModel] | None:
    """The group of settings in an annotation such as `ItemsTable | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _settings_in(part))), None)
