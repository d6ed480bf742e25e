"""OpenAI's Responses API on the bundled model, used through the openai SDK."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import openai
import pytest
from pydantic import BaseModel

from myllm_engine.errors import EngineError, QueueFullError
from myllm_engine.server.settings import ServerSettings

QUESTION = "What is the capital of France? Answer in one sentence."
CHAT = [{"role": "user", "content": QUESTION}]
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ask(client):
    """Make a greedy response."""

    def ask(input, **more):
        return client.responses.create(model="smollm2", input=input, temperature=0, **more)

    return ask


@pytest.fixture(scope="module")
def chat(client):
    """Return what chat completions say to the same messages, the reference here."""

    def chat(messages, **more):
        return client.chat.completions.create(model="smollm2", messages=messages, temperature=0, **more)

    return chat


def events_of(text):
    """Return the events of a stream as they were sent, after a look at their framing."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


# Whole responses


def test_a_response_says_what_a_chat_says(ask, chat):
    reference = chat(CHAT)
    response = ask(QUESTION)
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", "smollm2")
    assert response.output_text == reference.choices[0].message.content
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.id.startswith("msg_")
    assert message.content[0].annotations == []
    assert response.usage.input_tokens == reference.usage.prompt_tokens
    assert response.usage.output_tokens == reference.usage.completion_tokens
    assert response.usage.total_tokens == reference.usage.total_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.error is None
    assert response.incomplete_details is None
    assert (response.temperature, response.top_p) == (0, 1)
    assert response.completed_at >= response.created_at
    assert (response.tool_choice, response.tools, response.parallel_tool_calls) == ("auto", [], True)
    assert response.text.format.type == "text"


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}], CHAT),
        ([{"type": "message", "role": "developer", "content": "One word."}, *CHAT], [{"role": "system", "content": "One word."}, *CHAT]),
        (
            [
                {"role": "user", "content": "Hi"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Hello!", "annotations": []}],
                },
                *CHAT,
            ],
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, *CHAT],
        ),
    ],
)  # fmt: skip
def test_items_are_the_messages_of_a_chat(ask, chat, items, messages):
    assert (
        ask(items, max_output_tokens=8).output_text == chat(messages, max_tokens=8).choices[0].message.content
    )


def test_instructions_are_the_systems_message(ask, chat):
    response = ask(QUESTION, instructions="Answer in French.", max_output_tokens=8)
    reference = chat([{"role": "system", "content": "Answer in French."}, *CHAT], max_tokens=8)
    assert response.output_text == reference.choices[0].message.content
    assert response.instructions == "Answer in French."


def test_an_unfinished_message_is_gone_on_with(ask, chat):
    begun = {"role": "assistant", "status": "incomplete", "content": "The capital of France is called"}
    response = ask([*CHAT, begun], max_output_tokens=4)
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    del begun["status"]
    reference = chat([*CHAT, begun], max_tokens=4, extra_body=extra)
    assert response.output_text == reference.choices[0].message.content


def test_a_limit_leaves_a_response_incomplete(ask):
    response = ask(QUESTION, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 3
    assert response.max_output_tokens == 3
    assert response.completed_at is None


def test_vllms_parameters_reach_the_engine(ask):
    said = ask(QUESTION).output_text
    stop = said.split()[2]
    assert ask(QUESTION, extra_body={"stop": [stop]}).output_text == said.split(stop)[0]
    assert ask(QUESTION, extra_body={"structured_outputs": {"choice": ["Rome", "Oslo"]}}).output_text in (
        "Rome",
        "Oslo",
    )
    forced = ask(QUESTION, extra_body={"logit_bias": {"28": 100}, "ignore_eos": True}, max_output_tokens=3)
    assert len(set(forced.output_text)) == 1
    assert (
        ask(QUESTION, extra_body={"repetition_penalty": 5.0}, max_output_tokens=12).output_text != said[:40]
    )


def test_json_by_schema_is_parsed_by_the_sdk(client):
    class City(BaseModel):
        name: str
        inhabitants: int

    response = client.responses.parse(
        model="smollm2", input="Describe Paris.", text_format=City, temperature=0, max_output_tokens=60
    )
    assert isinstance(response.output_parsed, City)
    assert response.text.format.name == "City"


def test_a_json_object(ask):
    response = ask("Give me JSON.", text={"format": {"type": "json_object"}}, max_output_tokens=60)
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)
    assert response.output_text.startswith("{")


