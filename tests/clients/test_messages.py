"""Message policies, against the rules of real chat templates."""

from __future__ import annotations

import copy

import jinja2
import pytest

from myllm.errors import BadRequestError, InvalidParameterError
from myllm.messages import POLICIES, apply, checked_messages, checked_policy, refused_roles
from myllm.types import Message

# The checks of the templates themselves. Gemma (google/gemma-2-9b-it, chat_template), and Mistral
# (mistralai/Mistral-7B-Instruct-v0.3), which counts neither tool results nor calls.
GEMMA = """{% if messages[0]['role'] == 'system' %}{{ raise('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
[{{ message['role'] }}]{{ message['content'] | trim }}{% endfor %}"""
MISTRAL = """{% set ns = namespace(index=0) %}{% for message in messages %}\
{% if (message.role == 'user' or message.role == 'assistant') and not message.tool_calls %}\
{% if (message['role'] == 'user') != (ns.index % 2 == 0) %}\
{{ raise('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}{% set ns.index = ns.index + 1 %}{% endif %}[{{ message.role }}]{{ message.content }}{% endfor %}"""


class Refused(Exception):
    pass


def rendered(template: str, messages: list[dict]) -> str:
    def refuse(words):
        raise Refused(words)

    return (
        jinja2.Environment(autoescape=False)
        .from_string(template)
        .render(messages=messages, **{"raise": refuse})
    )


def said(*roles: str) -> list[dict]:
    """A conversation whose message `i` has the content "<role><i>"; roles by their first letter."""
    names = {"s": "system", "u": "user", "a": "assistant", "d": "developer"}
    return [{"role": names[role], "content": f"{role}{i}"} for i, role in enumerate(roles)]


def shown(messages: list[dict]) -> list[tuple[str, str]]:
    return [(message["role"][0], message["content"]) for message in messages]


@pytest.mark.parametrize(
    ("roles", "merged", "alternating"),
    [
        ("u", [("u", "u0")], [("u", "u0")]),
        ("su", [("u", "s0\n\nu1")], [("u", "s0\n\nu1")]),
        ("ssu", [("u", "s0\n\ns1\n\nu2")], [("u", "s0\n\ns1\n\nu2")]),
        ("du", [("u", "d0\n\nu1")], [("u", "d0\n\nu1")]),
        ("s", [("u", "s0")], [("u", "s0")]),
        ("sau", [("a", "a1"), ("u", "s0\n\nu2")], [("u", ""), ("a", "a1"), ("u", "s0\n\nu2")]),
        ("uas", [("u", "u0"), ("a", "a1"), ("u", "s2")], [("u", "u0"), ("a", "a1"), ("u", "s2")]),
        ("usu", [("u", "u0"), ("u", "s1\n\nu2")], [("u", "u0\n\ns1\n\nu2")]),
        ("uuaau", [("u", "u0"), ("u", "u1"), ("a", "a2"), ("a", "a3"), ("u", "u4")], [("u", "u0\n\nu1"), ("a", "a2\n\na3"), ("u", "u4")]),
    ],
)  # fmt: skip
def test_policies(roles, merged, alternating):
    messages = said(*roles)
    before = copy.deepcopy(messages)
    assert shown(apply("merge_system", messages)) == merged
    assert shown(apply("alternate", messages)) == alternating
    assert apply("as_is", messages) == apply("auto", messages) == messages == before


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
@pytest.mark.parametrize("roles", ["uu", "suau", "ssuuaau", "au", "usu", "sausu", "uas"])
def test_strict_templates_take_what_alternates(template, roles):
    text = rendered(template, apply("alternate", said(*roles)))
    for i, role in enumerate(roles):
        assert f"{role}{i}" in text


@pytest.mark.parametrize(
    ("roles", "policy"),
    [("su", "merge_system"), ("uu", "alternate"), ("au", "alternate"), ("uaa", "alternate")],
)
def test_a_template_s_refusal_names_the_policy_that_mends_it(roles, policy):
    with pytest.raises(Refused) as caught:
        rendered(GEMMA, said(*roles))
    error = BadRequestError(
        "400", server_message=f"Error rendering prompt with jinja template: {caught.value}"
    )
    assert refused_roles(error) == policy
    rendered(GEMMA, apply(policy, said(*roles)))


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        # llama.cpp's models/templates and TGI's router/src/infer/chat_template.rs
        ("Conversation roles must alternate user/assistant/user/assistant/...", "alternate"),
        ("After the optional system message, conversation roles must alternate user and assistant roles except for tool calls and results.", "alternate"),
        ("System role not supported", "merge_system"),
        ("Only user and assistant roles are supported!", "merge_system"),
        ("Only user, assistant and tool roles are supported, got system.", "merge_system"),
        ("System message must be at the beginning.", "merge_system"),
        ("No messages provided.", None),
        ("Tool call IDs should be alphanumeric strings with length 9!", None),
        ("This model's maximum context length is 4096 tokens.", None),
        ("", None),
    ],
)  # fmt: skip
def test_server_s_words(words, policy):
    assert refused_roles(BadRequestError("400", server_message=words)) == policy


