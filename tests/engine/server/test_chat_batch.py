"""vLLM's chat completions of many conversations in one request, on the bundled model."""

from __future__ import annotations

import httpx
import pytest

from myllm_engine.config import EngineConfig
from myllm_engine.errors import EngineError

ROUTE = "/v1/chat/completions/batch"
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}],
    [{"role": "user", "content": "Say hello."}],
]


def test_choice_i_is_that_of_conversation_i(http):
    more = {"temperature": 0, "max_tokens": 8, "logprobs": True}
    batch = http.post(ROUTE, json={"messages": CHATS, **more}).json()
    alone = [http.post("/v1/chat/completions", json={"messages": chat, **more}).json() for chat in CHATS]
    assert batch["object"] == "chat.completion"
    assert batch["model"] == "smollm2"
    assert [choice["index"] for choice in batch["choices"]] == [0, 1, 2]
    for choice, answer in zip(batch["choices"], alone, strict=True):
        assert choice["message"] == answer["choices"][0]["message"]
        assert choice["finish_reason"] == answer["choices"][0]["finish_reason"]
        tokens = [score["token"] for score in choice["logprobs"]["content"]]
        assert tokens == [score["token"] for score in answer["choices"][0]["logprobs"]["content"]]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert batch["usage"][count] == sum(answer["usage"][count] for answer in alone)


def test_a_schema_holds_for_all(http):
    body = {"messages": CHATS, "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}
    answers = http.post(ROUTE, json=body).json()["choices"]
    assert {answer["message"]["content"] for answer in answers} <= {"yes", "no"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": CHATS[0]}, "messages[0]"),
        ({"messages": [[]]}, "messages[0]"),
        ({"messages": [CHATS[0], [{"role": "bird", "content": "x"}]]}, "messages[1][0].role"),
        ({"messages": CHATS, "stream": True}, "stream"),
        ({"messages": CHATS, "n": 2}, "n"),
        ({"messages": CHATS, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"messages": CHATS, "temperature": -1}, "temperature"),
        ({"messages": CHATS, "temprature": 1}, "temprature"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_the_field(http, body, param):
    answer = http.post(ROUTE, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_more_than_ever_fits_is_refused_at_once(scripted):
    with scripted([], config=EngineConfig(max_num_seqs=1, max_queue=1)) as live:
        answer = httpx.post(live.url + ROUTE, json={"messages": CHATS})
        assert answer.status_code == 400
        assert "asks for 3 sequences" in answer.json()["error"]["message"]
        assert live.engine.requests == []


def test_if_one_fails_so_does_the_request(scripted, said):
    with scripted([said(("a", b"a", None)), EngineError("out of pages")]) as live:
        answer = httpx.post(live.url + ROUTE, json={"messages": CHATS})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "out of pages"
