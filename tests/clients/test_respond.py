"""Calls of OpenAI's Responses API."""

from __future__ import annotations

import pytest

from myllm import AsyncClient, Client
from myllm.errors import BadRequestError, InvalidParameterError, InvalidResponseError

ANSWER = {
    "id": "resp_1",
    "object": "response",
    "model": "m",
    "status": "completed",
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "message", "content": [{"type": "output_text", "text": "!"}]},
    ],
    "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
}


async def test_the_body_is_sent_as_it_is_and_the_items_come_back(wire):
    wire.answers(ANSWER)
    with Client(wire.url, model="m", dialect="openai") as client:
        answer = client.respond("Hi", max_output_tokens=5, extra_body={"top_k": 1}, timeout=5)
    async with AsyncClient(wire.url, model="m", dialect="openai") as client:
        again = await client.respond([{"role": "user", "content": "Hi"}], store=False)
    assert answer.output_text == again.output_text == "Hello!"
    assert answer.raw == ANSWER
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
    assert [seen.path for seen in wire.seen] == ["/v1/responses"] * 2
    assert wire.bodies == [
        {"model": "m", "input": "Hi", "max_output_tokens": 5, "top_k": 1},
        {"model": "m", "input": [{"role": "user", "content": "Hi"}], "store": False},
    ]


def test_responses_are_not_cached(wire, tmp_path):
    wire.answers(ANSWER)
    with Client(wire.url, model="m", dialect="openai", cache=tmp_path / "cache") as client:
        client.respond("Hi", temperature=0)
        client.respond("Hi", temperature=0)
    assert len(wire.seen) == 2


def test_what_is_no_response_is_an_error(wire):
    wire.answers({"object": "response"})
    with Client(wire.url, model="m", dialect="openai") as client:
        with pytest.raises(InvalidResponseError, match="output"):
            client.respond("Hi")
        with pytest.raises(InvalidParameterError, match="stream"):
            client.respond("Hi", stream=True)


def test_against_the_real_server(server):
    with server.client(max_retries=0) as client:
        first = client.respond("My name is Ada.", max_output_tokens=4)
        assert first.status == "incomplete"
        assert client.respond("And yours?", previous_response_id=first.id, max_output_tokens=4).output_text
        with pytest.raises(BadRequestError, match="did you mean `max_output_tokens`"):
            client.respond("Hi", max_output_token=4)
