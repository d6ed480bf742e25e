"""DSPy's engines (`dspy.clients.engines.base`) over `myllm.Client` and `myllm.AsyncClient`.

An engine makes one attempt; DSPy retries, caches, counts and keeps the history. So the clients given here are
used without retries of their own (going on to the next server of a list, when one is dead, is none).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dspy import lm15

import myllm
from myllm.base import BaseClient

from .errors import projected
from .requests import ChatCall, chat_call
from .responses import EventWriter, StreamEvent, responses
from .state import (
    PickledClient,
    client_arguments,
    dump_client,
    dump_supports,
    load_supports,
)

ClientT = TypeVar("ClientT", bound=BaseClient)

_SUPPORTED = (
    "temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "seed", "stream", "logit_bias",
    "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "user",
)  # fmt: skip


@dataclass(slots=True)
class FanOut:
    """The `n` answers of one LM call: DSPy asks for them one by one, and the first asking fetches all."""

    wanted: int
    request: lm15.Request | None = None
    waiting: list[lm15.Response] = field(default_factory=list)


_fan_out: ContextVar[FanOut | None] = ContextVar("myllm_dspy_fan_out", default=None)


@contextmanager
def fan_out(wanted: int) -> Iterator[None]:
    """Let the LM call inside fetch its `wanted` answers with one request. 1 also hides an outer call's."""
    token = _fan_out.set(FanOut(wanted) if wanted > 1 else None)
    try:
        yield
    finally:
        _fan_out.reset(token)


class BaseEngine(Generic[ClientT]):
    """What both engines share: capabilities, and the way from a request to a call and back."""

    def __init__(self, client: ClientT, supports: lm15.ModelSupport | None = None) -> None:
        """Make an engine.

        Args:
            client: where to send; its parameters are the defaults of every request.
            supports: what the model behind it can do; what is not stated is not supported, but for answers
                by a JSON schema, which every server enforces or refuses.
        """
        self.client = client.with_options(max_retries=0)
        self.supports = supports or lm15.ModelSupport()

    @property
    def supports_function_calling(self) -> bool:
        """Whether DSPy may hand tools to the model natively."""
        return bool(self.supports.function_calling)

    @property
    def supports_reasoning(self) -> bool:
        """Whether DSPy may ask the model for native reasoning."""
        return bool(self.supports.reasoning)

    @property
    def supports_response_schema(self) -> bool:
        """Whether DSPy may constrain answers by a JSON schema."""
        return self.supports.response_schema is not False

    @property
    def supported_params(self) -> frozenset[str]:
        """OpenAI's names of what may be sent; DSPy's JSONAdapter looks for `response_format`."""
        names = set(_SUPPORTED)
        if self.supports_function_calling:
            names |= {"tools", "tool_choice", "parallel_tool_calls"}
        if self.supports_reasoning:
            names |= {"reasoning_effort"}
        if self.supports_response_schema:
            names |= {"response_format"}
        return frozenset(names)

    def dump_state(self) -> dict[str, Any]:
        """Return the engine as JSON, without secrets; DSPy saves it with the LM."""
        return {"client": dump_client(self.client), "supports": dump_supports(self.supports)}

    # The client is shared by all copies; see `BaseClient.__deepcopy__`.
    def __copy__(self) -> BaseEngine[ClientT]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BaseEngine[ClientT]:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "client": PickledClient(self.client)}  # no keys in files; see `.state`

    def _waiting(self, request: lm15.Request) -> lm15.Response | None:
        """Return an answer that an earlier request of this LM call has brought already."""
        box = _fan_out.get()
        if box is None or not box.waiting or box.request is not request:
            return None
        return box.waiting.pop(0)

    def _arguments(self, request: lm15.Request, call: ChatCall) -> dict[str, Any]:
        box = _fan_out.get()
        if box is not None and box.request is None:
            box.request = request
        many = box.wanted if box is not None and box.request is request else 1
        return {
            "model": call.model,
            "extra_body": call.extra_body,
            **call.params,
            **({"n": many} if many > 1 else {}),
        }

    def _first(self, answer: myllm.ChatCompletion, request: lm15.Request, call: ChatCall) -> lm15.Response:
        """Return the first answer and keep the others for DSPy's next askings."""
        first, *others = responses(answer, request, call)
        box = _fan_out.get()
        if box is not None and box.request is request:
            box.wanted -= 1 + len(others)
            box.waiting = others
        return first


class Engine(BaseEngine[myllm.Client]):
    """The synchronous engine: `dspy.LM(model, engine=Engine(myllm.Client(url)))`."""

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Engine:
        """Make the engine that `dump_state` told of."""
        client = myllm.Client(**client_arguments(state["client"]))
        return cls(client, load_supports(state["supports"]))

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer a request whole.

        Raises:
            dspy.lm15.LM15Error: see `.errors`.
        """
        if (ready := self._waiting(request)) is not None:
            return ready
        call = chat_call(request)
        with projected(self.client):
            answer = self.client.chat(call.messages, **self._arguments(request, call))
        return self._first(answer, request, call)

    def stream(self, request: lm15.Request) -> Iterator[StreamEvent]:
        """Answer a request event by event; closing the iterator ends the generation."""
        call = chat_call(request)
        writer = EventWriter(request, call)
        with (
            projected(self.client),
            self.client.stream_chat(
                call.messages, model=call.model, extra_body=call.extra_body, **call.params
            ) as chunks,
        ):
            for chunk in chunks:
                yield from writer.chunk(chunk)
        yield from writer.end()

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class AsyncEngine(BaseEngine[myllm.AsyncClient]):
    """The asynchronous engine; see `Engine`."""

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> AsyncEngine:
        """See `Engine.load_state`."""
        client = myllm.AsyncClient(**client_arguments(state["client"]))
        return cls(client, load_supports(state["supports"]))

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """See `Engine.complete`."""
        if (ready := self._waiting(request)) is not None:
            return ready
        call = chat_call(request)
        with projected(self.client):
            answer = await self.client.chat(call.messages, **self._arguments(request, call))
        return self._first(answer, request, call)

    async def stream(self, request: lm15.Request) -> AsyncIterator[StreamEvent]:
        """See `Engine.stream`."""
        call = chat_call(request)
        writer = EventWriter(request, call)
        with projected(self.client):
            chunks = await self.client.stream_chat(
                call.messages, model=call.model, extra_body=call.extra_body, **call.params
            )
            async with chunks:
                async for chunk in chunks:
                    for event in writer.chunk(chunk):
                        yield event
        for event in writer.end():
            yield event

    async def aclose(self) -> None:
        """Close the client's connections of the running event loop."""
        await self.client.close()
