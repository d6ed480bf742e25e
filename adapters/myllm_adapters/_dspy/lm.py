"""`LM`: a language model of DSPy over a client."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import dspy
from dspy import lm15

import myllm
from myllm import InvalidParameterError, compat, params
from myllm.base import BaseClient

from .engines import AsyncEngine, Engine, fan_out
from .parameters import SERVERS, pack, packed
from .state import PickledClient, client_arguments, dump_client, dump_supports, load_supports, servers

# The arguments of `dspy.LM` that are neither parameters of a request nor ours to set.
_LM_OPTIONS = frozenset(inspect.signature(dspy.LM.__init__).parameters) - {
    "self", "model", "model_type", "temperature", "max_tokens", "engine", "async_engine", "prompt_cache",
    "kwargs",
}  # fmt: skip
_COPY_OPTIONS = _LM_OPTIONS | {"model"}
CONNECTION = compat.CLIENT_OPTIONS - {"cache"}  # which is DSPy's own here
"""What says how to connect, in the words of `myllm.Client`."""
_MISPLACED = CONNECTION | {
    "api_key", "base_url", "cache_scope", "client", "dialect", "endpoints", "engine", "http",
    "http_request_kwargs", "port", "supports", "url",
}  # fmt: skip


class LM(dspy.LM):
    """A language model of DSPy over a client of yours.

        dspy.configure(lm=LM(myllm.Client("http://localhost:8000", model="smollm2"), temperature=0))

    Args:
        client: a `myllm.Client`, or an `AsyncClient`: where to send and how; also one with `engine=`, which
            needs no server. Its default parameters become this LM's.
        model: the served model's name; default: the client's, and if that has none either, the first one that
            the server lists (it is asked here, once).
        supports: what the model can do, as `dspy.lm15.ModelSupport` (or its fields as a dict):
            `function_calling`, `reasoning`, `response_schema`. DSPy then uses the server's tools, reasoning
            and structured outputs. Not stated: only structured outputs by a JSON Schema are used, which every
            server enforces or refuses.
        cache_scope: what the servers are called in the key of DSPy's cache. Default: their URLs, so that no
            server gets another one's answers; name it where a server moves but stays the same.
        **kwargs: default parameters, with constraints and `extra_body`, whose fields every request sends as
            they are; and `dspy.LM`'s settings (`cache`, which is DSPy's, `num_retries`, `callbacks`, …).

    Attributes:
        client: the `myllm.Client` under it, for direct calls; it has no default parameters, for those are the
            LM's. It retries by itself; DSPy's calls through it do not, for DSPy retries them (`num_retries`).

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        MyLLMError: nobody names a model and the server cannot be asked.
    """

    client: myllm.Client

    def __init__(
        self,
        client: BaseClient,
        model: str | None = None,
        *,
        supports: lm15.ModelSupport | Mapping[str, bool] | None = None,
        cache_scope: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(client, BaseClient):
            raise InvalidParameterError(
                f"`client={client!r}` must be a `myllm.Client`: LM(myllm.Client(url), …).", param="client"
            )
        options = {name: kwargs.pop(name) for name in list(kwargs) if name in _LM_OPTIONS}
        defaults = pack(client.defaults)
        parameters = {**defaults, **pack(_only_parameters(kwargs), defaults)}
        if client.defaults:
            client = client.with_options(**dict.fromkeys(params.canonical(client.defaults)))
        settings = client.__getstate__()  # each kind of client has connections of its own
        self.client = client if isinstance(client, myllm.Client) else myllm.Client(**settings)
        async_client = client if isinstance(client, myllm.AsyncClient) else myllm.AsyncClient(**settings)
        stated = load_supports(supports)
        self._async_engine = AsyncEngine(async_client, stated)
        self._cache_scope = cache_scope
        scope = servers(client) if cache_scope is None else cache_scope
        super().__init__(
            model or client.model or _first_model(self.client),
            engine=Engine(self.client, stated),
            async_engine=self._async_engine,
            **options,
            **{**parameters, "metadata": {**(parameters.get("metadata") or {}), SERVERS: scope}},
        )

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model as `dspy.LM` does, with all of the SDK's parameters.

        Raises:
            UnknownParameterError, InvalidParameterError: a parameter is not understood.
            dspy.LMError: the call failed; the SDK's own error is the cause of its cause.
        """
        prompt, kwargs = self._prepared(prompt, kwargs)
        with self._fan_out(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """See `__call__`."""
        prompt, kwargs = self._prepared(prompt, kwargs)
        with self._fan_out(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)

    def _prepared(self, prompt: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs = pack(_only_parameters(kwargs), self.kwargs)
        if kwargs.get("cache", self.cache):
            # The key of a typed request is the request itself.
            prompt = self._scoped(prompt)
            if "request" in kwargs:
                kwargs["request"] = self._scoped(kwargs["request"])
        return prompt, kwargs

    def _scoped(self, request: Any) -> Any:
        """Return a typed request that says, to DSPy's cache, which servers it is for."""
        if not isinstance(request, lm15.Request):
            return request
        extensions = request.config.extensions or {}
        given: Any = extensions.get("metadata") or {}
        metadata = {**given, SERVERS: self.kwargs["metadata"][SERVERS]}
        config = replace(request.config, extensions={**extensions, "metadata": metadata})
        return replace(request, config=config)

    def _fan_out(self, prompt: Any, kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        wanted = kwargs.get("n", self.kwargs.get("n")) or 1
        # A `Request` is for one response, and a stream has one: there DSPy asks n times.
        alone = isinstance(prompt, lm15.Request) or "request" in kwargs
        alone = alone or dspy.settings.send_stream is not None  # type: ignore[attr-defined]
        return fan_out(wanted if isinstance(wanted, int) and not alone else 1)

    def copy(self, **kwargs: Any) -> LM:
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
        copied: LM = super().copy(**changes)  # type: ignore[no-untyped-call]
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
        state.update(packed(self.kwargs))
        state.update(supports=dump_supports(self.engine.supports) or None, cache_scope=self._cache_scope)
        return {
            **{name: value for name, value in state.items() if value is not None},
            **self._dump_connection(),
        }

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LM:
        """Make the LM that `dump_state` told of."""
        if "client" in state:
            client = myllm.Client(model=state["model"], **client_arguments(state["client"]))
            state = {**state, "client": client}
        loaded: LM = super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)
        return loaded

    def _dump_connection(self) -> dict[str, Any]:
        return {"client": dump_client(self.client)}

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        history = [_picklable(entry) for entry in self.history]
        return {**state, "client": PickledClient(self.client), "history": history}  # the engines do the same

    # By itself `deepcopy` would make what a pickle makes, which has no key.
    def __deepcopy__(self, memo: dict[int, Any]) -> LM:
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(dspy.LM.__getstate__(self), memo))  # type: ignore[no-untyped-call]
        return twin


def _first_model(client: myllm.Client) -> str:
    listed = client.models()
    if not listed:
        raise InvalidParameterError(
            "The server lists no model: say which one, `LM(client, model=…)`.", param="model"
        )
    return listed[0].id


def _picklable(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the history without the class that JSONAdapter makes for one call."""
    wanted = entry["kwargs"].get("response_format")
    if not isinstance(wanted, type):
        return entry
    schema = {"name": wanted.__name__, "schema": wanted.model_json_schema()}  # type: ignore[attr-defined]
    form = {"type": "json_schema", "json_schema": schema}
    return {**entry, "kwargs": {**entry["kwargs"], "response_format": form}}


def _only_parameters(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Refuse what belongs to the constructor with the place where it belongs."""
    if misplaced := _MISPLACED.intersection(kwargs):
        name = min(misplaced)
        raise InvalidParameterError(
            f"`{name}` is no parameter of a request: give it to the constructor of the client, or of "
            "`HFClientVLLM` or `HFClientTGI`.",
            param=name,
        )
    return kwargs
