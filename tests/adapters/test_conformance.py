"""What works through every adapter, over HTTP and with an engine in this process: one table, one class of tests.

What a framework gives is compared with what the openai SDK gets from the same engine. `ABSENT` has what a framework
cannot have, and why; docs/adapters.md says the same.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field, create_model

import myllm

from .conformance.driver import MODEL, Driver
from .conformance.on_ag2 import AG2
from .conformance.on_agentchat import AgentChat
from .conformance.on_autogen import AutoGen
from .conformance.on_dspy import AsyncDSPy, DSPy
from .conformance.on_litellm import AsyncLiteLLM, LiteLLM

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning:dspy")

DRIVERS: list[type[Driver]] = [DSPy, AsyncDSPy, AutoGen, AgentChat, AG2, LiteLLM, AsyncLiteLLM]
CELLS = (
    "plain", "chat", "stream", "tools", "JSON schema", "n", "logprobs", "stop", "usage", "context overflow",
    "bad parameter", "dead server", "timeout", "cancellation", "concurrency",
)  # fmt: skip
ABSENT = {
    ("autogen", "cancellation"): "AutoGen's thread goes on until its answer has come",
    ("agentchat", "n"): "a `CreateResult` is one answer",
    ("ag2", "n"): "a `ModelResponse` is one answer",
    ("ag2", "logprobs"): "a `ModelResponse` has no place for them",
}
"""Page and cell: why the framework cannot have it."""

DOCS = Path(__file__).parents[2] / "docs"
QUESTION = "What is the capital of France?"
ONE = [{"role": "user", "content": QUESTION}]
CONVERSATION = [
    {"role": "system", "content": "You are a pirate. Answer in one short sentence."},
    *ONE,
    {"role": "assistant", "content": "Arr, it be Paris!"},
    {"role": "user", "content": "And of Spain?"},
]
GREEDY = {"temperature": 0, "max_tokens": 12}
LONG = {"temperature": 0, "max_tokens": 2000, "ignore_eos": True}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel, extra="forbid"):
    """Something that no free answer to `QUESTION` looks like."""

    name: str = Field(max_length=12)
    age: int = Field(ge=10, le=99)


@dataclass(frozen=True)
class Backend:
    """A way to the engine.

    Attributes:
        place: what `myllm.Client` must be told of it.
        dead: the same of one where nobody answers.
        sdk: the openai SDK over it, to compare with.
        busy: returns how many requests the engine works on.
    """

    place: Mapping[str, Any]
    dead: Mapping[str, Any]
    sdk: openai.OpenAI
    busy: Callable[[], int]

    def client(self, place: Mapping[str, Any] | None = None, timeout: float = 60.0) -> myllm.Client:
        return myllm.Client(**(place or self.place), model=MODEL, max_retries=0, timeout=timeout)

    def answer(self, messages: Any, **parameters: Any) -> Any:
        """Return what the openai SDK gets."""
        return self.sdk.chat.completions.create(model=MODEL, messages=messages, **parameters)

    async def until(self, wanted: int) -> None:
        """Wait until the engine works on so many requests."""
        end = time.monotonic() + 10
        while (now := await asyncio.to_thread(self.busy)) != wanted:
            assert time.monotonic() < end, f"the engine works on {now} requests, not on {wanted}"
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def closed_engine() -> Iterator[Any]:
    """An engine that was closed under its clients."""
    from myllm_engine import AsyncEngine, EngineConfig

    engine = AsyncEngine(EngineConfig(kv_cache_memory=2**24))
    with myllm.Client(engine=engine):
        engine.close()
        yield engine


@pytest.fixture(scope="module", params=["HTTP", "in-process"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "HTTP":
        server: myllm.Server = request.getfixturevalue("server")
        with httpx.Client(base_url=server.url) as http:
            yield Backend(
                place={"base_url": server.url},
                dead={"base_url": f"http://127.0.0.1:{unused_port()}"},
                sdk=openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0),
                busy=lambda: running(http.get("/metrics").text),
            )
        return
    engine = request.getfixturevalue("local_engine")
    with httpx.Client(transport=myllm.EngineTransport(engine)) as http:
        yield Backend(
            place={"engine": engine},
            dead={"engine": request.getfixturevalue("closed_engine")},
            sdk=openai.OpenAI(base_url="http://engine/v1", api_key="-", max_retries=0, http_client=http),
            busy=lambda: engine.stats().num_running + engine.stats().num_waiting,
        )


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def running(metrics: str) -> int:
    """Return the requests that run or wait, of a server's metrics."""
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)(?:{.*})? (\S+)$", metrics, re.MULTILINE)
    assert len(found) == 2
    return int(sum(map(float, found)))


