"""Prompts that are read, cut and echoed, and what answers tell besides their text."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from myllm_engine.request import TokenLogprob
from myllm_engine.server.settings import ServerSettings

PROMPT = "The capital of France is Paris, and the capital of Germany is"
ROUTES = ["/v1/completions", "/v1/chat/completions"]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


def subject(route, text=PROMPT):
    return (
        {"prompt": text} if route == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    )


def chunks(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    assert response.text.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_scored_without_a_completion(client, engine, stream):
    token_ids = engine.tokenizer.encode(PROMPT)
    arguments = {"model": "smollm2", "prompt": [token_ids, token_ids[:4]], "echo": True, "logprobs": 1}
    scored = client.completions.create(**arguments, max_tokens=1, temperature=0)
    if stream:
        choices = [c.choices[0] for c in client.completions.create(**arguments, max_tokens=0, stream=True)]
        choices.sort(key=lambda choice: choice.index)
    else:
        answer = client.completions.create(**arguments, max_tokens=0)
        assert answer.usage.completion_tokens == 0
        assert answer.usage.total_tokens == answer.usage.prompt_tokens == len(token_ids) + 4
        choices = answer.choices
    assert [choice.text for choice in choices] == [PROMPT, engine.tokenizer.decode(token_ids[:4])]
    for choice, other in zip(choices, scored.choices, strict=True):
        assert choice.finish_reason == "length"
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.tokens == other.logprobs.tokens[:-1]
        assert choice.logprobs.text_offset == other.logprobs.text_offset[:-1]
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(
            other.logprobs.token_logprobs[1:-1], abs=1e-4
        )


def test_an_echoed_prompt_comes_whole_before_every_choice(http, engine):
    # Longer than what a step scores of a prompt: the second choice could be ahead of the scores.
    prompt = " ".join(str(number) for number in range(130))
    token_ids = engine.tokenizer.encode(prompt)
    assert len(token_ids) > 256
    body = {"prompt": prompt, "echo": True, "logprobs": 0, "n": 2, "max_tokens": 2, "stream": True, "seed": 1}
    texts, tokens = ["", ""], [0, 0]
    for chunk in chunks(http.post("/v1/completions", json=body)):
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += len(choice["logprobs"]["tokens"]) if choice["logprobs"] else 0
    assert all(text.startswith(prompt) for text in texts)
    assert tokens == [len(token_ids) + 2] * 2


def test_echoed_and_asked_for_logprobs_have_their_own_number_of_tokens(http):
    body = {"prompt": PROMPT, "echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 0}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    assert all(len(top) in (1, 2) for top in choice["logprobs"]["top_logprobs"][1:])
    assert all(len(top) in (3, 4) for top in choice["prompt_logprobs"][1:])


def test_chat_reads_a_prompt_without_an_answer(http, engine):
    body = {**subject("/v1/chat/completions"), "max_tokens": 0, "prompt_logprobs": 0}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == ""
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


def test_best_of_comes_in_a_stream_when_all_have_ended(http):
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 1.5, "seed": 3, "n": 2, "best_of": 4}
    plain = http.post("/v1/completions", json=body).json()["choices"]
    events = chunks(http.post("/v1/completions", json={**body, "stream": True}))
    assert [event["choices"][0]["text"] for event in events] == [choice["text"] for choice in plain]
    assert [event["choices"][0]["index"] for event in events] == [0, 1]


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, slice(-3, None)),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, slice(-3, None)),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, slice(0, 3)),
        ({"truncate_prompt_tokens": -1}, slice(None)),
    ],
)
@pytest.mark.parametrize("as_ids", [False, True])
def test_prompts_are_cut(http, engine, extra, kept, as_ids):
    token_ids = engine.tokenizer.encode(PROMPT)
    body = {
        "prompt": token_ids if as_ids else PROMPT,
        "max_tokens": 1,
        "return_token_ids": True,
        "echo": True,
    }
    [choice] = http.post("/v1/completions", json={**body, **extra}).json()["choices"]
    assert choice["prompt_token_ids"] == token_ids[kept]
    assert choice["text"].startswith(engine.tokenizer.decode(token_ids[kept]))


@pytest.mark.parametrize("route", ROUTES)
def test_cutting_leaves_room_for_the_completion(scripted, said, route):
    with scripted([said(("a", b"a", "stop"))], max_model_len=100) as live:
        body = {**subject(route, "x" * 300 + "end"), "max_tokens": 7, "truncate_prompt_tokens": -1}
        assert httpx.post(live.url + route, json=body).status_code == 200
        [request] = live.engine.requests
        assert len(request.prompt_token_ids) == 93
        assert b"end" in bytes(request.prompt_token_ids)


@pytest.mark.parametrize("route", ROUTES)
def test_token_ids_are_given_back(http, engine, route):
    body = {**subject(route), "max_tokens": 5, "temperature": 0, "return_token_ids": True}
    plain = http.post(route, json=body).json()
    [choice] = plain["choices"]
    chat = "chat" in route
    text = choice["message"]["content"] if chat else choice["text"]
    assert engine.tokenizer.decode(choice["token_ids"]) == text
    assert len(choice["token_ids"]) == plain["usage"]["completion_tokens"]
    prompt = (plain if chat else choice)["prompt_token_ids"]
    assert len(prompt) == plain["usage"]["prompt_tokens"]

    events = chunks(http.post(route, json={**body, "stream": True}))
    streamed = [token for event in events for token in event["choices"][0].get("token_ids", [])]
    assert streamed == choice["token_ids"]
    first, *others = [event if chat else event["choices"][0] for event in events]
    assert first["prompt_token_ids"] == prompt
    assert all("prompt_token_ids" not in other for other in others)


@pytest.mark.parametrize("route", ROUTES)
def test_the_prompts_text_is_given_back(http, engine, route):
    body = {**subject(route), "max_tokens": 0, "return_prompt_text": True}
    answer = http.post(route, json=body).json()
    if "chat" in route:
        expected = engine.tokenizer.render_chat(subject(route)["messages"])
        assert answer["prompt_text"] == expected
    else:
        assert answer["choices"][0]["prompt_text"] == PROMPT


def token_names(answer):
    logprobs = answer["choices"][0]["logprobs"]
    if "content" in logprobs:
        return [token["token"] for token in logprobs["content"]]
    return logprobs["tokens"]


@pytest.mark.parametrize("route", ROUTES)
def test_tokens_can_be_named_by_their_ids(http, scripted, said, route):
    wanted = {"logprobs": 1} if route == "/v1/completions" else {"logprobs": True, "top_logprobs": 1}
    body = {**subject(route), "max_tokens": 3, "temperature": 0, **wanted, "return_token_ids": True}
    answer = http.post(route, json={**body, "return_tokens_as_token_ids": True}).json()
    expected = [f"token_id:{token}" for token in answer["choices"][0]["token_ids"]]
    assert token_names(answer) == expected

    settings = ServerSettings(return_tokens_as_token_ids=True)
    with scripted([said(("a", b"a", "stop"))], settings) as live:
        assert token_names(httpx.post(live.url + route, json=body).json()) == ["token_id:97"]
        body["return_tokens_as_token_ids"] = False
        assert token_names(httpx.post(live.url + route, json=body).json()) == ["a"]


@pytest.mark.parametrize("route", ROUTES)
def test_tokens_of_the_users_choice_are_scored(http, engine, route):
    wanted = [token for word in (" Berlin", " Paris", " Rome") for token in engine.tokenizer.encode(word)]
    logprobs = {"logprobs": 1} if route == "/v1/completions" else {"logprobs": True}
    body = {**subject(route), "max_tokens": 1, "temperature": 0, **logprobs, "logprob_token_ids": wanted}
    answer = http.post(route, json=body).json()["choices"][0]["logprobs"]
    names = {engine.tokenizer.token_text(token) for token in wanted}
    if route == "/v1/completions":
        [top] = answer["top_logprobs"]
        assert set(top) == names | {answer["tokens"][0]}
    else:
        assert {entry["token"] for entry in answer["content"][0]["top_logprobs"]} == names


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_can_be_named(http, route):
    body = {**subject(route), "max_tokens": 1, "request_id": "mine"}
    prefix = "cmpl" if route == "/v1/completions" else "chatcmpl"
    assert http.post(route, json=body).json()["id"] == f"{prefix}-mine"
    named = http.post(route, json=body, headers={"X-Request-Id": "theirs"})
    assert named.json()["id"] == f"{prefix}-theirs"


@pytest.mark.parametrize("route", ROUTES)
def test_chunks_gather_tokens(http, route):
    body = {**subject(route), "max_tokens": 10, "temperature": 0, "ignore_eos": True, "stream": True}
    body["return_token_ids"] = True
    events = chunks(http.post(route, json={**body, "stream_interval": 4}))
    counts = [len(event["choices"][0].get("token_ids", [])) for event in events]
    first, *middle, last = [count for count in counts if count]
    assert first >= 1
    assert last >= 1
    assert all(count >= 4 for count in middle)
    assert sum(counts) == 10
    assert len(middle) <= 2

    def text(events):
        pieces = [event["choices"][0] for event in events]
        return "".join(piece.get("text") or piece.get("delta", {}).get("content", "") for piece in pieces)

    assert text(events) == text(chunks(http.post(route, json=body)))


def test_a_text_that_repeats_itself_is_ended(http, engine):
    [token] = engine.tokenizer.encode(" the")
    body = {"prompt": PROMPT, "max_tokens": 20, "allowed_token_ids": [token]}
    body["repetition_detection"] = {"max_pattern_size": 3, "min_count": 4}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == " the" * 4
    assert (choice["finish_reason"], choice["stop_reason"]) == ("repetition", "repetition_detected")


def test_whitespace_of_guided_json_can_be_chosen(http, engine):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    [newline] = engine.tokenizer.encode("\n")
    body = {"prompt": "JSON: ", "max_tokens": 30, "temperature": 0, "logit_bias": {newline: 100}}
    body["guided_json"] = {**schema, "additionalProperties": False}
    assert http.post("/v1/completions", json=body).json()["choices"][0]["text"] == '{"a":1}'
    body["guided_whitespace_pattern"] = r"\n"
    text = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "\n" in text
    assert json.loads(text) == {"a": 1}


def test_outputs_wait_for_the_prompts_scores(scripted, said):
    early, late = said(("a", b"a", None)), said(("b", b"b", "stop"))
    late.prompt_logprobs = [None, TokenLogprob(104, -2.0, 3)]
    early.prompt_logprobs = [None]
    for output in (early, late):
        output.prompt_token_ids = list(b"hh")
    with scripted([early, late]) as live:
        body = {"prompt": "hh", "echo": True, "logprobs": 0, "stream": True}
        [event] = chunks(httpx.post(f"{live.url}/v1/completions", json=body))
        assert event["choices"][0]["text"] == "hhab"
        assert event["choices"][0]["logprobs"]["token_logprobs"] == [None, -2.0, -0.5, -0.5]
