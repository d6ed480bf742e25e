"""The servers' tokenizers, asked through the client."""

from __future__ import annotations

import pytest

from myllm import Client, UnsupportedFeatureError
from myllm.dialects import get_dialect
from myllm.params import build
from myllm.wire import Call, ServerInfo

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
LLAMA_SERVER = {"/v1/models": "llama-server/models.json", "/props": "llama-server/props.json"}
LLAMA_CPP_PYTHON = {
    "/v1/models": "llama-cpp-python/models.json",
    "/openapi.json": "llama-cpp-python/openapi.json",
}


@pytest.mark.parametrize(("dialect", "prefix", "length"), [("vllm", "", 2048), ("sglang", "/v1", 131072)])
def test_vllm_s_and_sglang_s(replay, dialect, prefix, length):
    wire = replay(
        {
            f"{prefix}/tokenize": f"{dialect}/tokenize.json",
            f"{prefix}/detokenize": f"{dialect}/detokenize.json",
        }
    )
    with Client(wire.url, model="m", dialect=dialect, temperature=0.0) as client:
        tokens = client.tokenize("Hello world", extra_body={"add_special_tokens": False})
        client.tokenize(MESSAGES)
        text = client.detokenize(tokens.ids)
    assert wire.bodies == [
        {"model": "m", "prompt": "Hello world", "add_special_tokens": False},
        {"model": "m", "messages": MESSAGES},
        {"model": "m", "tokens": tokens.ids},
    ]
    assert (tokens.count, len(tokens.ids), tokens.texts, tokens.max_model_len) == (
        len(tokens.ids), tokens.count, None, length,
    )  # fmt: skip
    assert tokens.raw["count"] == tokens.count
    assert text == "Hello world"


def test_tgi_s(replay):
    wire = replay({"/tokenize": "tgi/tokenize.json", "/chat_tokenize": "tgi/chat_tokenize.json"})
    with Client(wire.url, dialect="tgi") as client:
        tokens = client.tokenize("Hello world")
        chat = client.tokenize(MESSAGES)
        with pytest.raises(UnsupportedFeatureError, match="cannot detokenize"):
            client.detokenize([1])
    assert [(seen.method, seen.path) for seen in wire.seen] == [
        ("POST", "/tokenize"),
        ("GET", "/chat_tokenize"),
    ]
    assert wire.bodies == [{"inputs": "Hello world"}, {"messages": MESSAGES}]
    assert (tokens.ids, tokens.texts, tokens.count) == ([19556, 905], ["Hello", " world"], 2)
    assert (chat.ids, chat.texts) == ([1, 4093], ["<|im_start|>", "user"])


def test_llama_server_s(replay):
    wire = replay(
        {
            **LLAMA_SERVER,
            "/tokenize": "llama-server/tokenize_pieces.json",
            "/detokenize": "llama-server/detokenize.json",
            "/v1/chat/completions/input_tokens": "llama-server/chat_input_tokens.json",
        }
    )
    with Client(wire.url, dialect="llamacpp") as client:
        tokens = client.tokenize("Hello world")
        text = client.detokenize(tokens.ids)
        chat = client.tokenize(MESSAGES)
    # Its completion endpoint adds special tokens; its tokenizer only when told.
    assert wire.bodies[2] == {"content": "Hello world", "add_special": True, "with_pieces": True}
    assert (tokens.ids, tokens.count, tokens.texts) == ([19556, 905, 26411], 3, ["Hello", " world", " é"])
    assert text == "Hello world"
    assert (chat.count, chat.ids) == (37, None)


def test_a_token_that_is_no_whole_character(replay):
    wire = replay({**LLAMA_SERVER, "/tokenize": "llama-server/tokenize_pieces_bytes.json"})
    with Client(wire.url, dialect="llamacpp") as client:
        tokens = client.tokenize("🔎")
    assert (tokens.ids, tokens.texts) == ([10813, 238, 232], ["\ufffd", "\ufffd", "\ufffd"])


def test_llama_cpp_python_s(replay):
    wire = replay(
        {
            **LLAMA_CPP_PYTHON,
            "/extras/tokenize": "llama-cpp-python/tokenize.json",
            "/extras/detokenize": "llama-cpp-python/detokenize.json",
        }
    )
    with Client(wire.url, dialect="llamacpp") as client:
        tokens = client.tokenize("Hello world")
        text = client.detokenize(tokens.ids)
        with pytest.raises(UnsupportedFeatureError, match="tokenizes text only"):
            client.tokenize(MESSAGES)
    assert wire.bodies[2] == {"model": "smollm2", "input": "Hello world"}
    assert (tokens.ids, tokens.count, tokens.texts, text) == ([19556, 905], 2, None, "Hello world")


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_servers_without_one(replay, dialect):
    wire = replay({})
    with Client(wire.url, model="m", dialect=dialect) as client:
        for ask in (
            lambda: client.tokenize("x"),
            lambda: client.tokenize(MESSAGES),
            lambda: client.detokenize([1]),
        ):
            with pytest.raises(UnsupportedFeatureError, match=f"{dialect!r} servers have no endpoint"):
                ask()
    assert wire.seen == []


def shaped(dialect, **given):
    call = Call(kind="tokenize", model="m", params=build(given), messages=MESSAGES)
    (request,) = get_dialect(dialect).requests(call, ServerInfo(dialect=dialect))
    return request.json


def test_parameters_that_change_the_prompt_are_sent():
    given = {
        "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
    }
    for dialect in ("vllm", "sglang"):
        assert shaped(dialect, **given) == {"model": "m", "messages": MESSAGES, **given}
    assert shaped("llamacpp", **given) == {"messages": MESSAGES, **given}
    assert shaped("tgi", tools=TOOLS, temperature=0.5) == {"messages": MESSAGES, "tools": TOOLS}


@pytest.mark.parametrize(
    ("dialect", "given"),
    [
        ("vllm", {"documents": [{"text": "a"}]}),
        ("vllm", {"reasoning_effort": "low"}),
        ("sglang", {"chat_template": "{{ x }}"}),
        ("llamacpp", {"add_special_tokens": False}),
        ("tgi", {"chat_template_kwargs": {"a": 1}}),
    ],
)
def test_what_would_change_the_count_and_cannot_be_said_is_refused(dialect, given):
    with pytest.raises(UnsupportedFeatureError, match=next(iter(given))):
        shaped(dialect, **given)
