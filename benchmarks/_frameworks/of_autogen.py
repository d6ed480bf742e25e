"""AutoGen's classic API and AgentChat, over our adapters and their own clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from benchmarks._peers import MESSAGES, QUESTION, Peer
from benchmarks.stub import MODEL


class _AutoGen(Peer, ABC):
    """https://docs.ag2.ai/0.9/docs/user-guide/basic-concepts/llm-configuration: what an agent asks with."""

    package = "autogen"
    imports = "from autogen import OpenAIWrapper"
    has_async = False  # its clients are synchronous: asynchronous replies wait in threads

    @abstractmethod
    def _entry(self, **more: Any) -> Any: ...

    @cached_property
    def _wrapper(self) -> Any:
        from autogen import OpenAIWrapper

        return OpenAIWrapper(config_list=[self._entry()])

    @cached_property
    def _streaming(self) -> Any:
        from autogen import OpenAIWrapper

        return OpenAIWrapper(config_list=[self._entry(stream=True)])

    def call(self) -> str:
        return self._text(self._wrapper.create(messages=MESSAGES))

    def stream(self, model: str) -> str:
        from autogen.io.base import IOStream

        with IOStream.set_default(_Silent()):  # it would be printed
            return self._text(self._streaming.create(messages=MESSAGES))

    def _text(self, response: Any) -> str:
        return self._wrapper.extract_text_or_completion_object(response)[0]


class _Silent:
    """AutoGen's output, thrown away."""

    def print(self, *_: Any, **__: Any) -> None: ...

    def send(self, _: Any) -> None: ...

    def input(self, prompt: str = "", *, password: bool = False) -> str:
        raise EOFError


class AutoGenMyLLM(_AutoGen):
    """Our entry."""

    def _entry(self, **more: Any) -> Any:
        from myllm_adapters.autogen import MyLLMConfigEntry

        return MyLLMConfigEntry(MODEL, base_url=self.url, **more)


class AutoGenOpenAI(_AutoGen):
    """AutoGen's own entry for a server with OpenAI's API."""

    def _entry(self, **more: Any) -> Any:
        return {
            "model": MODEL,
            "base_url": f"{self.url}/v1",
            "api_key": "none",
            "price": [0, 0],
            **more,
        }


class _AgentChat(Peer, ABC):
    """https://microsoft.github.io/autogen/stable/user-guide/agentchat-user-guide/tutorial/models.html."""

    package = "autogen-agentchat"
    imports = "from autogen_core.models import UserMessage"
    has_sync = False

    @property
    @abstractmethod
    def _client(self) -> Any: ...

    async def acall(self) -> str:
        return (await self._client.create(_user_message())).content

    async def astream(self, model: str) -> str:
        stream = self._client.create_stream(_user_message())
        return "".join([piece async for piece in stream if isinstance(piece, str)])


def _user_message() -> list[Any]:
    from autogen_core.models import UserMessage

    return [UserMessage(content=QUESTION, source="user")]


class AgentChatMyLLM(_AgentChat):
    """Our model client."""

    @cached_property
    def _client(self) -> Any:
        from myllm_adapters.agentchat import MyLLMChatCompletionClient

        return MyLLMChatCompletionClient(MODEL, self.url)


class AgentChatOpenAI(_AgentChat):
    """The model client that comes with AgentChat's extensions."""

    package = "autogen-ext"

    @cached_property
    def _client(self) -> Any:
        from autogen_ext.models.openai import OpenAIChatCompletionClient

        abilities = ("vision", "function_calling", "json_output", "structured_output")
        return OpenAIChatCompletionClient(
            model=MODEL,
            base_url=f"{self.url}/v1",
            api_key="none",
            model_info={**dict.fromkeys(abilities, False), "family": "unknown"},
        )