def test_logprobs_are_those_of_a_chat(ask, chat):
    reference = chat(CHAT, max_tokens=5, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    response = ask(QUESTION, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=5)
    scores = response.output[0].content[0].logprobs
    assert [score.token for score in scores] == [score.token for score in reference]
    assert [score.logprob for score in scores] == pytest.approx(
        [score.logprob for score in reference], abs=1e-4
    )
    assert [[top.token for top in score.top_logprobs] for score in scores] == [
        [top.token for top in score.top_logprobs] for score in reference
    ]
    assert ask(QUESTION, max_output_tokens=2).output[0].content[0].logprobs == []


def test_what_is_only_kept_comes_back(ask):
    response = ask(QUESTION, max_output_tokens=1, metadata={"run": "7"}, user="me", prompt_cache_key="key")
    assert response.metadata == {"run": "7"}
    assert response.user == "me"
    assert response.prompt_cache_key == "key"


def test_tokens_of_an_input_are_counted(client, ask):
    count = client.responses.input_tokens.count(model="smollm2", input=QUESTION, instructions="Be brief.")
    assert count.object == "response.input_tokens"
    response = ask(QUESTION, instructions="Be brief.", max_output_tokens=1)
    assert count.input_tokens == response.usage.input_tokens


# Streams


def test_the_events_of_a_text_are_openais_in_order(http):
    body = {"input": QUESTION, "temperature": 0, "max_output_tokens": 60}
    plain = http.post("/v1/responses", json=body).json()
    answer = http.post("/v1/responses", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 3
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    created, in_progress, added, part_added = events[:4]
    text_done, part_done, item_done, completed = events[-4:]
    assert created["response"]["status"] == in_progress["response"]["status"] == "in_progress"
    assert created["response"]["output"] == []
    assert added["item"]["content"] == []
    assert added["item"]["status"] == "in_progress"
    assert part_added["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    place = {"item_id": added["item"]["id"], "output_index": 0, "content_index": 0}
    for event in (part_added, *deltas, text_done, part_done):
        assert {name: event[name] for name in place} == place
    text = "".join(event["delta"] for event in deltas)
    assert text_done["text"] == part_done["part"]["text"] == text
    assert item_done["item"] == completed["response"]["output"][0]
    final = completed["response"]
    assert final["output"][0]["content"] == plain["output"][0]["content"]
    assert final["usage"]["output_tokens"] == plain["usage"]["output_tokens"]
    assert {**final, "id": 0, "created_at": 0, "completed_at": 0, "output": 0, "usage": 0} == {
        **plain, "id": 0, "created_at": 0, "completed_at": 0, "output": 0, "usage": 0
    }  # fmt: skip


def test_the_sdk_follows_a_stream(client):
    arguments = {"model": "smollm2", "input": QUESTION, "temperature": 0}
    with client.responses.stream(**arguments) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text
    assert final.status == "completed"


async def test_the_async_sdk_follows_a_stream(live):
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="-") as client:
        stream = await client.responses.create(
            model="smollm2", input=QUESTION, max_output_tokens=4, stream=True
        )
        kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


def test_streamed_logprobs_come_with_their_text(http):
    body = {"input": QUESTION, "temperature": 0, "max_output_tokens": 6, "top_logprobs": 1, "stream": True}
    events = events_of(http.post("/v1/responses", json=body).text)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    scores = [score for event in deltas for score in event["logprobs"]]
    assert len(scores) == 6
    assert "".join(score["token"] for score in scores) == "".join(event["delta"] for event in deltas)
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == scores


def test_a_failure_in_a_stream_is_told_and_stored(scripted, said):
    with scripted([said(("Hel", b"Hel", None)), EngineError("out of pages")]) as live:
        answer = httpx.post(f"{live.url}/v1/responses", json={"input": "x", "stream": True})
        events = events_of(answer.text)
        assert events[-1]["type"] == "response.failed"
        failed = events[-1]["response"]
        assert failed["status"] == "failed"
        assert failed["error"] == {"code": "server_error", "message": "out of pages"}
        assert failed["output"][0]["status"] == "incomplete"
        assert httpx.get(f"{live.url}/v1/responses/{failed['id']}").json() == failed


def test_an_empty_answer_is_an_empty_message(scripted, said):
    with scripted([said(("", b"", "stop"))]) as live:
        [message] = httpx.post(f"{live.url}/v1/responses", json={"input": "x"}).json()["output"]
        assert message["content"][0]["text"] == ""
        events = events_of(httpx.post(f"{live.url}/v1/responses", json={"input": "x", "stream": True}).text)
        assert [event["type"] for event in events][2:-1] == [
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ]


# Tools

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tell the weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}  # fmt: skip
ASK = "What is the weather in Oslo?"


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
def test_a_call_and_its_output(ask, choice):
    tools = [WEATHER] if choice == "required" else [TIME, WEATHER]
    response = ask(ASK, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=60)
    [call] = response.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert call.id.startswith("fc_")
    assert list(json.loads(call.arguments)) == ["city"]
    assert response.tools[-1].parameters == WEATHER["parameters"]
    assert not response.parallel_tool_calls
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Snow, -3 degrees."}
    arguments = {"tools": tools, "max_output_tokens": 12}
    chained = ask([output], previous_response_id=response.id, tool_choice="none", **arguments)
    resent = ask(
        [{"role": "user", "content": ASK}, call.model_dump(), output], tool_choice="none", **arguments
    )
    assert chained.output_text == resent.output_text != ""
    assert chained.usage.input_tokens == resent.usage.input_tokens > response.usage.input_tokens - 200


def test_a_streamed_call_joins_to_the_plain_one(client, ask):
    arguments = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    plain = ask(ASK, **arguments, max_output_tokens=60).output[0]
    events = list(ask(ASK, **arguments, max_output_tokens=60, stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == plain.arguments
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert (done.name, done.arguments) == (plain.name, plain.arguments)
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].arguments == plain.arguments


AUTO = ServerSettings(enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="qwen3")
WRITTEN = (
    "<think>Hm.</think>I look.",
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>',
)


def test_what_a_model_writes_is_told_apart(scripted, said):
    script = [said((piece, piece.encode(), None)) for piece in WRITTEN] + [said(("", b"", "stop"))]
    with scripted(script, AUTO) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="-")
        thoughts, message, call = client.responses.create(input=ASK, tools=[WEATHER]).output
        assert (thoughts.type, thoughts.content[0].text) == ("reasoning", "Hm.")
        assert (message.type, message.content[0].text) == ("message", "I look.")
        assert (call.type, json.loads(call.arguments)) == ("function_call", {"city": "Oslo"})
        shown = client.responses.create(input=ASK, tools=[WEATHER], extra_body={"include_reasoning": False})
        assert [item.type for item in shown.output] == ["message", "function_call"]


def test_auto_needs_a_server_that_knows_the_models_format(http):
    answer = http.post("/v1/responses", json={"input": ASK, "tools": [WEATHER]})
    assert answer.status_code == 400
    assert "--enable-auto-tool-choice" in answer.json()["error"]["message"]


# Stored responses


def test_a_response_is_stored_and_deleted(client, ask):
    response = ask(QUESTION, max_output_tokens=4)
    assert client.responses.retrieve(response.id) == response
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match="1000 newest"):
        client.responses.retrieve(response.id)
    unstored = ask(QUESTION, max_output_tokens=1, store=False)
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve(unstored.id)


