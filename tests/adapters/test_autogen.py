"""AutoGen's agents on the real server: through entries served by a client, and through plain ones."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import pytest
from autogen import ConversableAgent, LLMConfig, UserProxyAgent, gather_usage_summary, register_function
from autogen.events.client_events import StreamEvent
from autogen.io import IOConsole, IOStream
from pydantic import BaseModel

import myllm
from myllm_adapters.autogen import MyLLMConfigEntry, config_list, llm_config

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
GREEDY = {"max_tokens": 8, "temperature": 0}


@pytest.fixture
def client(server: myllm.Server) -> Any:
    with server.client(**GREEDY) as made:
        yield made


@pytest.fixture(
    params=["a dict of one's own", "plain", "served", "entry", "HFClientVLLM", "model's name", "LLMConfig"]
)
def config(request: pytest.FixtureRequest, server: myllm.Server, client: myllm.Client) -> Any:
    """Each way to say the same."""
    return {
        "a dict of one's own": lambda: {
            "config_list": [
                {
                    "model": "smollm2",  # Same as in the server's command
                    "api_key": "NotRequired",  # Not needed
                    "base_url": f"{server.url}/v1",  # Your server's URL, with '/v1' added
                    **GREEDY,
                }
            ],
            "cache_seed": None,  # Turns off caching
        },
        "plain": lambda: {"config_list": config_list(client, plain=True), "cache_seed": None},
        "served": lambda: {"config_list": config_list(client), "cache_seed": None},
        "entry": lambda: MyLLMConfigEntry(client),
        "HFClientVLLM": lambda: llm_config(myllm.HFClientVLLM("smollm2", port=server.port, **GREEDY)),
        "model's name": lambda: llm_config("smollm2", port=server.port, **GREEDY),
        "LLMConfig": lambda: llm_config(client),
    }[request.param]()


def agent(config: Any, name: str = "agent", **settings: Any) -> ConversableAgent:
    return ConversableAgent(
        name, llm_config=config, **{"system_message": "", "human_input_mode": "NEVER", **settings}
    )


def test_assistant_answers_a_user(config: Any) -> None:
    assistant = agent(config)
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


def test_two_agents_talk(client: myllm.Client) -> None:
    first, second = (agent(llm_config(client), name) for name in ("first", "second"))
    result = first.initiate_chat(second, message="How can I help you today?", max_turns=2)
    assert [m["name"] for m in result.chat_history] == ["first", "second", "first", "second"]
    assert all(m["content"] for m in result.chat_history)


def add_tool(caller: ConversableAgent, executor: ConversableAgent) -> list[str]:
    """Register a tool; return the list of the cities that it is called with."""
    asked: list[str] = []

    def get_weather(city: Annotated[str, "the city"], unit: Annotated[str, "C or F"] = "C") -> str:
        asked.append(city)
        return f"Sunny and 21 degrees {unit} in {city}."

    register_function(get_weather, caller=caller, executor=executor, description="Look up the weather.")
    return asked


@pytest.mark.parametrize("settings", [{}, {"stream": True}], ids=["whole", "streamed"])
@pytest.mark.parametrize("plain", [False, True], ids=["served", "plain"])
def test_a_tool_is_called_and_executed(client: myllm.Client, plain: bool, settings: dict[str, Any]) -> None:
    config = llm_config(
        client, plain=plain, tool_choice="required", parallel_tool_calls=False, max_tokens=60, **settings
    )
    assistant, user = agent(config, "assistant"), agent(False, "user")
    asked = add_tool(assistant, user)
    result = user.initiate_chat(assistant, message="What is the weather in Paris?", max_turns=2)
    (call,) = result.chat_history[1]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "get_weather"
    assert asked[0] == arguments["city"]
    assert result.chat_history[2]["role"] == "tool"
    assert (
        result.chat_history[2]["content"]
        == f"Sunny and 21 degrees {arguments.get('unit', 'C')} in {asked[0]}."
    )
    assert result.chat_history[2]["tool_responses"][0]["tool_call_id"] == call["id"]
    assert len(result.chat_history) == 4


def test_agents_with_and_without_tools_share_a_configuration(client: myllm.Client) -> None:
    config = llm_config(client, tool_choice="required", parallel_tool_calls=False)
    assert agent(config).generate_reply(QUESTION) == ANSWER


@pytest.mark.parametrize("plain", [False, True], ids=["served", "plain"])
def test_stream(client: myllm.Client, plain: bool) -> None:
    pieces: list[str] = []

    class Shown(IOConsole):
        def send(self, message: Any) -> None:
            if isinstance(message, StreamEvent):
                pieces.append(message.content.content)

    one = agent(llm_config(client, plain=plain, stream=True))
    with IOStream.set_default(Shown()):
        assert one.generate_reply(QUESTION) == ANSWER
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 1
    usage = one.get_total_usage()["smollm2"]
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens"] > 10


async def test_async_replies(client: myllm.Client) -> None:
    one = agent(llm_config(client))
    assert await one.a_generate_oai_reply(QUESTION) == (True, ANSWER)
    user = agent(False, "user")
    result = await user.a_initiate_chat(one, message=QUESTION[0]["content"], max_turns=1)
    assert result.chat_history[-1]["content"] == ANSWER
    many = [agent(llm_config(client), f"agent{i}") for i in range(8)]
    assert set(await asyncio.gather(*(each.a_generate_reply(QUESTION) for each in many))) == {ANSWER}


@pytest.mark.parametrize("plain", [False, True], ids=["served", "plain"])
def test_autogen_s_cache_asks_once(
    server: myllm.Server, plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where AutoGen keeps it
    with server.client(**GREEDY) as client:
        before = _requests(server)
        first, second = (agent(llm_config(client, plain=plain, cache_seed=7)) for _ in range(2))
        assert first.generate_reply(QUESTION) == second.generate_reply(QUESTION) == ANSWER
        assert _requests(server) == before + 1
        assert second.get_actual_usage() is None
        assert second.get_total_usage()["smollm2"] == first.get_total_usage()["smollm2"]
        agent(llm_config(client, plain=plain, cache_seed=7, top_k=1)).generate_reply(QUESTION)
        assert _requests(server) == before + 2  # other parameters, another answer
        agent(llm_config(client, plain=plain, cache_seed=8)).generate_reply(QUESTION)
        assert _requests(server) == before + 3


def _requests(server: myllm.Server) -> int:
    """Return how many chats the server has answered."""
    import httpx

    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("vllm:request_success_total{")]
    return sum(round(float(line.rsplit(" ", 1)[1])) for line in lines)


def test_counts_are_the_server_s_and_cost_nothing(client: myllm.Client, caplog: Any) -> None:
    logger = logging.getLogger("autogen.oai.client")
    logger.addHandler(caplog.handler)  # AutoGen's logger does not propagate
    try:
        first, second = agent(llm_config(client), "first"), agent(llm_config(client, plain=True), "second")
        first.generate_reply(QUESTION)
        first.generate_reply(QUESTION)
        second.generate_reply(QUESTION)
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    sent = [{"role": "system", "content": ""}, *QUESTION]
    prompt = client.tokenize(sent).count
    once = {"cost": 0, "prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}
    assert second.get_total_usage() == {"total_cost": 0, "smollm2": once}
    assert first.get_actual_usage()["smollm2"] == {name: 2 * count for name, count in once.items()}
    summary = gather_usage_summary([first, second])["usage_including_cached_inference"]
    assert summary == {"total_cost": 0, "smollm2": {name: 3 * count for name, count in once.items()}}


def test_a_price_of_one_s_own(client: myllm.Client) -> None:
    one = agent(llm_config(client, price=[1000, 2000]))
    one.generate_reply(QUESTION)
    usage = one.get_total_usage()["smollm2"]
    assert usage["cost"] == usage["prompt_tokens"] + 2 * usage["completion_tokens"]


class Animal(BaseModel):
    name: str
    legs: int

    def format(self) -> str:
        return f"{self.name}: {self.legs} legs"


@pytest.mark.parametrize("plain", [False, True], ids=["served", "plain"])
def test_a_response_format_is_kept_to(client: myllm.Client, plain: bool) -> None:
    message = [{"role": "user", "content": "Describe a dog as JSON."}]
    config = llm_config(client, plain=plain, response_format=Animal, max_tokens=60)
    name, legs = agent(config).generate_reply(message).removesuffix(" legs").rsplit(": ", 1)
    assert name
    assert int(legs) >= 0 or legs.startswith("-")
    schema = Animal.model_json_schema()
    openai_s = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    for form in (schema, openai_s):
        config = llm_config(client, plain=plain, response_format=form, max_tokens=60)
        assert Animal.model_validate_json(agent(config).generate_reply(message)).name


def test_what_an_agent_asks_for_goes_before_the_entry_s_shape(client: myllm.Client) -> None:
    config = llm_config(client, choice=["yes", "no"], max_tokens=60)
    assert agent(config).generate_reply(QUESTION) in ("yes", "no")
    config.response_format = Animal  # as AutoGen's guardrails do
    assert "legs" in agent(config).generate_reply(QUESTION)


@pytest.mark.parametrize("plain", [False, True], ids=["served", "plain"])
@pytest.mark.parametrize("temperature", [0, 0.7, 1, 1.5, 2])
def test_temperatures(client: myllm.Client, plain: bool, temperature: float) -> None:
    config = llm_config(client, plain=plain, temperature=temperature, seed=1, max_tokens=4, tags=["a"])
    one = agent(config.where(tags=["a"]))
    direct = client.with_options(temperature=temperature, seed=1, max_tokens=4)
    expected = direct.chat([{"role": "system", "content": ""}, *QUESTION]).text
    assert one.generate_reply(QUESTION) == expected


def test_dead_server_is_passed_by(server: myllm.Server, free_port: int) -> None:
    config = llm_config("smollm2", port=[free_port, server.port], **GREEDY)
    assert [agent(config).generate_reply(QUESTION) for _ in range(2)] == [ANSWER, ANSWER]


def test_unknown_model_says_what_is_served(server: myllm.Server) -> None:
    with pytest.raises(Exception, match="'nope' does not exist here. This server serves: smollm2"):
        agent(llm_config("nope", port=server.port)).generate_reply(QUESTION)


def test_a_client_without_a_model_asks_for_it(server: myllm.Server) -> None:
    with myllm.Client(server.url, **GREEDY) as client:
        assert config_list(client, plain=True)[0]["model"] == "smollm2"
        assert agent(llm_config(client)).generate_reply(QUESTION) == ANSWER


def test_copied_and_filtered_configurations_still_work(client: myllm.Client) -> None:
    config = llm_config(client, tags=["local"])
    filtered = config.where(tags=["local"])  # AutoGen makes plain entries of ours here
    assert filtered.config_list[0].http_client is config.config_list[0].http_client
    for other in (config.copy(), LLMConfig(*config.config_list), config.copy().copy(), filtered):
        assert agent(other).generate_reply(QUESTION) == ANSWER


def test_a_plain_entry_can_be_stored_as_json(client: myllm.Client, tmp_path: Path) -> None:
    stored = tmp_path / "OAI_CONFIG_LIST"
    stored.write_text(json.dumps(config_list(client, plain=True, stop=["!"], tags=["local"])))
    config = LLMConfig.from_json(path=stored, filter_dict={"tags": ["local"]})
    assert agent(config).generate_reply(QUESTION) == ANSWER
