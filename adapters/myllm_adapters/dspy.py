"""DSPy 3's language models on your own servers: `HFClientVLLM`, `HFClientTGI` and `Client`.

    import dspy
    from myllm_adapters.dspy import HFClientVLLM

    dspy.configure(lm=HFClientVLLM("meta-llama/Llama-3.1-8B-Instruct", port=8000))
    print(dspy.ChainOfThought("question -> answer")(question="What is the capital of France?").answer)

They are `dspy.LM`s whose engines are `myllm.Client` and `myllm.AsyncClient`: everything that DSPy does with
an LM (caching, retries, history, usage, streaming, optimizers) it does with these. DSPy's calls go to the
chat endpoint with the parameters given here or in the call, and nothing else; `_generate` is the old clients'
call, with the old clients' defaults.

Nothing secret is saved: neither JSON files nor pickles (`program.save(folder, save_program=True)`, joblib,
multiprocessing) hold the API key, headers, proxy or password of an LM, and none has its `hooks`, which, like
DSPy's callbacks, belong to the process. A loaded LM takes its key from `MYLLM_API_KEY`, as worker processes
do, which inherit it; what else it needs, set with a new LM (`program.set_lm(…)`). `copy()`, `copy.deepcopy`
and a program's `deepcopy()` stay in the process and keep everything.

DSPy's cache knows an answer by model, messages and parameters, not by server: two servers that serve
different models under one name want `cache=False`, or names of their own.
"""

from __future__ import annotations

import copy
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
from myllm import InvalidParameterError, compat, params
from myllm.dialects import Dialect
from myllm.endpoints import PortSpec, UrlSpec

from ._dspy.engines import AsyncEngine, Engine, fan_out
from ._dspy.parameters import pack, packed, wire
from ._dspy.state import PickledClient, client_arguments, dump_client, dump_supports, load_supports

__all__ = ["AsyncEngine", "Client", "Engine", "HFClientTGI", "HFClientVLLM"]

# DSPy's files name an engine by its class; they shall name the public place.
Engine.__module__ = AsyncEngine.__module__ = __name__

# The arguments of `dspy.LM` that are neither parameters of a request nor ours to set.
_LM_OPTIONS = frozenset(inspect.signature(dspy.LM.__init__).parameters) - {
    "self", "model", "model_type", "temperature", "max_tokens", "engine", "async_engine", "prompt_cache",
    "kwargs",
}  # fmt: skip
# What says where and how to connect: of both kinds of LM, and of each.
_CONNECTION = compat.CLIENT_OPTIONS - {"cache"}  # which is DSPy's own here
_OF_CLIENT = _CONNECTION | {"http", "endpoints", "engine"}
_OF_OLD = _CONNECTION | {"api_key", "engine", "http_request_kwargs", "model_type", "system_prompt"}
_MISPLACED = (_OF_CLIENT | _OF_OLD | {"base_url", "url", "port", "dialect"}) - {"model_type", "system_prompt"}
_COPY_OPTIONS = _LM_OPTIONS | {"model"}


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
        # A `Request` is for one response, and a stream has one: there DSPy asks n times.
        alone = isinstance(prompt, lm15.Request) or "request" in kwargs
        alone = alone or dspy.settings.send_stream is not None  # type: ignore[attr-defined]
        return fan_out(wanted if isinstance(wanted, int) and not alone else 1)

    def copy(self, **kwargs: Any) -> ServerLM:
        """Return an LM with other parameters or settings, an empty history and the same connections.

        Args:
            **kwargs: `model`, parameters (`None` removes one), and `dspy.LM`'s settings (`cache`,
                `num_retries`, `callbacks`, …).

        Raises:
            UnknownParameterError, InvalidParameterError: an argument is not understood.
        """
        settings = {name: value for name, value in kwargs.items() if name in _COPY_OPTIONS}
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

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "client": PickledClient(self.client)}  # the engines do the same

    # By itself `deepcopy` would make what a pickle makes, which has no key.
    def __deepcopy__(self, memo: dict[int, Any]) -> ServerLM:
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(dspy.LM.__getstate__(self), memo))  # type: ignore[no-untyped-call]
        return twin


