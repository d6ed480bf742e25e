"""DSPy 3's language models on your own servers: `HFClientVLLM`, `HFClientTGI` and `Client`.

    import dspy
    from myllm_adapters.dspy import HFClientVLLM

    dspy.configure(lm=HFClientVLLM("meta-llama/Llama-3.1-8B-Instruct", port=8000))
    print(dspy.ChainOfThought("question -> answer")(question="What is the capital of France?").answer)

They are `dspy.LM`s whose engines are `myllm.Client` and `myllm.AsyncClient`: everything that DSPy does with
an LM (caching, retries, history, usage, streaming, optimizers) it does with these. DSPy's calls go to the
chat endpoint with the parameters given here or in the call, and nothing else; `_generate` is the old clients'
call, with the old clients' defaults.

DSPy's cache knows an answer by model, messages and parameters, not by server: two servers that serve
different models under one name want `cache=False`, or names of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from ._extra import missing_extra

try:
    import dspy
    from dspy import lm15  # the engines' vocabulary; DSPy has engines since 3.4
except ImportError as exc:
    raise missing_extra(__name__, "dspy", exc) from exc

import myllm
from myllm import InvalidParameterError, compat
from myllm.endpoints import PortSpec, UrlSpec

from ._dspy.engines import AsyncEngine, Engine, fan_out
from ._dspy.parameters import pack, packed, wire
from ._dspy.state import client_arguments, dump_client, dump_supports, load_supports

__all__ = ["AsyncEngine", "Client", "Engine", "HFClientTGI", "HFClientVLLM"]

# DSPy's files name an engine by its class; they shall name the public place.
Engine.__module__ = AsyncEngine.__module__ = __name__

# The arguments of `dspy.LM` that are neither parameters of a request nor ours to set.
_LM_OPTIONS = frozenset(inspect.signature(dspy.LM.__init__).parameters) - {
    "self", "model", "model_type", "temperature", "max_tokens", "engine", "async_engine", "prompt_cache",
    "kwargs",
}  # fmt: skip
_CONNECTION = frozenset(
    {"api_key", "timeout", "headers", "http", "max_retries", "endpoints", "http_request_kwargs"}
)


class ServerLM(dspy.LM):
    """What the three share. Not made directly.

    Attributes:
        client: the `myllm.Client` under it, for direct calls; it retries by itself, DSPy's calls through it
            do not, for DSPy retries them (`num_retries`).
    """

    client: myllm.Client

    def __init__(self, model: str, client: myllm.Client, supports: Any, arguments: Mapping[str, Any]) -> None:
        options = {name: value for name, value in arguments.items() if name in _LM_OPTIONS}
        parameters = {name: value for name, value in arguments.items() if name not in _LM_OPTIONS}
        stated = load_supports(supports)
        # The same settings; each kind of client has connections of its own.
        async_client = myllm.AsyncClient(**client.__getstate__())
        self.client = client
        self._async_engine = AsyncEngine(async_client, stated)
        super().__init__(
            model,
            engine=Engine(client, stated),
            async_engine=self._async_engine,
            **options,
            **pack(parameters),
        )

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model as `dspy.LM` does, with all of the SDK's parameters.

        Raises:
            UnknownParameterError, InvalidParameterError: a parameter is not understood.
            dspy.LMError: the call failed; the SDK's own error is the cause of its cause.
        """
        kwargs = pack(_only_parameters(kwargs), self.kwargs)
        with self._fan_out(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """See `__call__`."""
        kwargs = pack(_only_parameters(kwargs), self.kwargs)
        with self._fan_out(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)

    def _fan_out(self, prompt: Any, kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        wanted = kwargs.get("n", self.kwargs.get("n")) or 1
        # A `Request` is for one response. TGI's chat answers one choice whatever `n` is, and a stream has
        # one: there DSPy asks n times.
        alone = isinstance(prompt, lm15.Request) or "request" in kwargs
        alone = alone or self.client.dialect == "tgi" or dspy.settings.send_stream is not None  # type: ignore[attr-defined]
        return fan_out(wanted if isinstance(wanted, int) and not alone else 1)

    def copy(self, **kwargs: Any) -> ServerLM:
        """Return an LM with other parameters or settings, an empty history and the same connections."""
        settings = {name: value for name, value in kwargs.items() if hasattr(self, name)}
        parameters = {name: value for name, value in kwargs.items() if name not in settings}
        changes = {**settings, **pack(_only_parameters(parameters), self.kwargs)}
        copied: ServerLM = super().copy(**changes)  # type: ignore[no-untyped-call]
        return copied

    def close(self) -> None:
        """Close the synchronous connections, which copies share."""
        super().close()  # type: ignore[no-untyped-call]
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and the synchronous ones."""
        await self._async_engine.aclose()
        await super().aclose()  # type: ignore[no-untyped-call]

    def dump_state(self) -> dict[str, Any]:
        """Return the LM as JSON for DSPy's saved programs, without keys, headers, proxies and passwords.

        Loading wants `allow_unsafe_lm_state=True`, as for every LM that is not DSPy's own; the key then
        comes from `MYLLM_API_KEY`.
        """
        state = super().dump_state()  # type: ignore[no-untyped-call]
        for name in ("engine", "async_engine", "model_type", "metadata"):
            state.pop(name, None)
        supports = dump_supports(self.engine.supports)
        return {
            **{name: value for name, value in state.items() if value is not None},
            **packed(self.kwargs),
            **({"supports": supports} if supports else {}),
            **self._dump_connection(),
        }

    def _dump_connection(self) -> dict[str, Any]:
        return dump_client(self.client)


class Client(ServerLM):
    """An LM for a server of any dialect.

        dspy.configure(lm=Client("smollm2", "http://localhost:8000", temperature=0))

    Args:
        model: the served model's name.
        base_url, api_key, dialect, **kwargs: as `myllm.Client` takes them (`timeout`, `headers`, `http`,
            `endpoints`, `max_retries` and default parameters), and as `dspy.LM` does (`cache`, `num_retries`,
            `callbacks`, …); `extra_body` holds fields that every request sends as they are.
        supports: what the model can do, as `dspy.lm15.ModelSupport` (or its fields as a dict):
            `function_calling`, `reasoning`, `response_schema`. DSPy then uses the server's tools, reasoning
            and structured outputs; what is not stated is not used.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
    """

    def __init__(
        self,
        model: str,
        base_url: UrlSpec | None = None,
        *,
        api_key: str | None = None,
        dialect: str = "vllm",
        supports: lm15.ModelSupport | Mapping[str, bool] | None = None,
        **kwargs: Any,
    ) -> None:
        connection = {name: kwargs.pop(name) for name in list(kwargs) if name in _CONNECTION}
        client = myllm.Client(
            base_url, model=model, api_key=api_key, dialect=dialect, **client_arguments(connection)
        )
        super().__init__(model, client, supports, kwargs)


class HFClientLM(ServerLM):
    """What DSPy's two old clients share. Not made directly."""

    _old_class: ClassVar[type[compat.HFClientVLLM] | type[compat.HFClientTGI]]

    def __init__(self, model: str, port: PortSpec, url: UrlSpec, kwargs: dict[str, Any]) -> None:
        supports = kwargs.pop("supports", None)
        ours = _CONNECTION | {"model_type", "system_prompt"}
        connection = {name: kwargs.pop(name) for name in list(kwargs) if name in ours}
        # It owns the connections, and knows the old call and its defaults.
        self._old = self._old_class(model, port, url, **client_arguments(connection))
        super().__init__(model, self._old.client, supports, kwargs)

    def _generate(self, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """Generate for one prompt as the old client did, outside of DSPy's cache, history and retries.

        Args:
            prompt: the text to continue.
            **kwargs: parameters that go before this LM's, which go before the old client's defaults.

        Returns:
            `{"prompt": prompt, "choices": [{"text": …}, …], …}`; see `myllm.HFClientVLLM._generate`.

        Raises:
            MyLLMError: see `myllm.errors`.
        """
        old = self._old if self._old.model == self.model else self._old.copy(model=self.model)
        return old._generate(prompt, **{**wire(self.kwargs), **kwargs})

    def _dump_connection(self) -> dict[str, Any]:
        state = dump_client(self.client)
        http = state.pop("http", None)
        state["url"] = state.pop("base_url")
        del state["dialect"]
        if http is not None:
            state["http_request_kwargs"] = http
        if self._old.model_type != "auto":
            state["model_type"] = self._old.model_type
        if self._old.system_prompt is not None:
            state["system_prompt"] = self._old.system_prompt
        return state


class HFClientVLLM(HFClientLM):
    """A vLLM server (or `myllm serve`) as an LM of DSPy 3, under its old name.

    Args:
        model: the served model's name.
        port: a port, or several: the servers take turns, and a dead one's calls go to the next.
        url: where the servers are; see `myllm.HFClientVLLM`.
        **kwargs: as `Client`'s; also `http_request_kwargs`, and `model_type` ("auto", "chat", "text") and
            `system_prompt`, which concern `_generate` alone.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
    """

    _old_class = compat.HFClientVLLM

    def __init__(
        self, model: str, port: PortSpec = None, url: UrlSpec = "http://localhost", **kwargs: Any
    ) -> None:
        super().__init__(model, port, url, kwargs)


class HFClientTGI(HFClientLM):
    """A Text Generation Inference server as an LM of DSPy 3, under its old name.

    DSPy's calls go through TGI's `/v1/chat/completions`, `_generate` through `/generate`.

    Args:
        http_request_kwargs: `timeout`, `verify`, `cert`, `headers`, `proxies`, `auth`, as in requests.
        model, port, url, **kwargs: see `HFClientVLLM`.
    """

    _old_class = compat.HFClientTGI

    def __init__(
        self,
        model: str,
        port: PortSpec = None,
        url: UrlSpec = "http://localhost",
        http_request_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, port, url, {**kwargs, "http_request_kwargs": http_request_kwargs})


def _only_parameters(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Refuse what belongs to the constructor with the place where it belongs."""
    if misplaced := _CONNECTION.union({"base_url", "url", "port", "dialect"}).intersection(kwargs):
        name = min(misplaced)
        raise InvalidParameterError(
            f"`{name}` says where and how to connect: give it to the constructor, not to a call.", param=name
        )
    return kwargs
