"""docs/servers.md says of each parameter what the dialects do with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from myllm import UnsupportedFeatureError
from myllm.dialects import get_dialect
from myllm.params import build
from myllm.wire import Call, ServerInfo

DOCUMENT = (Path(__file__).parents[2] / "docs" / "servers.md").read_text(encoding="utf-8")
SERVERS = {
    "`vllm`": ServerInfo(dialect="vllm", version=(0, 32, 0)),
    "`vllm` ≥ 0.12": ServerInfo(dialect="vllm", version=(0, 12, 0)),
    "`vllm` < 0.12": ServerInfo(dialect="vllm", version=(0, 9, 0)),
    "`tgi`": ServerInfo(dialect="tgi"),
    "`tgi`, completions": ServerInfo(dialect="tgi"),
    "`sglang`": ServerInfo(dialect="sglang"),
    "llama-server": ServerInfo(dialect="llamacpp", product="llama-server b1"),
    "llama-cpp-python": ServerInfo(dialect="llamacpp", product="llama-cpp-python 0.3.36"),
    "`ollama`": ServerInfo(dialect="ollama", version=(0, 12, 11)),
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
VALUES: dict[str, Any] = {
    "max_tokens": 5, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1, "logit_bias": {1: 2.0},
    "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [3], "include_stop_str_in_output": True,
    "skip_special_tokens": False, "reasoning_effort": "low", "chat_template_kwargs": {"a": 1},
    "json_schema": SCHEMA, "regex": "a+", "choice": ["a", "b"], "grammar": 'root ::= "a"',
}  # fmt: skip
CHATS = {"reasoning_effort", "chat_template_kwargs", "json_schema", "regex", "choice", "grammar"}


def rows() -> list[Any]:
    """Each (parameter, server, cell) of the two tables about parameters."""
    found = []
    for table in re.findall(r"^\| parameter \|.*?(?=\n\n)", DOCUMENT, re.MULTILINE | re.DOTALL):
        head, _, *lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        for name, *cells in lines:
            if (parameter := name.strip("`")) in VALUES:
                found += [
                    pytest.param(parameter, server, cell, id=f"{parameter}-{server}")
                    for server, cell in zip(head[1:], cells, strict=True)
                ]
    return found


def test_every_parameter_of_the_list_is_in_a_table():
    assert {row.values[0] for row in rows()} == set(VALUES)


@pytest.mark.parametrize(("parameter", "server", "cell"), rows())
def test_a_cell_is_what_is_sent(parameter, server, cell):
    info = SERVERS[server]
    chat = parameter in CHATS and info.dialect != "tgi"
    call = Call(
        kind="chat" if chat else "completion",
        model="m",
        params=build({parameter: VALUES[parameter]}),
        messages=[{"role": "user", "content": "x"}] if chat else None,
        prompt=None if chat else "x",
    )
    if cell == "–":
        with pytest.raises(UnsupportedFeatureError):
            get_dialect(info.dialect).requests(call, info)
        return
    (request,) = get_dialect(info.dialect).requests(call, info)
    sent = set(request.json) | set(request.json.get("parameters", ())) | set(request.json.get("options", ()))
    if cell == "done here":
        assert parameter not in sent
        return
    words = [parameter] if cell.startswith(("same", "pairs")) else re.findall(r"`(\w+)`", cell)
    assert sent & set(words), f"{cell!r} is not among {sorted(sent)}"
