"""What the conformance tests ask of a framework, in words that are no framework's.

A driver says them in its framework's: it hands a client to our adapter, and from there on speaks through the
framework's public surface alone. It asserts nothing.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel

import myllm

Messages = Sequence[Mapping[str, Any]]
T = TypeVar("T")

MODEL = "smollm2"


@dataclass
class ToolCall:
    """A call that the model wants made; `arguments` as JSON where the framework does not read it."""

    id: str
    name: str
    arguments: str | Mapping[str, Any]


@dataclass
class Answer:
    """What a framework tells of an answer.

    Attributes:
        texts: of each choice.
        calls: of the first choice.
        logprobs: of the first choice's tokens; None when nothing is told of them.
        prompt_tokens, completion_tokens: the usage.
    """

    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[float] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        """The only choice's text."""
        (text,) = self.texts
        return text


@dataclass(frozen=True)
class Errors:
    """What is raised when something goes wrong.

    Attributes:
        context: the conversation is longer than the model's context.
        unknown: a parameter's name is none.
        refused: the server does not take a parameter's value.
        unreachable: no server answers.
        timeout: an answer took too long.
    """

    context: type[Exception]
    unknown: type[Exception]
    refused: type[Exception]
    unreachable: type[Exception]
    timeout: type[Exception]


class Driver(ABC):
    """A framework over our adapter. Every method is asynchronous; a synchronous framework runs in threads.

    Args:
        client: for the adapter; its timeout is what calls keep to.
    """

    name: ClassVar[str]
    is_async: ClassVar[bool] = True
    """Whether it awaits answers itself, so that a cancelled task ends a call."""
    page: ClassVar[str]
    """The adapter's page: docs/<page>.md."""
    errors: ClassVar[Errors]

    @abstractmethod
    def __init__(self, client: myllm.Client) -> None: ...

    @abstractmethod
    async def plain(self, prompt: str, **parameters: Any) -> Answer:
        """Ask one question, as simply as the framework lets it be asked."""

    @abstractmethod
    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        schema: type[BaseModel] | None = None,
        **parameters: Any,
    ) -> Answer:
        """Ask with a whole conversation in OpenAI's form, tools too, or for an answer by a schema."""

    @abstractmethod
    def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        """Ask, and yield the text piece by piece; closing the iterator is how the framework ends a stream."""


class Threads:
    """Runs a synchronous framework beside an event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(40)

    async def run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the call returns in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: call(*args, **kwargs))

    async def iterate(self, make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """Yield what the iterator yields; when this one is closed, so is that."""
        iterator: Any = await self.run(make)
        end = object()
        try:
            while (item := await self.run(next, iterator, end)) is not end:
                yield item
        finally:
            await self.run(iterator.close)


async def handed(make: Callable[[Callable[[str], None]], Awaitable[Any]]) -> AsyncIterator[str]:
    """Yield what a task hands over to the function that it is given; closing the iterator cancels the task."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    task = asyncio.ensure_future(make(pieces.put_nowait))
    task.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])