class Client(ServerLM):
    """An LM for a server of any dialect.

        dspy.configure(lm=Client("smollm2", "http://localhost:8000", temperature=0))

    Args:
        model: the served model's name.
        base_url, api_key, dialect, **kwargs: as `myllm.Client` takes them (`timeout`, `headers`, `http`,
            `endpoints`, `policy`, `max_retries`, … and default parameters, constraints too), and as `dspy.LM`
            does (`cache`, which is DSPy's, `num_retries`, `callbacks`, …); `extra_body` holds fields that
            every request sends as they are. Saved programs and pickles have no `api_key`, `headers`, `hooks`,
            proxy and password: see the top of this module.
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
        dialect: str | Dialect = "auto",
        supports: lm15.ModelSupport | Mapping[str, bool] | None = None,
        **kwargs: Any,
    ) -> None:
        connection = {name: kwargs.pop(name) for name in list(kwargs) if name in _OF_CLIENT}
        client = myllm.Client(
            base_url, model=model, api_key=api_key, dialect=dialect, **client_arguments(connection)
        )
        super().__init__(model, client, supports, kwargs)


# Arguments of `Client` and the old clients' words for them.
_INSTEAD = {
    "base_url": "`url` and `port`",
    "endpoints": "`url` and `port`",
    "http": "`http_request_kwargs`",
    "dialect": "none (the class says the kind of server)",
}


# What `_generate` takes beside parameters.
_ASIDE = compat.CALL_OPTIONS | {"system_prompt"}


class HFClientLM(ServerLM):
    """What DSPy's two old clients share. Not made directly."""

    _old_class: ClassVar[type[compat.HFClientVLLM] | type[compat.HFClientTGI]]

    def __init__(self, model: str, port: PortSpec, url: UrlSpec, kwargs: dict[str, Any]) -> None:
        supports = kwargs.pop("supports", None)
        for name, instead in _INSTEAD.items():
            if name in kwargs:
                raise InvalidParameterError(
                    f"`{name}` is an argument of `Client`: give {instead}, or use `Client`.", param=name
                )
        connection = {name: kwargs.pop(name) for name in list(kwargs) if name in _OF_OLD}
        # It owns the connections, and knows the old call and its defaults.
        self._old: compat.HFClient = self._old_class(model, port, url, **client_arguments(connection))
        super().__init__(model, self._old.client, supports, kwargs)

    def _generate(self, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """Generate for one prompt as the old client did, outside of DSPy's cache, history and retries.

        Args:
            prompt: the text to continue.
            **kwargs: parameters that go before this LM's, which go before the old client's defaults;
                `system_prompt`, and the options of a `myllm.Client`'s call (`timeout`, `extra_body`, …), too.

        Returns:
            `{"prompt": prompt, "choices": [{"text": …}, …], …}`; see `myllm.HFClientVLLM._generate`.

        Raises:
            MyLLMError: see `myllm.errors`.
        """
        old = self._old if self._old.model == self.model else self._old.copy(model=self.model)
        # Either may say `max_new_tokens` for `max_tokens`, and the call's is the one that counts.
        own, given = wire(self.kwargs), dict(kwargs)
        aside = {name: source.pop(name) for source in (own, given) for name in _ASIDE.intersection(source)}
        return old._generate(prompt, **{**params.canonical(own), **params.canonical(given), **aside})

    def copy(self, **kwargs: Any) -> HFClientLM:
        """See `ServerLM.copy`; `model_type` and `system_prompt`, which concern `_generate`, change too."""
        old = {name: kwargs.pop(name) for name in ("model_type", "system_prompt") if name in kwargs}
        if old.get("model_type", "auto") not in ("auto", "chat", "text"):
            raise InvalidParameterError(
                f"`model_type={old['model_type']!r}` must be one of 'auto', 'chat', 'text'.",
                param="model_type",
            )
        copied = super().copy(**kwargs)
        assert isinstance(copied, HFClientLM)
        if old:
            copied._old = self._old.copy(**old)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_old"] = copy.copy(self._old)
        state["_old"].client = state["client"]
        return state

    def _dump_connection(self) -> dict[str, Any]:
        state = dump_client(self.client)
        http = state.pop("http", None)
        state["url"] = state.pop("base_url")
        del state["dialect"]
        if http is not None:
            if not http.pop("trust_env", True):
                http["proxies"] = {"http": None, "https": None}  # requests' way to say it
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
        **kwargs: `api_key`, `timeout`, `headers`, `max_retries`, `policy`, …, `http_request_kwargs`,
            `model_type` ("auto", "chat", "text") and `system_prompt` (these two concern `_generate` alone) as
            `myllm.HFClientVLLM` takes them; `supports`, `extra_body`, default parameters and `dspy.LM`'s
            settings (`cache` is one of them) as `Client` does.

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

    DSPy's calls go through TGI's `/v1/chat/completions`. So does `_generate`, unless the server has no chat
    template or endpoint, or the call has a parameter that only `/generate` knows (`top_k`, `typical_p`, …);
    with `model_type="text"` it always goes through `/generate`, as DSPy's old client did.

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
    if misplaced := _MISPLACED.intersection(kwargs):
        name = min(misplaced)
        raise InvalidParameterError(
            f"`{name}` says where and how to connect: give it to the constructor, not to a call or a copy.",
            param=name,
        )
    return kwargs