@pytest.fixture(scope="module", params=DRIVERS, ids=lambda cls: cls.name)
def framework(request: pytest.FixtureRequest) -> type[Driver]:
    return request.param


@pytest.fixture(scope="module")
def shared(framework: type[Driver], backend: Backend) -> Driver:
    return framework(backend.client())


@pytest.fixture
def driver(shared: Driver, request: pytest.FixtureRequest) -> Driver:
    """The framework over our adapter, where it can have this cell."""
    cell = cell_of(request.function)
    if (shared.page, cell) in ABSENT:
        pytest.skip(f"{shared.page} has no {cell}: {ABSENT[shared.page, cell]}")
    return shared


def cell_of(test: Callable[..., Any]) -> str:
    name = test.__name__.removeprefix("test_").replace("_", " ")
    return next(cell for cell in CELLS if cell.lower() == name)


class TestConformance:
    """Each test is a cell of the table."""

    async def test_plain(self, driver: Driver, backend: Backend) -> None:
        answer = await driver.plain(QUESTION, **GREEDY)
        assert answer.text == backend.answer(ONE, **GREEDY).choices[0].message.content
        assert answer.text == "The capital of France is Paris."

    async def test_chat(self, driver: Driver, backend: Backend) -> None:
        expected = backend.answer(CONVERSATION, **GREEDY).choices[0].message.content
        assert expected not in [
            backend.answer(CONVERSATION[i:], **GREEDY).choices[0].message.content for i in (1, 3)
        ]  # it depends on all of it
        assert (await driver.ask(CONVERSATION, **GREEDY)).text == expected

    async def test_stream(self, driver: Driver, backend: Backend) -> None:
        long = {**GREEDY, "max_tokens": 60}
        pieces, busy = [], []
        async with aclosing(driver.stream(CONVERSATION, ignore_eos=True, **long)) as stream:
            async for piece in stream:
                if piece and not busy:
                    busy.append(await asyncio.to_thread(backend.busy))
                pieces.append(piece)
        assert busy == [1]  # the first piece came while the others were being made
        assert len(pieces) > 20
        whole = backend.answer(CONVERSATION, extra_body={"ignore_eos": True}, **long)
        assert "".join(pieces) == whole.choices[0].message.content

    async def test_tools(self, driver: Driver, backend: Backend) -> None:
        asked = [{"role": "user", "content": "What is the weather in Paris?"}]
        how = {**GREEDY, "max_tokens": 40, "tool_choice": "required", "parallel_tool_calls": False}
        (call,) = (await driver.ask(asked, tools=[WEATHER], **how)).calls
        (expected,) = backend.answer(asked, tools=[WEATHER], **how).choices[0].message.tool_calls
        arguments = call.arguments if isinstance(call.arguments, Mapping) else json.loads(call.arguments)
        assert (call.name, arguments) == ("get_weather", json.loads(expected.function.arguments))
        function = {"name": call.name, "arguments": json.dumps(arguments)}
        told = [
            *asked,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": call.id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "Rain, 12 degrees."},
        ]
        expected = backend.answer(told, tools=[WEATHER], tool_choice="none", **GREEDY)
        answer = await driver.ask(told, tools=[WEATHER], tool_choice="none", **GREEDY)
        assert answer.text == expected.choices[0].message.content

    async def test_json_schema(self, driver: Driver) -> None:
        answer = await driver.ask(ONE, schema=Person, temperature=0, max_tokens=40)
        assert Person.model_validate_json(answer.text)

    async def test_n(self, driver: Driver, backend: Backend) -> None:
        how = {"temperature": 1.0, "seed": 3, "max_tokens": 8}
        answer = await driver.ask([{"role": "user", "content": "Tell me a story."}], n=3, **how)
        assert len(set(answer.texts)) == 3
        once = backend.answer([{"role": "user", "content": "Tell me a story."}], **how)
        assert answer.prompt_tokens == once.usage.prompt_tokens  # one request, and the prompt is paid once
        assert answer.completion_tokens > once.usage.completion_tokens

    async def test_logprobs(self, driver: Driver, backend: Backend) -> None:
        answer = await driver.ask(ONE, logprobs=True, **GREEDY)
        expected = backend.answer(ONE, logprobs=True, **GREEDY).choices[0].logprobs.content
        assert answer.logprobs == pytest.approx([token.logprob for token in expected], abs=0.05)

    async def test_stop(self, driver: Driver) -> None:
        assert (await driver.ask(ONE, stop=[" France"], **GREEDY)).text == "The capital of"

    async def test_usage(self, driver: Driver, backend: Backend) -> None:
        usage = backend.answer(CONVERSATION, **GREEDY).usage
        answer = await driver.ask(CONVERSATION, **GREEDY)
        assert answer.prompt_tokens == usage.prompt_tokens > 40
        assert answer.completion_tokens == usage.completion_tokens > 5

    async def test_context_overflow(self, driver: Driver) -> None:
        with pytest.raises(driver.errors.context, match="maximum context length is 8192"):
            await driver.ask([{"role": "user", "content": "word " * 9000}])

    async def test_bad_parameter(self, driver: Driver) -> None:
        with pytest.raises(driver.errors.unknown, match="`temprature`.* Did you mean `temperature`"):
            await driver.ask(ONE, temprature=0.5)
        with pytest.raises(driver.errors.refused, match="logit_bias"):
            await driver.ask(ONE, logit_bias={"999999": 1}, **GREEDY)

    async def test_dead_server(self, driver: Driver, backend: Backend) -> None:
        client = backend.client(backend.dead)
        start = time.monotonic()
        with pytest.raises(driver.errors.unreachable, match="answers at http://|engine is closed"):
            await type(driver)(client).ask(ONE, **GREEDY)
        assert time.monotonic() - start < 5

    async def test_timeout(self, driver: Driver, backend: Backend) -> None:
        start = time.monotonic()
        with pytest.raises(driver.errors.timeout):
            await type(driver)(backend.client(timeout=0.5)).ask(ONE, **LONG)
        assert time.monotonic() - start < 5
        await backend.until(0)  # nobody waits for the answer, and nobody makes it

    async def test_cancellation(self, driver: Driver, backend: Backend) -> None:
        async with aclosing(driver.stream(ONE, **LONG)) as stream:
            await anext(stream)
            await backend.until(1)
        await backend.until(0)
        if driver.is_async:
            task = asyncio.create_task(driver.ask(ONE, **LONG))
            await backend.until(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await backend.until(0)

    async def test_concurrency(self, driver: Driver) -> None:
        """Each of 32 calls at once gets its own answer."""

        async def ask(number: int) -> str:
            strict = ConfigDict(extra="forbid")
            schema = create_model("Number", __config__=strict, number=(Literal[number], ...))
            return (await driver.ask(ONE, schema=schema, temperature=0, max_tokens=16)).text

        answers = await asyncio.gather(*(ask(number) for number in range(100, 132)))
        assert [json.loads(answer) for answer in answers] == [{"number": n} for n in range(100, 132)]


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        pytest.param(cls, {"n": 2} if cell == "n" else {"logprobs": True}, id=f"{cls.page}, {cell}")
        for cls in DRIVERS
        for cell in ("n", "logprobs")
        if (cls.page, cell) in ABSENT
    ],
)
async def test_what_a_framework_has_no_place_for_is_refused(
    cls: type[Driver], parameters: dict[str, Any], server: myllm.Server
) -> None:
    (name,) = parameters
    with pytest.raises(myllm.InvalidParameterError, match=f"`{name}="):
        await cls(server.client(model=MODEL)).ask(ONE, **parameters, **GREEDY)


