"""A run folder's files: whole or not at all, hashes that tell a change, and no NaN in JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from recft.errors import RecftError
from recft.run import atomic_file, atomic_folder, hash_file, hash_folder, read_json, without_nan, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    write_text(file, "old")
    with pytest.raises(OSError, match="disk"), atomic_file(file) as draft:
        draft.write_text("half")
        raise OSError("the disk is full")
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


def test_a_failed_folder_leaves_the_old_one_and_no_draft(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(OSError, match="disk"), atomic_folder(folder) as draft:
        (draft / "a").write_text("2")
        raise OSError("the disk is full")
    assert (folder / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    with atomic_folder(folder) as draft:
        (draft / "b").write_text("3")
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_hashes_tell_a_changed_byte_and_a_changed_name(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "x.bin", "1")
    before = hash_folder(tmp_path / "a"), hash_file(tmp_path / "a" / "x.bin")
    write_text(tmp_path / "a" / "x.bin", "2")
    after = hash_folder(tmp_path / "a"), hash_file(tmp_path / "a" / "x.bin")
    assert before[0] != after[0] and before[1] != after[1]
    (tmp_path / "a" / "x.bin").rename(tmp_path / "a" / "y.bin")
    assert hash_folder(tmp_path / "a") != after[0]


def test_json_is_written_whole_in_unicode_and_refuses_nan(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"标题": "杯子"})
    assert "杯子" in file.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"nan|NaN|JSON"):
        write_json(file, {"score": float("nan")})
    assert read_json(file) == {"标题": "杯子"}
    assert without_nan({"a": [float("nan"), 1.0]}) == {"a": [None, 1.0]}


def test_a_missing_or_broken_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecftError, match=r"none\.json.*missing"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RecftError, match=r"bad\.json.*not JSON"):
        read_json(tmp_path / "bad.json")