def test_a_conversation_goes_on_from_a_stored_response(ask, chat):
    first = ask("My name is Ada.", instructions="Be brief.", max_output_tokens=10)
    second = ask("What is my name?", previous_response_id=first.id, max_output_tokens=10)
    history = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    # Instructions are of one response alone.
    reference = chat(history, max_tokens=10)
    assert second.output_text == reference.choices[0].message.content
    assert second.usage.input_tokens == reference.usage.prompt_tokens
    assert second.previous_response_id == first.id
    third = ask("Sure?", previous_response_id=second.id, max_output_tokens=10)
    history += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "Sure?"}]
    assert third.output_text == chat(history, max_tokens=10).choices[0].message.content


def test_a_stored_item_may_be_referred_to(ask):
    first = ask(QUESTION, max_output_tokens=6)
    items = [*CHAT, {"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "Why?"}]
    again = ask(
        [*CHAT, first.output[0].model_dump(), {"role": "user", "content": "Why?"}], max_output_tokens=6
    )
    assert ask(items, max_output_tokens=6).output_text == again.output_text
    with pytest.raises(openai.NotFoundError, match="'msg_x' belongs to no response"):
        ask([{"type": "item_reference", "id": "msg_x"}])


def test_input_items_are_listed(client, ask):
    first = ask("One", max_output_tokens=1)
    second = ask([{"role": "user", "content": "Two"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Three"}], previous_response_id=first.id, max_output_tokens=1)  # fmt: skip
    listed = client.responses.input_items.list(second.id, order="asc").data
    assert [item.content[0].text for item in listed] == ["One", first.output_text, "Two", "2", "Three"]
    assert [item.content[0].type for item in listed][1:4] == ["output_text", "input_text", "output_text"]
    page = client.responses.input_items.list(second.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["Three", "2"]
    assert page.has_more
    rest = client.responses.input_items.list(second.id, limit=10, after=page.last_id)
    assert [item.content[0].text for item in rest.data] == ["Two", first.output_text, "One"]
    assert not rest.has_more
    with pytest.raises(openai.BadRequestError, match="no item of this response"):
        client.responses.input_items.list(second.id, after="msg_x")


def test_the_oldest_responses_give_way(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(max_stored_responses=2)) as live:
        made = [httpx.post(f"{live.url}/v1/responses", json={"input": "x"}).json()["id"] for _ in range(3)]
        found = [httpx.get(f"{live.url}/v1/responses/{id_}").status_code for id_ in made]
        assert found == [404, 200, 200]


def test_a_server_that_stores_nothing_says_so(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(max_stored_responses=0)) as live:
        url = f"{live.url}/v1/responses"
        response = httpx.post(url, json={"input": "x"}).json()
        assert response["store"] is False
        answer = httpx.get(f"{url}/{response['id']}")
        assert answer.status_code == 404
        assert "stores none (--max-stored-responses 0)" in answer.json()["error"]["message"]
        for extra in ({"previous_response_id": "resp_1"}, {"background": True}, {"store": True}):
            answer = httpx.post(url, json={"input": "x", **extra})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == next(iter(extra))


# In the background


def wait(client, response, *statuses):
    end = time.monotonic() + 30
    while response.status not in statuses:
        assert time.monotonic() < end
        time.sleep(0.02)
        response = client.responses.retrieve(response.id)
    return response


def test_a_response_is_made_in_the_background(client, ask):
    response = ask(QUESTION, background=True)
    assert (response.status, response.output, response.background) == ("queued", [], True)
    made = wait(client, response, "completed")
    assert made.output_text == ask(QUESTION).output_text
    assert made.created_at == response.created_at
    # What has ended stays as it is.
    assert client.responses.cancel(response.id) == made


def test_a_response_in_the_background_is_cancelled(client, ask, engine):
    response = ask(QUESTION, background=True, extra_body=ENDLESS)
    wait(client, response, "in_progress")
    with pytest.raises(openai.BadRequestError, match="wait until it has ended"):
        ask("Go on.", previous_response_id=response.id)
    cancelled = client.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"
    end = time.monotonic() + 10
    while engine.stats().num_running:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_deleting_ends_what_runs(client, ask, engine):
    response = ask(QUESTION, background=True, extra_body=ENDLESS)
    wait(client, response, "in_progress")
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    end = time.monotonic() + 10
    while engine.stats().num_running:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_only_responses_in_the_background_are_cancelled(client, ask):
    response = ask(QUESTION, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="`background` can be cancelled"):
        client.responses.cancel(response.id)


def test_a_stream_in_the_background_may_be_left_and_read_again(client):
    arguments = {"model": "smollm2", "input": QUESTION, "temperature": 0, "background": True}
    stream = client.responses.create(**arguments, stream=True, max_output_tokens=30)
    first = [next(stream) for _ in range(5)]
    stream.close()
    assert [event.type for event in first[:4]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
    ]
    id_ = first[0].response.id
    rest = list(client.responses.retrieve(id_, stream=True, starting_after=first[-1].sequence_number))
    assert [event.sequence_number for event in [*first, *rest]] == list(range(len(first) + len(rest)))
    final = client.responses.retrieve(id_)
    assert final.status in ("completed", "incomplete")
    assert rest[-1].type == f"response.{final.status}"
    assert rest[-1].response == final
    whole = list(client.responses.retrieve(id_, stream=True))
    assert whole == [*first, *rest]


def test_events_of_others_are_not_kept(client, ask):
    response = ask(QUESTION, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="`background` and `stream`"):
        client.responses.retrieve(response.id, stream=True)


def test_a_cancelled_stream_ends(client):
    arguments = {"model": "smollm2", "input": QUESTION, "background": True, "extra_body": ENDLESS}
    stream = client.responses.create(**arguments, stream=True)
    id_ = next(stream).response.id
    client.responses.cancel(id_)
    *_, last = stream
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


@pytest.mark.parametrize(
    ("error", "code"),
    [(QueueFullError("9 wait already"), "rate_limit_exceeded"), (EngineError("no"), "server_error")],
)
def test_a_failure_in_the_background_is_told_later(scripted, error, code):
    with scripted([error]) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="-")
        response = client.responses.create(input="x", background=True)
        failed = wait(client, response, "failed")
        assert failed.error.code == code
        assert failed.error.message == str(error)


def test_too_much_in_the_background_is_told_to_come_back(scripted, said):
    async def slow(request):
        await asyncio.sleep(60)

    script = [said(("ok", b"ok", "stop"))]
    with scripted(script, ServerSettings(max_stored_responses=1), compiler=slow) as live:
        url = f"{live.url}/v1/responses"
        body = {"input": "x", "background": True, "structured_outputs": {"regex": "a"}}
        running = httpx.post(url, json=body).json()["id"]
        refused = httpx.post(url, json=body)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "being made in the background" in refused.json()["error"]["message"]
        # It neither gives way to finished ones nor keeps them out.
        finished = httpx.post(url, json={"input": "x"}).json()["id"]
        assert httpx.get(f"{url}/{running}").json()["status"] == "queued"
        assert httpx.get(f"{url}/{finished}").json()["status"] == "completed"
        assert httpx.post(f"{url}/{running}/cancel").json()["status"] == "cancelled"


# What is refused

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "`input` is required"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": "x", "temprature": 1}, "temprature", "did you mean `temperature`?"),
        ({"input": "x", "temperature": -1}, "temperature", "temperature"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
        ({"input": "x", "top_logprobs": 50}, "top_logprobs", "--max-logprobs"),
        ({"input": "x", "include": ["everything"]}, "include", "'everything' is not one of"),
        ({"input": [{"role": "bird", "content": "x"}]}, "input[0].role", "'user', 'assistant'"),
        ({"input": [{"role": "user"}]}, "input[0].content", "`input[0].content` is required"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type", "'input_file' is not one of input_text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "txt": "x"}]}]}, "input[0].content[0].txt", "did you mean `text`?"),
        ({"input": [{"type": "web_search_call", "id": "1"}]}, "input[0].type", "tools that this server does not have"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search' are not run by this server"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", "`tools[0].name` is required"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "needs `tools`"),
        ({"input": "x", "tool_choice": "any"}, "tool_choice", '"allowed_tools"'),
        ({"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "'g', which is not in `tools`"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "`schema` is required"),
        ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity", "put it into words"),
        ({"input": "x", "text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}, None, "give one of them"),
        ({"input": "x", "request_id": "a/b"}, "request_id", "request_id"),
        ({"input": "x", "background": True, "store": False}, "background", "`store`: true"),
        ({"input": "x", "stream_options": {"include_obfuscation": False}}, "stream_options", "`stream`: true"),
        ({"input": "x", "metadata": {"k": "v" * 513}}, "metadata", "512 at most"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt", "kept by OpenAI"),
        ({"input": "x", "conversation": "conv_1"}, "conversation", "`previous_response_id`"),
        ({"input": "x", "logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens", "lower `max_output_tokens`"),
        ({"input": "word " * 9000}, "input", "maximum context length"),
        ({"input": "x", "reasoning": {"effort": "huge"}}, "reasoning.effort", "`reasoning.effort` must be one of"),
        ({"input": "x", "tools": [{**TOOL, "name": "a b"}]}, "tools[0].function.name", "A function's name"),
        ({"input": "x", "tools": [{**TOOL, "parameters": {"maximum": 10**30}}], "tool_choice": "none"}, None, "cannot repeat"),
        ({"input": "x", "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "must not set `messages`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_400_that_names_the_field(http, body, param, says):
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "BadRequestError"
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses/resp_1", 404),
        ("DELETE", "/v1/responses/resp_1", 404),
        ("POST", "/v1/responses/resp_1/cancel", 404),
        ("GET", "/v1/responses/resp_1/input_items", 404),
        ("GET", "/v1/responses", 405),
    ],
)
def test_what_is_not_there(http, method, path, status):
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status


def test_images_are_handed_on_to_the_model_which_may_have_no_eyes(http):
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
    answer = http.post("/v1/responses", json={"input": [{"role": "user", "content": [image]}]})
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]["message"]


def test_an_id_of_the_clients(http):
    body = {"input": "x", "max_output_tokens": 1, "request_id": "my.response-1"}
    assert http.post("/v1/responses", json=body).json()["id"] == "my.response-1"
    again = http.post("/v1/responses", json=body)
    assert again.status_code == 400
    assert again.json()["error"]["param"] == "request_id"
    assert http.delete("/v1/responses/my.response-1").json()["deleted"]


@pytest.mark.parametrize("field", ["user", "input", "instructions"])
def test_half_a_surrogate_pair_is_a_400(http, field):
    content = json.dumps({"input": "x", field: "\ud800"})
    answer = http.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_unknown_names_are_404(http):
    answer = http.post("/v1/responses", json={"input": "x", "model": "gpt-5"})
    assert answer.status_code == 404
    answer = http.post("/v1/responses", json={"input": "x", "previous_response_id": "resp_1"})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "previous_response_id"


def test_what_asks_for_nothing_is_accepted(http):
    body = {
        "input": "x",
        "max_output_tokens": 1,
        "conversation": None,
        "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3,
        "parallel_tool_calls": True,
        "prompt": None,
        "service_tier": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
    }
    assert http.post("/v1/responses", json=body).status_code == 200


# Inputs that are too long


TURNS = ["user: 1", "assistant: one", "user: 2", "assistant: two", "user: 3"]


@pytest.mark.parametrize("dropped", [0, 2, 4])
def test_the_oldest_turns_give_way(scripted, said, dropped):
    lines = ["system: s", *TURNS]
    kept = ["system: s", *TURNS[dropped:]]
    items = [dict(zip(("role", "content"), line.split(": "), strict=True)) for line in lines]
    # The script's tokenizer has a token for each character; the last line ends, too.
    room = len("\n".join(kept)) + 1
    with scripted([said(("ok", b"ok", "stop"))], max_model_len=room + 7) as live:
        body = {"input": items, "truncation": "auto", "max_output_tokens": 7}
        answer = httpx.post(f"{live.url}/v1/responses", json=body)
        assert answer.json()["truncation"] == "auto"
        prompt = live.engine.tokenizer.decode(live.engine.requests[-1].prompt_token_ids)
        assert prompt.splitlines() == kept
        # One token more, and another turn goes, as long as there is one.
        httpx.post(f"{live.url}/v1/responses", json={**body, "max_output_tokens": 8})
        prompt = live.engine.tokenizer.decode(live.engine.requests[-1].prompt_token_ids)
        assert prompt.splitlines() == ["system: s", *TURNS[min(dropped + 2, 4) :]]


def test_a_long_input_is_left_whole_unless_told(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], max_model_len=10) as live:
        items = [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}]
        httpx.post(f"{live.url}/v1/responses", json={"input": items})
        # Left whole: refusing it is the engine's part.
        assert live.engine.tokenizer.decode(live.engine.requests[-1].prompt_token_ids) == "user: 1\nuser: 2\n"
