"""AG2 1.x, over our adapter and over a client that does nothing else."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from benchmarks._peers import MESSAGES, QUESTION, Peer
from benchmarks.stub import MODEL


class _AG2(Peer, ABC):
    """https://docs.ag2.ai: the client of an agent's turns, as its configuration makes it."""

    package = "ag2"
    imports = "from ag2 import Agent"
    has_sync = False

    @abstractmethod
    def _made(self, streaming: bool) -> Any: ...

    @cached_property
    def _client(self) -> Any:
        return self._made(streaming=False)

    @cached_property
    def _streaming(self) -> Any:
        return self._made(streaming=True)

    @cached_property
    def _serializer(self) -> Any:
        from ag2 import Agent

        return Agent("agent").serializer

    async def acall(self) -> str:
        return await self._turn(self._client, [])

    async def astream(self, model: str) -> str:
        pieces: list[str] = []
        await self._turn(self._streaming, pieces)
        return "".join(pieces)

    async def _turn(self, client: Any, pieces: list[str]) -> str:
        from ag2 import MemoryStream
        from ag2.context import ConversationContext
        from ag2.events import ModelMessageChunk, ModelRequest

        stream = MemoryStream()

        async def take(event: Any) -> None:
            pieces.append(event.content)

        stream.where(ModelMessageChunk).subscribe(take)
        response = await client(
            [ModelRequest.ensure_request([QUESTION])],
            ConversationContext(stream=stream),
            tools=[],
            response_schema=None,
            serializer=self._serializer,
        )
        return response.content


class AG2MyLLM(_AG2):
    """Our model configuration."""

    def _made(self, streaming: bool) -> Any:
        from myllm_adapters.ag2 import MyLLMConfig

        return MyLLMConfig(MODEL, self.url, streaming=streaming).create()


class AG2Bare(_AG2):
    """A client that only posts with httpx: AG2's own wants an openai that no other framework here takes."""

    def _made(self, streaming: bool) -> Any:
        import httpx
        from ag2.events import ModelMessage, ModelMessageChunk, ModelResponse

        url, http = f"{self.url}/v1/chat/completions", httpx.AsyncClient()

        async def turn(_: Any, context: Any, **__: Any) -> ModelResponse:
            if not streaming:
                response = await http.post(url, json={"model": MODEL, "messages": MESSAGES})
                message = ModelMessage(response.json()["choices"][0]["message"]["content"])
                await context.send(message)
                return ModelResponse(message)
            body = {"model": MODEL, "messages": MESSAGES, "stream": True}
            whole = ""
            async with http.stream("POST", url, json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        text = json.loads(line[6:])["choices"][0]["delta"].get("content")
                        if text:
                            whole += text
                            await context.send(ModelMessageChunk(text))
            return ModelResponse(ModelMessage(whole))

        return turn