def test_tool_calls_and_results_are_kept_apart():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "abc", "type": "function"}]}
    result = {"role": "tool", "tool_call_id": "abc", "content": "4"}
    messages = [*said("s", "u"), call, result, {**result, "tool_call_id": "b"}, *said("a", "u")]
    out = apply("alternate", messages)
    assert [m["role"] for m in out] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert out[1] == call
    assert out[2:4] == messages[3:5]
    rendered(MISTRAL, out)


def test_text_and_tool_calls_of_one_turn_become_one_message():
    first = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "a"}]}
    second = {"role": "assistant", "content": None, "tool_calls": [{"id": "b"}]}
    (_, turn) = apply("alternate", [*said("u"), first, second])
    assert turn == {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "a"}, {"id": "b"}]}
    assert first["tool_calls"] == [{"id": "a"}]


def test_parts_are_merged_as_parts():
    image = {"type": "image_url", "image_url": {"url": "data:…"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
        {"role": "user", "content": "Well?"},
    ]
    before = copy.deepcopy(messages)
    (message,) = apply("alternate", messages)
    assert message["content"] == [
        {"type": "text", "text": "Be brief.\n\nWhat is it?"}, image, {"type": "text", "text": "Well?"}
    ]  # fmt: skip
    assert messages == before


def test_names_are_never_lost():
    ann, bob = ({"role": "user", "name": name, "content": f"I am {name}"} for name in ("ann", "bob"))
    (message,) = apply("alternate", [ann, bob])
    assert message == {"role": "user", "content": "ann: I am ann\n\nbob: I am bob"}
    (message,) = apply("alternate", [ann, ann])
    assert message == {"role": "user", "name": "ann", "content": "I am ann\n\nI am ann"}
    (message,) = apply("alternate", [*said("s"), {**bob, "content": [{"type": "text", "text": "hi"}]}])
    assert message["content"] == [{"type": "text", "text": "s0\n\nbob: hi"}]


def test_what_cannot_be_merged_is_told():
    messages = [{"role": "assistant", "content": "a", "prefix": mark} for mark in ("one", "two")]
    with pytest.raises(InvalidParameterError, match="`prefix`: 'one' and 'two'"):
        apply("alternate", [*said("u"), *messages])
    messages[1]["prefix"] = None  # no value
    assert apply("alternate", [*said("u"), *messages])[1]["prefix"] == "one"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_are_joined_like_texts(name):
    messages = [{"role": "assistant", "content": "a", name: text} for text in ("one", None, "two")]
    assert apply("alternate", [*said("u"), *messages])[1][name] == "one\n\ntwo"


# --- checked -----------------------------------------------------------------------------------------------


def test_a_text_is_the_user_s_one_message():
    assert checked_messages("hi") == [{"role": "user", "content": "hi"}]


def test_messages_are_copied():
    messages = ({"role": "user", "content": "hi"},)
    checked = checked_messages(messages)
    assert checked == list(messages)
    assert checked[0] is not messages[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"role": "user", "content": "x"}, "put it into a list"),
        ([], "is empty"),
        (5, "neither a text nor a list"),
        (b"x", "neither a text nor a list"),
        (None, "neither a text nor a list"),
        (["hi"], "`messages[0]='hi'` is no mapping"),
        ([("user", "hi")], "is no mapping"),
        (
            [{"role": "user", "content": "x"}, {"content": "x"}],
            "`messages[1]={'content': 'x'}` has no `role`",
        ),
        ([{"role": 1, "content": "x"}], "a `role` is a text"),
        ([{"role": "user", "content": {"text": "x"}}], "a text or a list of parts"),
    ],
)
def test_what_is_no_conversation_is_told(given, words):
    with pytest.raises(InvalidParameterError) as caught:
        checked_messages(given)
    assert words in str(caught.value)
    assert caught.value.param == "messages"
    assert "'role': 'user'" in caught.value.hint


def test_unknown_policy_lists_the_known():
    assert [checked_policy(policy) for policy in POLICIES] == list(POLICIES)
    with pytest.raises(InvalidParameterError, match="'alternate'"):
        checked_policy("alternating")


def test_an_answer_s_message_goes_back_into_the_conversation():
    """As every loop of tool calls does it."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answered = Message(content=None, tool_calls=[call])
    result = {"role": "tool", "tool_call_id": "1", "content": "4"}
    messages = checked_messages([{"role": "user", "content": "2+2?"}, answered, result])
    assert messages[1] == {"role": "assistant", "tool_calls": [call]}
