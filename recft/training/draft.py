"""The folder that an export is written into: by one writer, without a file of another export, and placed as a whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from recft.errors import ExportError, RecftError, problem
from recft.models.merging import PROGRESS
from recft.run import read_json

__all__ = ["DESCRIPTION", "MARKER", "claim", "drafting", "named", "place"]

DESCRIPTION = "recft-export.json"

MARKER = ".recft-draft"
"""In a draft: what is being written there. The writer holds a lock on it, which goes when its process does."""


def named(out: Path) -> Path:
    """The folder to make, by a path that ends in its name: `.` and `x/..` have none to put an ending to."""
    if out.name in ("", ".."):
        return out.resolve()
    return out.parent.resolve() / out.name if ".." in out.parts else out


def claim(out: Path, force: bool) -> None:
    """Nothing, where `out` may be made: it is free, or holds an export that may go; and so does `out.failed`.

    Raises:
        ExportError: something would be overwritten, or the path cannot be made.
    """
    try:
        there = os.path.lexists(out)
        if there and not force:
            raise ExportError(
                problem(
                    str(out),
                    "exists already",
                    "export never overwrites a folder unasked",
                    "name another --out, or give --force",
                )
            )
        if there and (held := _holds(out)):
            raise ExportError(
                problem(str(out), held, "--force replaces an export, never other files", "name another --out")
            )
        failed = out.with_name(f"{out.name}.failed")
        if os.path.lexists(failed) and (held := _holds(failed)):
            rule = "an export whose certificate fails is left there"
            raise ExportError(problem(str(failed), held, rule, "move it away, or name another --out"))
    except OSError as error:
        raise _unusable(out, error) from error


def _holds(folder: Path) -> str:
    """What stands in the way of replacing a folder; nothing where it is empty or an export alone."""
    if not folder.is_dir():
        return "is no folder"
    if not (folder / DESCRIPTION).is_file():
        return f"holds no {DESCRIPTION}" if any(folder.iterdir()) else ""
    return ""


def _unusable(path: Path, error: OSError) -> ExportError:
    return ExportError(problem(str(path), str(error.strerror), "--out is a folder that can be made", "correct --out"))


@contextlib.contextmanager
def drafting(out: Path, identity: str) -> Iterator[Path]:
    """A folder beside `out` that nobody else writes into.

    What an interrupted merge for the same export has finished stays in it, and nothing else does: a file of another
    target, or rows that shall not travel, would become part of the export. Left with an error it goes, except for
    a merge that can be gone on with.

    Args:
        out: the export's folder.
        identity: of what is written: target, dtype, run and settings.

    Raises:
        ExportError: somebody else is writing there, or it holds files that are no export's.
    """
    draft = out.with_name(f"{out.name}.draft")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in draft.iterdir()}
    except OSError as error:
        raise _unusable(draft, error) from error
    if names and not names & {MARKER, DESCRIPTION, PROGRESS}:
        raise ExportError(
            problem(
                str(draft),
                f"holds '{min(names)}', which is no export's",
                "export writes into this folder first",
                "move it away, or name another --out",
            )
        )
    with (draft / MARKER).open("a+", encoding="utf-8") as marker:
        _lock(marker.fileno(), draft)
        marker.seek(0)
        _clear(draft, marker.read() == identity)
        marker.truncate(0)
        marker.write(identity)
        marker.flush()
        try:
            yield draft
        except BaseException:
            if not any(draft.rglob(PROGRESS)):
                shutil.rmtree(draft, ignore_errors=True)  # whole or not at all
            raise


def _lock(handle: int, draft: Path) -> None:
    """Holds the draft until the handle is closed.

    Raises:
        ExportError: another process holds it.
    """
    if sys.platform == "win32":
        return  # it has no such lock
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ExportError(
            problem(
                str(draft),
                "another export is writing it",
                "one export at a time makes a folder",
                "wait for it, or name another --out",
            )
        ) from error
    except OSError:
        return  # a file system without locks


def _clear(draft: Path, same: bool) -> None:
    """Removes all but the marker and, where it is the same export, the shards that a merge has finished."""
    kept = {draft / MARKER}
    for progress in draft.rglob(PROGRESS) if same else ():
        with contextlib.suppress(RecftError, AttributeError, TypeError, KeyError):
            kept |= {progress, *(progress.parent / name for name in read_json(progress)["shards"])}
    for path in sorted(draft.rglob("*"), reverse=True):  # what lies in a folder stands before it
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def place(draft: Path, final: Path) -> None:
    """Makes the draft the export: what stood there goes only once the new one stands, and comes back if it cannot."""
    (draft / MARKER).unlink(missing_ok=True)
    old = final.with_name(f".{final.name}.old-{uuid.uuid4().hex[:8]}")
    if os.path.lexists(final):
        final.rename(old)
    try:
        draft.rename(final)
    except OSError:
        if os.path.lexists(old):
            old.rename(final)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)
