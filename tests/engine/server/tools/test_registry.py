"""Parsers by name: vLLM's names, plug-in files and packages."""

from __future__ import annotations

import importlib.metadata

import pytest

from myllm_engine.server import tools
from myllm_engine.server.settings import ServerSettings
from myllm_engine.server.tools import registry

PLUGIN = """
from myllm_engine.server.tools import register
from myllm_engine.server.tools.hermes import HermesParser

@register("shouting")
class Shouting(HermesParser):
    def call_id(self):
        return "CALL"
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_PARSERS", dict(registry._PARSERS))


def test_vllm_s_names_are_known():
    for name in [
        "hermes",
        "mistral",
        "llama3_json",
        "pythonic",
        "internlm",
        "jamba",
        "granite",
        "qwen3_coder",
        "qwen3_xml",
    ]:
        assert issubclass(tools.find(name), tools.ToolParser)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'hermez' is not known; known are granite, .*hermes, "):
        ServerSettings(enable_auto_tool_choice=True, tool_call_parser="hermez")


def test_auto_needs_a_parser():
    with pytest.raises(ValueError, match="`enable_auto_tool_choice` needs"):
        ServerSettings(enable_auto_tool_choice=True)


def test_a_file_registers_a_parser(tmp_path):
    plugin = tmp_path / "shouting.py"
    plugin.write_text(PLUGIN)
    ServerSettings(tool_parser_plugin=str(plugin), tool_call_parser="shouting")
    assert tools.find("shouting")().call_id() == "CALL"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not a file"),
        (
            "import nothing_of_this_name",
            "fails with ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        (
            "from myllm_engine.server.tools import register\nregister('x')(dict)",
            "must be a subclass of `ToolParser`",
        ),
    ],
)
def test_a_faulty_file_is_told(tmp_path, content, says):
    plugin = tmp_path / "plugin.py"
    if content is not None:
        plugin.write_text(content)
    with pytest.raises(ValueError, match=says):
        ServerSettings(tool_parser_plugin=str(plugin))


def test_a_package_brings_a_parser(monkeypatch):
    entry = importlib.metadata.EntryPoint(
        "packaged", "myllm_engine.server.tools.hermes:HermesParser", registry.ENTRY_POINTS
    )
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [entry] if group == "myllm.tool_parsers" else []
    )
    assert tools.find("packaged") is tools.find("hermes")
    with pytest.raises(ValueError, match="known are .*packaged"):
        tools.find("unpacked")
