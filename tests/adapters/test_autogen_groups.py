"""AutoGen's group chats on the real engine, also with chat templates that are strict about roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from autogen import ConversableAgent, GroupChat, GroupChatManager
from autogen.agentchat import initiate_group_chat
from autogen.agentchat.group.patterns import AutoPattern, RoundRobinPattern

import myllm
from myllm_adapters.autogen import llm_config

NAMES = ["anna", "ben", "cleo"]
# The template of AutoGen's page about vLLM (autogenmistraltemplate.jinja), as it stands there.
PAGE_S_TEMPLATE = """\
{{ bos_token }}
{% for message in messages %}
    {% if ((message['role'] == 'user' or message['role'] == 'system') != (loop.index0 % 2 == 0)) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}

    {% if (message['role'] == 'user' or message['role'] == 'system') %}
        {{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ message['content'] + eos_token}}
    {% else %}
        {{ raise_exception('Only system, user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}
"""


@pytest.fixture
def client(server: myllm.Server) -> Iterator[myllm.Client]:
    with server.client(max_tokens=4, temperature=0) as made:
        yield made


def agents(config: Any, names: list[str] = NAMES) -> list[ConversableAgent]:
    return [
        ConversableAgent(
            name,
            llm_config=config,
            system_message=f"You are {name}.",
            description=f"{name} answers questions.",
            human_input_mode="NEVER",
        )
        for name in names
    ]


def names_in(result: Any) -> list[str]:
    return [message["name"] for message in result.chat_history if "name" in message]  # a user has none


def test_agents_take_turns(client: myllm.Client) -> None:
    config = llm_config(client)
    members = agents(config)
    chat = GroupChat(members, max_round=4, speaker_selection_method="round_robin")
    result = members[0].initiate_chat(GroupChatManager(chat, llm_config=config), message="Hello!")
    assert names_in(result) == ["anna", "ben", "cleo", "anna"]
    assert all(message["content"] for message in result.chat_history)


class Choices(myllm.Hook):
    """The answers to calls that had a choice."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ended(self, record: myllm.CallRecord) -> None:
        if record.call.params.choice:
            self.texts.append(record.answer.text)


def test_the_model_chooses_who_speaks(server: myllm.Server) -> None:
    choices = Choices()
    with myllm.Client(server.url, model="smollm2", max_tokens=4, temperature=0, hooks=[choices]) as client:
        members = agents(llm_config(client))
        chat = GroupChat(
            members,
            max_round=4,
            select_speaker_auto_llm_config=llm_config(client, choice=NAMES, max_tokens=8),
        )
        result = members[0].initiate_chat(GroupChatManager(chat), message="Hello!")
    assert len(result.chat_history) == 4
    # Asked once for each: AutoGen asks again, or chooses itself, after an answer without a name.
    assert choices.texts == names_in(result)[1:]


def test_a_pattern_with_turns(client: myllm.Client) -> None:
    config = llm_config(client)
    members = agents(config)
    result, _, last = initiate_group_chat(
        RoundRobinPattern(
            initial_agent=members[0], agents=members, group_manager_args={"llm_config": config}
        ),
        messages="Hello!",
        max_rounds=4,
    )
    assert names_in(result) == ["anna", "ben", "cleo"]
    assert last.name == "cleo"
    usage = result.cost["usage_including_cached_inference"]
    assert usage["total_cost"] == 0
    assert usage["smollm2"]["completion_tokens"] == 3 * 4


def test_a_pattern_in_which_the_model_chooses(client: myllm.Client) -> None:
    members = agents(llm_config(client))
    result, _, _ = initiate_group_chat(
        AutoPattern(
            initial_agent=members[0],
            agents=members,
            group_manager_args={"llm_config": llm_config(client, choice=NAMES, max_tokens=8)},
        ),
        messages="Hello!",
        max_rounds=4,
    )
    assert names_in(result)[0] == "anna"
    assert set(names_in(result)) <= set(NAMES)
    assert len(result.chat_history) == 4


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(PAGE_S_TEMPLATE, id="AutoGen's page"),
        pytest.param("mistral", id="mistral", marks=pytest.mark.slow),
    ],
)
def strict_engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine whose template wants user and assistant to take turns."""
    from myllm_engine import AsyncEngine, EngineConfig

    engine = AsyncEngine(EngineConfig(chat_template=request.param, kv_cache_memory=128 * 2**20))
    yield engine
    engine.close()


def test_a_strict_template_gets_what_it_wants(strict_engine: Any) -> None:
    with myllm.Client(engine=strict_engine, model="smollm2", max_tokens=4, temperature=0) as client:
        members = agents(llm_config(client, message_policy="as_is"), NAMES[:2])
        with pytest.raises(openai.BadRequestError, match="(?i)roles must alternate"):
            _two_turns(members)
        members = agents(llm_config(client), NAMES[:2])  # the policy is "auto" unless one is given
        assert names_in(_two_turns(members)) == ["anna", "ben", "anna", "ben"]
        merging = client.with_options(message_policy="alternate")
        assert names_in(_two_turns(agents(llm_config(merging), NAMES[:2]))) == ["anna", "ben", "anna", "ben"]


def test_a_group_chat_with_a_strict_template(strict_engine: Any) -> None:
    with myllm.Client(engine=strict_engine, model="smollm2", max_tokens=4, temperature=0) as client:
        members = agents(llm_config(client))
        chat = GroupChat(members, max_round=4, allow_repeat_speaker=False)
        manager = GroupChatManager(chat, llm_config=llm_config(client, choice=NAMES, max_tokens=8))
        result = members[0].initiate_chat(manager, message="Hello!")
    assert len(result.chat_history) == 4


def _two_turns(members: list[ConversableAgent]) -> Any:
    return members[0].initiate_chat(members[1], message="Hello!", max_turns=2)
