"""What a user installs: the wheel, with and without extras, and the import rules of the architecture."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(
    code: str, executable: str | Path = sys.executable, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(executable), "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


@pytest.mark.parametrize("statement", ["import myllm", "from myllm import HFClientVLLM"])
def test_the_sdk_loads_alone(statement):
    code = (
        f"import sys; {statement}; heavy = {{'torch', 'transformers', 'dspy', 'litellm', 'autogen', 'openai', "
        "'myllm_engine', 'myllm_adapters', 'typer'} & set(sys.modules); assert not heavy, heavy"
    )
    assert (done := python(code)).returncode == 0, done.stderr


def test_the_sdk_loads_quickly():
    assert min(_seconds("import myllm") for _ in range(3)) < 0.3


def _seconds(statement: str) -> float:
    start = time.perf_counter()
    python(statement)
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel and its three dependencies, as `pip install .` makes it."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False)
    executable = home / "bin" / "python"
    purelib = python("import sysconfig; print(sysconfig.get_path('purelib'))", executable).stdout.strip()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", purelib,
         "-c", str(ROOT / "constraints.txt"), str(wheel)],
        check=True,
    )  # fmt: skip
    return executable


def test_the_wheel_holds_the_three_packages_typed(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("myllm", "myllm_adapters", "myllm_engine"):
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "examples"))]
    assert "myllm_engine/templates/llama2.jinja" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    page = (ROOT / "engine" / "myllm_engine" / "server" / "ui" / "assets").iterdir()
    assert {f"myllm_engine/server/ui/assets/{file.name}" for file in page} <= set(names)


def test_without_extras_the_sdk_works_with_its_three_libraries(bare):
    code = (
        "import json, importlib.metadata as m; from myllm import HFClientVLLM, HFClientTGI, MyLLMError\n"
        "try: HFClientVLLM('m', 1, timeout=2)._generate('x')\n"
        "except MyLLMError as exc: print(json.dumps([type(exc).__name__, str(exc), "
        "sorted(d.metadata['Name'].lower() for d in m.distributions())]))"
    )
    done = python(code, bare)
    assert done.returncode == 0, done.stderr
    name, message, installed = json.loads(done.stdout)
    assert name == "ConnectError"
    assert "myllm serve --port 1" in message
    assert {"httpx", "pydantic", "tenacity", "jsonschema"} <= set(installed)
    assert not {"torch", "transformers", "dspy", "litellm", "autogen", "typer", "openai"} & set(installed)


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import myllm_adapters.dspy", "dspy"),
        ("import myllm_adapters.autogen", "autogen"),
        ("import myllm_adapters.agentchat", "pyautogen"),
        ("import myllm_adapters.ag2", "ag2"),
        ("import myllm_adapters.litellm", "litellm"),
        ("import myllm.telemetry", "otel"),
        ("from myllm_engine import LLM", "engine"),
        ("import myllm; myllm.Server().start()", "engine"),
    ],
)
def test_a_missing_extra_is_named(bare, code, extra):
    done = python(code, bare)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ImportError" in last or "MissingExtraError" in last
    assert f"pip install 'myllm-suite[{extra}]'" in last


def test_the_command_without_its_extra_says_so_without_a_traceback(bare):
    done = subprocess.run([str(bare), "-m", "myllm", "serve"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'myllm-suite[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_library_that_is_imported_is_declared():
    """The core's dependencies are all that `myllm` imports, beyond the standard library and two extras."""
    # pydantic_core is pydantic's own, at the version that pydantic pins.
    allowed = {
        "httpx",
        "httpcore",
        "pydantic",
        "pydantic_core",
        "tenacity",
        "jsonschema",
        "referencing",
        "myllm",
    }
    for path in (ROOT / "clients" / "myllm").rglob("*.py"):
        extra = {"typer", "rich"} if "cli" in path.parts or path.name == "progress.py" else set()
        extra |= {"opentelemetry"} if path.name == "telemetry.py" else set()
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed | extra | set(sys.stdlib_module_names), f"{path}: {name}"