def test_the_class_has_every_cell() -> None:
    tests = [value for name, value in vars(TestConformance).items() if name.startswith("test_")]
    assert [cell_of(test) for test in tests] == list(CELLS)


def test_the_documentation_says_the_same() -> None:
    """docs/adapters.md has this table, with the reasons of what is absent."""
    text = (DOCS / "adapters.md").read_text(encoding="utf-8")
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    columns = [re.fullmatch(r"\[(.*)\]\((.*)\.md\)", cell).groups() for cell in head[2:]]
    assert {page for _, page in columns} == {cls.page for cls in DRIVERS}
    assert [row[0] for row in rows] == list(CELLS)
    absent = {}
    for cell, _, *words in rows:
        assert set(words) <= {"yes", "no"}
        for (title, page), word in zip(columns, words, strict=True):
            if word == "no":
                absent[page, cell] = re.search(rf"^- {title}, {cell}: ([^.]*)\.", text, re.MULTILINE)[1]
    assert absent == ABSENT


@pytest.mark.parametrize("page", dict.fromkeys(cls.page for cls in DRIVERS))
def test_the_framework_s_own_page_has_the_reasons_too(page: str) -> None:
    text = " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split())
    assert "## What works" in text
    assert [reason for (where, _), reason in ABSENT.items() if where == page and reason not in text] == []
