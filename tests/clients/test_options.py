"""The typed options of calls are exactly the parameters, their aliases, and the options of requests."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from myllm import AsyncClient, Client
from myllm.options import CallOptions, RequestOptions
from myllm.params import KNOWN_NAMES


def test_every_parameter_and_alias_is_typed():
    assert set(CallOptions.__annotations__) == KNOWN_NAMES | set(RequestOptions.__annotations__)


def test_both_clients_have_the_same_methods():
    def methods(cls: type) -> set[str]:
        return {
            name for name, value in inspect.getmembers(cls) if callable(value) and not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("client.chat('x', temperature=0.5, json_schema={}, max_new_tokens=3)", None),
        ("client.chat('x', temprature=0.5)", "temprature"),
        ("client.chat('x', temperature='hot')", "temperature"),
        ("client.embed('x', temperature=0.5)", "temperature"),
        ("client.parse(M, 'x').parsed.name.upper()", None),
        ("client.parse(M, 'x').parsed.nome", "nome"),
    ],
)
def test_a_type_checker_sees_mistakes(tmp_path: Path, call: str, complaint: str | None):
    program = tmp_path / "program.py"
    program.write_text(
        "from myllm import Client\nfrom pydantic import BaseModel\n\n"
        f"class M(BaseModel):\n    name: str\n\nclient = Client()\n{call}\n"
    )
    arguments = ["--strict", "--no-error-summary", "--cache-dir", str(CACHE), str(program)]
    done = subprocess.run([sys.executable, "-m", "mypy", *arguments], capture_output=True, text=True)
    assert done.returncode == (0 if complaint is None else 1), done.stdout + done.stderr
    assert complaint is None or complaint in done.stdout


CACHE = Path(__file__).parents[2] / ".mypy_cache"


def test_the_tokenizer_s_options_are_those_that_shape_the_prompt():
    from myllm.dialects.tokenizers import SHAPING
    from myllm.options import TokenizeOptions

    assert set(TokenizeOptions.__annotations__) == set(SHAPING) | set(RequestOptions.__annotations__)
