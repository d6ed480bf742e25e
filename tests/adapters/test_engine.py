"""The adapters with an engine in this process in the place of a server."""

from __future__ import annotations

import copy
import json
import pickle

import litellm
import pytest
from autogen import ConversableAgent, register_function

import myllm
from myllm_adapters.autogen import llm_config
from myllm_adapters.dspy import LM, Client, HFClientTGI, HFClientVLLM
from myllm_adapters.litellm import register

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize("make", [HFClientVLLM, HFClientTGI, Client, LM])
def test_dspy_s_language_models_take_an_engine(local_engine, make):
    settings = {"temperature": 0, "max_tokens": 12, "cache": False}
    if make is LM:
        lm = LM(myllm.Client(engine=local_engine), **settings)
    else:
        lm = make("smollm2", engine=local_engine, **settings)
    with myllm.Client(engine=local_engine, temperature=0, max_tokens=12) as client:
        expected = client.chat(QUESTION).text
    assert lm(QUESTION) == copy.deepcopy(lm)(QUESTION) == lm.copy(stop=["\0"])(QUESTION) == [expected]


def test_a_dspy_program_with_an_engine_is_not_saved(local_engine):
    lm = HFClientVLLM("smollm2", engine=local_engine)
    for save in (lm.dump_state, lambda: pickle.dumps(lm)):
        with pytest.raises(myllm.InvalidParameterError, match="lives in this process and cannot be saved"):
            save()


def test_autogen_s_agents_take_an_engine(local_engine):
    config = llm_config("smollm2", engine=local_engine, temperature=0, max_tokens=12)
    agent = ConversableAgent("agent", llm_config=copy.deepcopy(config), human_input_mode="NEVER")
    reply = agent.generate_reply([{"role": "user", "content": QUESTION}])
    with myllm.Client(engine=local_engine, temperature=0, max_tokens=12) as client:
        expected = client.chat(QUESTION).text
    assert (reply if isinstance(reply, str) else reply["content"]) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_autogen_s_agents_call_tools_of_an_engine_s_model(local_engine, stream):
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    with myllm.Client(engine=local_engine, model="smollm2", temperature=0, max_tokens=40) as client:
        config = llm_config(client, tool_choice="required", parallel_tool_calls=False, stream=stream)
        caller = ConversableAgent("caller", llm_config=config, human_input_mode="NEVER")
        user = ConversableAgent("user", llm_config=False, human_input_mode="NEVER")
        register_function(greet, caller=caller, executor=user, description="Greet somebody.")
        chat = user.initiate_chat(caller, message="Greet Anna.", max_turns=2).chat_history
        (call,) = chat[1]["tool_calls"]
        assert chat[2]["content"] == greet(**json.loads(call["function"]["arguments"]))
        with pytest.raises(myllm.InvalidParameterError, match="an engine in this process has no address"):
            llm_config(client, plain=True)


async def test_litellm_s_provider_takes_an_engine(local_engine, monkeypatch):
    monkeypatch.setattr(litellm, "custom_provider_map", list(litellm.custom_provider_map))
    register(myllm.Client(engine=local_engine, temperature=0, max_tokens=12), "here")
    asked = {"model": "here/smollm2", "messages": [{"role": "user", "content": QUESTION}]}
    with myllm.Client(engine=local_engine, temperature=0, max_tokens=12) as client:
        expected = client.chat(QUESTION).text
    assert litellm.completion(**asked).choices[0].message.content == expected
    assert (await litellm.acompletion(**asked)).choices[0].message.content == expected


def test_autogen_is_told_that_an_engine_has_no_address(local_engine):
    with pytest.raises(myllm.InvalidParameterError, match="where `port` says nothing"):
        llm_config("smollm2", engine=local_engine, port=8000)
