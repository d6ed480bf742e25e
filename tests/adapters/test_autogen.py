"""AutoGen's agents on the real server, through an entry of ours and through a plain dict."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from autogen import ConversableAgent, GroupChat, GroupChatManager, LLMConfig, UserProxyAgent

import myllm
from myllm_adapters.autogen import MyLLMConfigEntry, llm_config

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(params=["plain dict", "entry in a dict", "llm_config"])
def config(request: pytest.FixtureRequest, server: myllm.Server) -> Any:
    """Each way to say the same."""
    if request.param == "plain dict":
        plain = {
            "model": "smollm2",  # Same as in the server's command
            "api_key": "NotRequired",  # Not needed
            "base_url": f"{server.url}/v1",  # Your server's URL, with '/v1' added
            "max_tokens": 8,
            "temperature": 0,
        }
        return {"config_list": [plain], "cache_seed": None}
    entry = {"port": server.port, "max_tokens": 8, "temperature": 0}
    if request.param == "entry in a dict":
        return {"config_list": [MyLLMConfigEntry("smollm2", **entry)], "cache_seed": None}
    return llm_config("smollm2", **entry)


def test_assistant_answers_a_user(config: Any) -> None:
    assistant = ConversableAgent("agent", llm_config=config, system_message="")
    user = UserProxyAgent("user", code_execution_config=False, system_message="", human_input_mode="NEVER")
    result = user.initiate_chat(assistant, message=QUESTION[0]["content"], max_turns=1)
    assert [m["content"] for m in result.chat_history] == [QUESTION[0]["content"], ANSWER]
    usage = result.cost["usage_including_cached_inference"]["smollm2"]
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens"] > 10


def test_a_person_talks_to_an_agent_until_exit(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter([QUESTION[0]["content"], "exit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    assistant = ConversableAgent("agent", llm_config=config, system_message="")
    user = UserProxyAgent("user", code_execution_config=False, system_message="")
    result = assistant.initiate_chat(user, message="How can I help you today?")
    contents = [m["content"] for m in result.chat_history]
    assert contents[:2] == ["How can I help you today?", QUESTION[0]["content"]]
    assert len(contents) == 3
    assert contents[2]


def test_two_agents_talk(config: Any) -> None:
    first = ConversableAgent("first", llm_config=config, system_message="You are brief.")
    second = ConversableAgent("second", llm_config=config, system_message="")
    result = first.initiate_chat(second, message="How can I help you today?", max_turns=2)
    assert [m["name"] for m in result.chat_history] == ["first", "second", "first", "second"]
    assert all(m["content"] for m in result.chat_history)


def test_stream(server: myllm.Server) -> None:
    config = llm_config("smollm2", port=server.port, max_tokens=8, temperature=0, stream=True)
    agent = ConversableAgent("agent", llm_config=config, system_message="")
    assert agent.generate_reply(QUESTION) == ANSWER
    assert agent.get_total_usage()["smollm2"]["completion_tokens"] == 8


async def test_async_reply(server: myllm.Server) -> None:
    config = llm_config("smollm2", port=server.port, max_tokens=8, temperature=0)
    agent = ConversableAgent("agent", llm_config=config, system_message="")
    assert await agent.a_generate_reply(QUESTION) == ANSWER


def test_no_warning_about_costs(server: myllm.Server, caplog: pytest.LogCaptureFixture) -> None:
    config = llm_config("smollm2", port=server.port, max_tokens=2, temperature=0)
    agent = ConversableAgent("agent", llm_config=config, system_message="")
    logger = logging.getLogger("autogen.oai.client")
    logger.addHandler(caplog.handler)  # AutoGen's logger does not propagate
    try:
        agent.generate_reply(QUESTION)
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert agent.get_total_usage()["total_cost"] == 0


def test_dead_server_is_passed_by(server: myllm.Server, free_port: int) -> None:
    config = llm_config("smollm2", port=[free_port, server.port], max_tokens=8, temperature=0, max_retries=0)
    agent = ConversableAgent("agent", llm_config=config, system_message="")
    assert agent.generate_reply(QUESTION) == ANSWER


def test_group_chat(server: myllm.Server) -> None:
    config = llm_config("smollm2", port=server.port, max_tokens=4, temperature=0)
    agents = [ConversableAgent(name, llm_config=config, system_message="") for name in ("anna", "ben")]
    chat = GroupChat(agents, max_round=3, speaker_selection_method="round_robin")
    result = agents[0].initiate_chat(GroupChatManager(chat, llm_config=config), message="Hello!")
    assert [m["name"] for m in result.chat_history] == ["anna", "ben", "anna"]


def test_unknown_model_says_what_is_served(server: myllm.Server) -> None:
    agent = ConversableAgent("agent", llm_config=llm_config("nope", port=server.port), system_message="")
    with pytest.raises(Exception, match="'nope' does not exist here. This server serves: smollm2"):
        agent.generate_reply(QUESTION)


def test_copied_configurations_still_work(server: myllm.Server) -> None:
    config = llm_config("smollm2", port=server.port, max_tokens=8, temperature=0)
    for other in (config.copy(), LLMConfig(*config.config_list), config.copy().copy()):
        agent = ConversableAgent("agent", llm_config=other, system_message="")
        assert agent.generate_reply(QUESTION) == ANSWER


def test_filtered_configurations_keep_the_client(server: myllm.Server) -> None:
    config = llm_config("smollm2", port=server.port, max_tokens=2, tags=["local"])
    filtered = config.where(tags=["local"])  # AutoGen makes plain entries of ours here
    assert filtered.config_list[0].http_client is config.config_list[0].http_client
    assert ConversableAgent("agent", llm_config=filtered, system_message="").generate_reply(QUESTION)
