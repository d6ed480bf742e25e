"""The adapters with an engine in this process in the place of a server."""

from __future__ import annotations

import copy
import pickle

import litellm
import pytest
from autogen import ConversableAgent

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
