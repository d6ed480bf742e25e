"""OpenAI's API on the bundled model, used through the openai SDK."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from myllm_engine.request import Request, SamplingParams

PROMPT = "The sky is blue because"
CHAT = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


async def generate(engine, token_ids, **params):
    """Return the token ids that the engine itself makes."""
    made = []
    request = Request(prompt_token_ids=token_ids, params=SamplingParams(temperature=0, **params))
    async for output in engine.submit(request):
        made += output.outputs[0].token_ids
    return made


def test_models_are_listed_and_found(client, engine):
    [model] = client.models.list().data
    assert model.id == "smollm2"
    assert model.max_model_len == engine.max_model_len
    assert client.models.retrieve("smollm2").id == "smollm2"
    assert client.models.retrieve("SmolLM2-135M-Instruct").root == "smollm2"
    with pytest.raises(openai.NotFoundError, match="This server serves: smollm2"):
        client.models.retrieve("org/other")


async def test_greedy_completion_is_what_the_engine_makes(client, engine):
    token_ids = engine.tokenizer.encode(PROMPT)
    made = await generate(engine, token_ids, max_tokens=20)
    answer = client.completions.create(model="smollm2", prompt=PROMPT, max_tokens=20, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "smollm2"
    assert answer.choices[0].text == engine.tokenizer.decode(made)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(token_ids)
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == len(token_ids) + 20


async def test_greedy_chat_is_what_the_engine_makes(client, engine):
    token_ids = engine.tokenizer.encode_chat(CHAT)
    made = await generate(engine, token_ids)
    answer = client.chat.completions.create(model="smollm2", messages=CHAT, temperature=0)
    [choice] = answer.choices
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content == engine.tokenizer.decode(made)
    assert "Paris" in choice.message.content
    # No limit was set, and the model ended its turn.
    assert choice.finish_reason == "stop"
    assert choice.model_extra["stop_reason"] is None
    assert answer.usage.prompt_tokens == len(token_ids)
    assert answer.usage.completion_tokens == len(made)
    assert made[-1] in engine.tokenizer.eos_token_ids


def test_streamed_chat_joins_to_the_plain_answer(client):
    arguments = {"model": "smollm2", "messages": CHAT, "temperature": 0}
    plain = client.chat.completions.create(**arguments)
    chunks = list(
        client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    )
    first, *middle, last, counts = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(c.choices[0].delta.content for c in [*middle, last]) == plain.choices[0].message.content
    assert len(middle) > 3
    assert [c.choices[0].finish_reason for c in [*middle, last]] == [None] * len(middle) + ["stop"]
    assert counts.choices == []
    assert counts.usage == plain.usage
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks[:-1])


def test_streamed_completions_join_to_the_plain_answer(client):
    arguments = {"model": "smollm2", "prompt": [PROMPT, "Once upon a time"], "n": 2, "seed": 5, "logprobs": 2}
    plain = client.completions.create(**arguments)
    texts, tokens, offsets, reasons = ([[] for _ in range(4)] for _ in range(4))
    for chunk in client.completions.create(**arguments, stream=True):
        [choice] = chunk.choices
        texts[choice.index].append(choice.text)
        tokens[choice.index] += choice.logprobs.tokens
        offsets[choice.index] += choice.logprobs.text_offset
        reasons[choice.index].append(choice.finish_reason)
        assert chunk.usage is None
    for choice in plain.choices:
        assert "".join(texts[choice.index]) == choice.text
        assert tokens[choice.index] == choice.logprobs.tokens
        assert offsets[choice.index] == choice.logprobs.text_offset
        assert reasons[choice.index][-1] == choice.finish_reason
        assert set(reasons[choice.index][:-1]) <= {None}


def test_a_stream_is_server_sent_events_to_the_last_byte(http):
    body = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = http.post("/v1/completions", json={**body, "stream_options": options})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]
    assert "stop_reason" not in chunks[0]["choices"][0]
    assert chunks[2]["choices"][0]["stop_reason"] is None


def test_prompts_may_be_token_ids(client, engine):
    token_ids = engine.tokenizer.encode(PROMPT)
    arguments = {"model": "smollm2", "max_tokens": 5, "temperature": 0}
    text = client.completions.create(prompt=PROMPT, **arguments).choices[0].text
    assert client.completions.create(prompt=token_ids, **arguments).choices[0].text == text
    answer = client.completions.create(prompt=[token_ids, token_ids], **arguments)
    assert [choice.text for choice in answer.choices] == [text, text]
    assert answer.usage.prompt_tokens == 2 * len(token_ids)
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(prompt=[10**6], **arguments)


def test_choices_are_ordered_by_prompt_then_sample(client):
    arguments = {"model": "smollm2", "max_tokens": 6, "seed": 11, "temperature": 1.0}
    both = client.completions.create(prompt=["One, two,", "Dear Sir"], n=2, **arguments)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    for number, prompt in enumerate(["One, two,", "Dear Sir"]):
        alone = client.completions.create(prompt=prompt, n=2, **arguments)
        assert [c.text for c in alone.choices] == [c.text for c in both.choices[2 * number : 2 * number + 2]]
        assert alone.choices[0].text != alone.choices[1].text


def test_defaults_are_openais(client):
    answer = client.completions.create(model="smollm2", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_text_and_are_told(http, stream):
    body = {
        "prompt": "1, 2, 3, 4,",
        "temperature": 0,
        "max_tokens": 30,
        "stop": ["never", " 7"],
        "stream": stream,
    }

    def text_and_reason(**extra):
        response = http.post("/v1/completions", json={**body, **extra})
        if not stream:
            [choice] = response.json()["choices"]
            return choice["text"], choice["finish_reason"], choice["stop_reason"]
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        last = chunks[-1]["choices"][0]
        return "".join(c["choices"][0]["text"] for c in chunks), last["finish_reason"], last["stop_reason"]

    assert text_and_reason() == (" 5, 6,", "stop", " 7")
    assert text_and_reason(include_stop_str_in_output=True) == (" 5, 6, 7", "stop", " 7")


def test_completion_logprobs(client):
    answer = client.completions.create(
        model="smollm2", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=3
    )
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert len(top) == 3
        # Greedy: the chosen token is the likeliest.
        assert top[token] == logprob == max(top.values())
        assert logprob <= 0


def test_chat_logprobs_cover_every_token(client, engine):
    answer = client.chat.completions.create(
        model="smollm2", messages=CHAT, temperature=0, logprobs=True, top_logprobs=2
    )
    [choice] = answer.choices
    *text, end = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in text).decode() == choice.message.content
    assert end.token == "<|im_end|>"
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.top_logprobs[0].token == token.token


def test_characters_spread_over_tokens_come_whole(http):
    # 🦜 takes three tokens, and the model repeats it; the sixth is cut off after one.
    prompt = "Repeat after me: 🦜🦜🦜🦜🦜🦜🦜🦜"
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 16, "logprobs": 0}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"].rstrip("\ufffd") == "🦜🦜🦜🦜🦜"
    response = http.post("/v1/completions", json={**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == choice["text"]
    assert "\ufffd" not in "".join(texts[:-1])
    tgi = http.post(
        "/generate", json={"inputs": prompt, "parameters": {"max_new_tokens": 16, "details": True}}
    ).json()
    whole = tgi["generated_text"].rstrip("\ufffd")
    assert "".join(token["text"] for token in tgi["details"]["tokens"]) == whole


def test_echo_begins_with_the_prompt(client, engine):
    arguments = {"model": "smollm2", "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(prompt=PROMPT, **arguments).choices[0].text
    token_ids = engine.tokenizer.encode(PROMPT)
    answer = client.completions.create(prompt=[PROMPT, "Hello"], echo=True, **arguments)
    assert answer.choices[0].text == PROMPT + plain
    assert answer.choices[1].text.startswith("Hello")
    assert (
        client.completions.create(prompt=token_ids, echo=True, **arguments).choices[0].text == PROMPT + plain
    )
    chunks = list(client.completions.create(prompt=PROMPT, echo=True, stream=True, **arguments))
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT + plain


def test_an_echoed_prompt_has_log_probabilities(engine, http):
    body = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 2}
    scores = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    token_ids = engine.tokenizer.encode(PROMPT)
    count = len(token_ids)
    assert len(scores["tokens"]) == len(scores["text_offset"]) == count + 3
    assert "".join(scores["tokens"][:count]) == PROMPT
    assert (scores["token_logprobs"][0], scores["top_logprobs"][0]) == (None, None)
    # What is said of the prompt's last token is what a completion of the others would begin with.
    others = {"prompt": token_ids[:-1], "max_tokens": 1, "temperature": 0, "logprobs": 1}
    best = http.post("/v1/completions", json=others).json()["choices"][0]["logprobs"]
    token, logprob = max(scores["top_logprobs"][count - 1].items(), key=lambda item: item[1])
    assert token == best["tokens"][0]
    assert logprob == pytest.approx(best["token_logprobs"][0], abs=1e-3)

    pieces = []
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["logprobs"])
    for name in ("tokens", "text_offset"):
        assert [item for piece in pieces if piece for item in piece[name]] == scores[name]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_log_probabilities(http, engine, route):
    chat = route.endswith("chat/completions")
    subject = {"messages": CHAT} if chat else {"prompt": [PROMPT, "Hello there"]}
    answer = http.post(route, json={**subject, "max_tokens": 1, "prompt_logprobs": 2}).json()
    prompts = [answer] if chat else answer["choices"]
    encode = engine.tokenizer.encode
    ids = [engine.tokenizer.encode_chat(CHAT)] if chat else list(map(encode, subject["prompt"]))
    for prompt, token_ids in zip(prompts, ids, strict=True):
        first, *others = prompt["prompt_logprobs"]
        assert first is None
        assert len(others) == len(token_ids) - 1
        for token_id, entries in zip(token_ids[1:], others, strict=True):
            own = entries[str(token_id)]
            assert own["decoded_token"] == engine.tokenizer.token_text(token_id)
            ranked = sorted(entries.values(), key=lambda entry: entry["rank"])
            assert [entry["rank"] for entry in ranked] == sorted({1, 2, own["rank"]})
            logprobs = [entry["logprob"] for entry in ranked]
            assert logprobs == sorted(logprobs, reverse=True)


def test_best_of_returns_the_likeliest(http):
    body = {
        "prompt": PROMPT,
        "max_tokens": 6,
        "temperature": 1.5,
        "seed": 3,
        "ignore_eos": True,
        "logprobs": 0,
    }

    def choices(**more):
        answer = http.post("/v1/completions", json={**body, **more}).json()["choices"]
        return [(sum(choice["logprobs"]["token_logprobs"]), choice["text"]) for choice in answer]

    best = sorted(choices(n=4), reverse=True)[:2]
    assert [text for _, text in choices(best_of=4, n=2)] == [text for _, text in best]


def test_best_of_holds_for_chats(http):
    body = {"messages": CHAT, "max_tokens": 6, "temperature": 1.5, "seed": 3, "logprobs": True}

    def choices(**more):
        answer = http.post("/v1/chat/completions", json={**body, **more}).json()["choices"]
        means = [
            sum(token["logprob"] for token in choice["logprobs"]["content"])
            / len(choice["logprobs"]["content"])
            for choice in answer
        ]
        return list(zip(means, (choice["message"]["content"] for choice in answer), strict=True))

    best = sorted(choices(n=4), reverse=True)[:2]
    assert choices(best_of=4, n=2) == best


def test_words_and_tokens_can_be_forbidden(http, engine):
    body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}

    def text(**more):
        return http.post("/v1/completions", json={**body, **more}).json()["choices"][0]["text"]

    assert "Paris" in text()
    assert "Paris" not in text(bad_words=["Paris"])
    (only,) = engine.tokenizer.encode(" the")
    assert text(allowed_token_ids=[only]) == " the" * 4


def test_a_beam_search_returns_its_beams(http):
    body = {"prompt": PROMPT, "max_tokens": 5}

    def texts(**more):
        choices = http.post("/v1/completions", json={**body, **more}).json()["choices"]
        return [choice["text"] for choice in choices]

    assert texts(use_beam_search=True) == texts(temperature=0)  # one beam is greedy
    wide = {"use_beam_search": True, "best_of": 4, "length_penalty": 0.0, "early_stopping": True}
    assert len(set(texts(n=3, **wide))) == 3
    assert texts(n=1, **wide) == texts(n=3, **wide)[:1]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_priority_and_salt_reach_the_engine(scripted, said, route):
    with scripted([said(("a", b"a", "stop"))]) as live:
        subject = {"messages": CHAT} if "chat" in route else {"prompt": "p"}
        response = httpx.post(live.url + route, json={**subject, "priority": -3, "cache_salt": "tenant"})
        assert response.status_code == 200
        [request] = live.engine.requests
        assert (request.priority, request.cache_salt) == (-3, "tenant")


def test_messages_may_be_parts_and_developers(client, engine):
    def prompt_tokens(messages):
        answer = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=1)
        return answer.usage.prompt_tokens

    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\nthere"}]
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    same = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert prompt_tokens(system) == prompt_tokens(same) == len(engine.tokenizer.encode_chat(system))


def test_the_last_message_can_be_continued(client):
    messages = [*CHAT, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.chat.completions.create(
        model="smollm2",
        messages=messages,
        temperature=0,
        max_tokens=3,
        extra_body={"add_generation_prompt": False, "continue_final_message": True},
    )
    assert answer.choices[0].message.content.startswith(" Paris")


def test_logit_bias_and_stop_tokens_reach_the_sampler(client, engine):
    [token_id] = engine.tokenizer.encode(" Paris", add_special_tokens=False)
    answer = client.completions.create(
        model="smollm2", prompt=PROMPT, max_tokens=3, temperature=0, logit_bias={str(token_id): 1000}
    )
    assert answer.choices[0].text == " Paris Paris Paris"
    answer = client.completions.create(
        model="smollm2",
        prompt=PROMPT,
        logit_bias={str(token_id): 100},
        extra_body={"stop_token_ids": [token_id]},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra["stop_reason"] == token_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_is_told_in_words_that_clients_know(client, engine, stream):
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
        client.completions.create(
            model="smollm2", prompt=PROMPT, max_tokens=engine.max_model_len, stream=stream
        )
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
        ({"min_tokens": 10**6}, "min_tokens"),
    ],
)
def test_what_a_chat_has_no_room_for_is_told_by_its_field(http, change, param):
    response = http.post("/v1/chat/completions", json={"messages": CHAT, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_long_prompt_is_tokenized_aside(client, engine):
    text = "word " * 200 + " " * 20_000
    answer = client.completions.create(model="smollm2", prompt=text, max_tokens=1)
    assert answer.usage.prompt_tokens == len(engine.tokenizer.encode(text))


async def test_concurrent_requests_get_their_own_answers(live, engine):
    words = ["red", "green", "blue", "dog", "cat", "house", "tree", "river"]
    prompts = [f"Repeat: {word} {word} {word} {word}" for word in words]
    alone = [
        engine.tokenizer.decode(await generate(engine, engine.tokenizer.encode(p), max_tokens=6))
        for p in prompts
    ]
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="-", timeout=60) as client:

        async def ask(prompt, stream):
            arguments = {"model": "smollm2", "prompt": prompt, "max_tokens": 6, "temperature": 0}
            if not stream:
                return (await client.completions.create(**arguments)).choices[0].text
            chunks = await client.completions.create(**arguments, stream=True)
            return "".join([chunk.choices[0].text async for chunk in chunks])

        together = await asyncio.gather(*(ask(p, stream) for stream in (False, True) for p in prompts))
    assert together == alone * 2


def test_the_version_and_the_description_are_there(live):
    response = httpx.get(f"{live.url}/version")
    assert list(response.json()) == ["version"]
    paths = httpx.get(f"{live.url}/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/generate", "/info"} <= set(paths)
