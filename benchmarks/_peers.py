"""The clients that are compared, each used as its documentation says. All get the same answers as text.

A library is imported when its peer is made, so that a process holds the one it measures and no other.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from benchmarks.stub import MODEL

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
_PATH = "/v1/chat/completions"


class Peer:
    """One library: a call and a stream, sync and async; each returns the text of the answer."""

    package: str
    """The distribution's name, for its version."""
    imports: str
    """What a user has to import, as a statement."""
    has_sync = True
    has_async = True

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self) -> str:
        """Ask once."""
        raise NotImplementedError

    async def acall(self) -> str:
        """Ask once, asynchronously."""
        raise NotImplementedError

    def stream(self, model: str) -> str:
        """Read one stream."""
        raise NotImplementedError

    async def astream(self, model: str) -> str:
        """Read one stream, asynchronously."""
        raise NotImplementedError


class MyLLM(Peer):
    """Our full path, as it comes: typed answers, retries and breakers on."""

    package = "myllm-suite"
    imports = "from myllm import AsyncClient, Client"

    @cached_property
    def _client(self) -> Any:
        from myllm import Client

        return Client(self.url, model=MODEL)

    @cached_property
    def _async_client(self) -> Any:
        from myllm import AsyncClient

        return AsyncClient(self.url, model=MODEL)

    def call(self) -> str:
        return self._client.chat(MESSAGES).text

    async def acall(self) -> str:
        return (await self._async_client.chat(MESSAGES)).text

    def stream(self, model: str) -> str:
        with self._client.stream_chat(MESSAGES, model=model) as stream:
            return "".join([chunk.text for chunk in stream])

    async def astream(self, model: str) -> str:
        async with self._async_client.stream_chat(MESSAGES, model=model) as stream:
            return "".join([chunk.text async for chunk in stream])


class _Bare(Peer):
    """An HTTP library and `json`: no more than what it takes to get at the text."""

    def __init__(self, url: str) -> None:
        super().__init__(url + _PATH)

    @staticmethod
    def _body(model: str = MODEL, **more: Any) -> dict[str, Any]:
        return {"model": model, "messages": MESSAGES, **more}

    @staticmethod
    def _text(answer: Any) -> str:
        return answer["choices"][0]["message"]["content"]

    @staticmethod
    def _delta(line: str | bytes) -> str:
        """Return the text of one line of an event stream; "" for what is no chunk."""
        prefix, done = ("data: ", "[DONE]") if isinstance(line, str) else (b"data: ", b"[DONE]")
        if not line.startswith(prefix):  # type: ignore[arg-type]
            return ""
        data = line[6:].strip()
        return "" if data == done else json.loads(data)["choices"][0]["delta"].get("content") or ""


class HTTPX(_Bare):
    """https://www.python-httpx.org/async/, with its caps on connections lifted."""

    package = "httpx"
    imports = "import httpx"

    @cached_property
    def _client(self) -> Any:
        import httpx

        return httpx.Client()

    @cached_property
    def _async_client(self) -> Any:
        import httpx

        return httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=60
        )

    def call(self) -> str:
        return self._text(self._client.post(self.url, json=self._body()).raise_for_status().json())

    async def acall(self) -> str:
        response = await self._async_client.post(self.url, json=self._body())
        return self._text(response.raise_for_status().json())

    def stream(self, model: str) -> str:
        with self._client.stream("POST", self.url, json=self._body(model, stream=True)) as response:
            response.raise_for_status()
            return "".join([self._delta(line) for line in response.iter_lines()])

    async def astream(self, model: str) -> str:
        body = self._body(model, stream=True)
        async with self._async_client.stream("POST", self.url, json=body) as response:
            response.raise_for_status()
            return "".join([self._delta(line) async for line in response.aiter_lines()])


class AIOHTTP(_Bare):
    """https://docs.aiohttp.org/en/stable/client_advanced.html, with its cap on connections lifted."""

    package = "aiohttp"
    imports = "import aiohttp"
    has_sync = False

    @cached_property
    def _session(self) -> Any:
        import aiohttp

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), raise_for_status=True)

    async def acall(self) -> str:
        async with self._session.post(self.url, json=self._body()) as response:
            return self._text(await response.json())

    async def astream(self, model: str) -> str:
        async with self._session.post(self.url, json=self._body(model, stream=True)) as response:
            return "".join([self._delta(line) async for line in response.content])


class OpenAI(Peer):
    """https://github.com/openai/openai-python#readme."""

    package = "openai"
    imports = "from openai import AsyncOpenAI, OpenAI"

    @cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none")

    @cached_property
    def _async_client(self) -> Any:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none")

    def call(self) -> str:
        return self._client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content

    async def acall(self) -> str:
        answer = await self._async_client.chat.completions.create(model=MODEL, messages=MESSAGES)
        return answer.choices[0].message.content

    def stream(self, model: str) -> str:
        stream = self._client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" for chunk in stream])

    async def astream(self, model: str) -> str:
        stream = await self._async_client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


class LiteLLM(Peer):
    """https://docs.litellm.ai/docs/providers/vllm."""

    package = "litellm"
    imports = "from litellm import acompletion, completion"

    def _arguments(self, model: str = MODEL) -> dict[str, Any]:
        return {"model": f"hosted_vllm/{model}", "api_base": f"{self.url}/v1", "messages": MESSAGES}

    def call(self) -> str:
        from litellm import completion

        return completion(**self._arguments()).choices[0].message.content

    async def acall(self) -> str:
        from litellm import acompletion

        return (await acompletion(**self._arguments())).choices[0].message.content

    def stream(self, model: str) -> str:
        from litellm import completion

        stream = completion(**self._arguments(model), stream=True)
        return "".join([chunk.choices[0].delta.content or "" for chunk in stream])

    async def astream(self, model: str) -> str:
        from litellm import acompletion

        stream = await acompletion(**self._arguments(model), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


class HuggingFace(Peer):
    """https://huggingface.co/docs/huggingface_hub/guides/inference."""

    package = "huggingface-hub"
    imports = "from huggingface_hub import AsyncInferenceClient, InferenceClient"

    @cached_property
    def _client(self) -> Any:
        from huggingface_hub import InferenceClient

        return InferenceClient(base_url=self.url)

    @cached_property
    def _async_client(self) -> Any:
        from huggingface_hub import AsyncInferenceClient

        return AsyncInferenceClient(base_url=self.url)

    def call(self) -> str:
        return self._client.chat_completion(MESSAGES, model=MODEL).choices[0].message.content

    async def acall(self) -> str:
        answer = await self._async_client.chat_completion(MESSAGES, model=MODEL)
        return answer.choices[0].message.content

    def stream(self, model: str) -> str:
        stream = self._client.chat_completion(MESSAGES, model=model, stream=True)
        return "".join([chunk.choices[0].delta.content or "" for chunk in stream])

    async def astream(self, model: str) -> str:
        stream = await self._async_client.chat_completion(MESSAGES, model=model, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


PEERS: dict[str, type[Peer]] = {
    "myllm": MyLLM,
    "httpx": HTTPX,
    "aiohttp": AIOHTTP,
    "openai": OpenAI,
    "litellm": LiteLLM,
    "huggingface_hub": HuggingFace,
}
