"""Every error that recft raises on purpose, as one tree.

    RecftError             anything a user can mend: the command line shows it without a traceback, exit code 1
    ├── RecipeError        a recipe that cannot be read, or settings that cannot work together
    ├── DataError          rows, files or splits that break a rule
    ├── ModelError         a base model or an adapter that cannot be loaded, or has no effect
    ├── TuneError          tuning that cannot start, go on or resume
    ├── GateError          a score below its gate: exit code 3
    └── ExportError        an artefact that cannot be written, or that serves other scores than the tuned model

A message gives the place, the value, the rule and the fix; `problem` builds one.
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "ExportError",
    "GateError",
    "ModelError",
    "RecftError",
    "RecipeError",
    "TuneError",
    "problem",
]


class RecftError(Exception):
    """The root of the tree; `exit_code` is what the command line leaves with."""

    exit_code = 1


class RecipeError(RecftError):
    """A recipe that cannot be read, or settings that cannot work together."""


class DataError(RecftError):
    """Rows, files or splits that break a rule."""


class ModelError(RecftError):
    """A base model or an adapter that cannot be loaded, or that has no effect."""


class TuneError(RecftError):
    """Tuning that cannot start, go on or resume."""


class GateError(RecftError):
    """A score that does not pass its gate."""

    exit_code = 3


class ExportError(RecftError):
    """An artefact that cannot be written, or that serves other scores than the tuned model."""


def problem(place: str, value: str, rule: str, fix: str) -> str:
    """One message in the house's form.

    >>> problem("model.base", "'bert' is not a folder", "a local folder or a hub id", "check the path")
    "model.base: 'bert' is not a folder (rule: a local folder or a hub id; fix: check the path)"
    """
    return f"{place}: {value} (rule: {rule}; fix: {fix})"
