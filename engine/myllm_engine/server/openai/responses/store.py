"""Keep responses in memory: so many of them, the newest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import Kind, Problem, ProblemError, invalid
from .items import AnyItem, read_item
from .writer import ResponseWriter


@dataclass(eq=False)
class Stored:
    """Hold a response, and what it takes to go on from it.

    Attributes:
        writer: holds the response, and goes on with it until it is final.
        history: what came before its own input.
        inputs: its own input.
        events: all events so far, by number; None: they are not kept.
        task: what makes it in the background; None where its client waits for it.
    """

    writer: ResponseWriter
    history: Sequence[AnyItem]
    inputs: Sequence[AnyItem]
    events: list[bytes] | None = None
    task: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def response(self) -> dict[str, Any]:
        """Return the response as it stands."""
        return self.writer.response

    @property
    def id(self) -> str:
        """Return the response's id."""
        return str(self.response["id"])

    def context(self) -> list[AnyItem]:
        """Return the conversation up to and with this response.

        Raises:
            ProblemError: the response is still being made.
        """
        if not self.writer.is_final:
            raise invalid(
                f"The response {self.id!r} is {self.response['status']}: wait until it has ended",
                "previous_response_id",
            )
        return [*self.history, *self.inputs, *map(read_item, self.response["output"])]

    def tell(self, events: Sequence[bytes]) -> None:
        """Hand events to those who follow the response."""
        if self.events is not None:
            self.events += events
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """Yield the events with numbers above `after`, those to come included."""
        events = self.events if self.events is not None else []
        place = after + 1
        while True:
            while place < len(events):
                yield events[place]
                place += 1
            if self.writer.is_final:
                return
            await self._changed.wait()

    async def cancel(self) -> None:
        """End what makes it in the background, and wait for that."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
            if not self.writer.is_final:
                self.tell(self.writer.cancel())


class ResponseStore:
    """Keep the newest `capacity` finished responses, and at most as many that are made in the background."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._stored: dict[str, Stored] = {}

    def __contains__(self, response_id: str) -> bool:
        """Tell whether a response of that id is kept."""
        return response_id in self._stored

    def get(self, response_id: str, param: str = "response_id") -> Stored:
        """Return the response of that id.

        Raises:
            ProblemError: there is none.
        """
        if (stored := self._stored.get(response_id)) is not None:
            return stored
        why = (
            f"this server keeps the {self.capacity} newest (--max-stored-responses)"
            if self.capacity
            else "this server stores none (--max-stored-responses 0)"
        )
        raise ProblemError(
            Problem(Kind.NOT_FOUND, f"The response {response_id[:100]!r} is not stored here; {why}", param)
        )

    def item(self, item_id: str) -> AnyItem:
        """Return the item of that id, of any stored response.

        Raises:
            ProblemError: there is none.
        """
        for stored in reversed(self._stored.values()):
            for item in stored.inputs:
                if item.id == item_id:
                    return item
            for output in stored.response["output"]:
                if output["id"] == item_id:
                    return read_item(output)
        raise ProblemError(
            Problem(Kind.NOT_FOUND, f"The item {item_id[:100]!r} belongs to no response stored here", "input")
        )

    def add(self, stored: Stored) -> None:
        """Keep a response, and no longer the oldest ones of too many.

        Raises:
            ProblemError: it is still to be made, and too many others are.
        """
        unfinished = sum(not other.writer.is_final for other in self._stored.values())
        if not stored.writer.is_final and unfinished >= self.capacity:
            raise ProblemError(
                Problem(
                    Kind.OVERLOADED,
                    f"{unfinished} responses are being made in the background, as many as this server may "
                    "store (--max-stored-responses): try again later",
                    headers={"Retry-After": "1"},
                )
            )
        self._stored[stored.id] = stored
        finished = [other for other in self._stored.values() if other.writer.is_final]
        for old in finished[: max(0, len(finished) - self.capacity)]:
            self.discard(old)

    def discard(self, stored: Stored) -> None:
        """Keep the response no longer."""
        self._stored.pop(stored.id, None)
