"""What both clients share: their settings, and the building of calls. No I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from . import params as parameters
from .balancer import Balancer, Breaker, EndpointStatus
from .cache import Cache, cache_key, is_cacheable
from .dialects import Dialect, get_dialect
from .dialects.tokenizers import SHAPING
from .endpoints import Endpoint, UrlSpec, resolve_endpoints
from .engines import engine_endpoint, refuse_places
from .errors import InvalidParameterError
from .headers import checked
from .hooks import Hook
from .limits import RateLimiter
from .messages import MessagePolicy, checked_messages, checked_policy
from .options import TimeoutLike
from .policies import Policy, get_policy
from .route import Route
from .transport.options import HTTPOptions
from .wire import Call, Kind, Timeout

ClientT = TypeVar("ClientT", bound="BaseClient")


class _Unset:
    """The type of `UNSET`: `None` is a value of `timeout` (no limit)."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()
EMBEDDING = ("user", "truncate_prompt_tokens")
"""The parameters that an embedding call takes."""
_REQUEST_OPTIONS = ("model", "timeout", "extra_body", "extra_headers", "session", "cache")


class BaseClient:
    """What both clients share: where to go, with what, and the building of calls."""

    def __init__(
        self,
        base_url: UrlSpec | None = None,
        *misplaced: Any,
        model: str | None = None,
        api_key: str | None = None,
        dialect: str | Dialect = "auto",
        timeout: _Unset | TimeoutLike = UNSET,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
        http: HTTPOptions | None = None,
        endpoints: Sequence[Endpoint] | None = None,
        engine: Any = None,
        policy: str | Policy = "round_robin",
        breaker: Breaker | _Unset | None = UNSET,
        health_interval: float | None = None,
        hedge_after: float | None = None,
        max_concurrency: int | None = None,
        requests_per_second: float | None = None,
        coalesce: bool = False,
        cache: Cache | bool | str | os.PathLike[str] | None = None,
        message_policy: MessagePolicy = "as_is",
        hooks: Iterable[Hook] = (),
        **defaults: Any,
    ) -> None:
        """Make a client; nothing is sent before its first call.

        Args:
            base_url: where the server is, `/v1` or not, or a list of servers of the same model. Default:
                `MYLLM_BASE_URL`, then `OPENAI_BASE_URL`, then http://localhost:8000.
            model: the model to ask for; None asks for the first one that the server serves.
            api_key: the servers' key. Default: `MYLLM_API_KEY`.
            dialect: the kind of server: "vllm" (also `myllm serve`), "tgi", "sglang", "llamacpp", "ollama" or
                "openai"; "auto" asks each server once.
            timeout: a `Timeout`, or seconds for a whole call, or None for no limit but the connect timeout's.
            max_retries: further tries after connection errors and statuses 408, 409, 429 and 5xx; 0 inside
                a framework that retries by itself.
            headers: sent with every request.
            http: certificates, proxy and basic authentication.
            endpoints: instead of `base_url` and `api_key`, when servers want different keys or weights.
            engine: instead of a server, an engine in this process: an `AsyncEngine` or an `LLM` of
                `myllm_engine`, which needs no port. It stays yours: close it yourself. Or the name of a
                model, whose engine is started here, shared with all who name it, and ends with the process.
            policy: how calls are shared out among several servers: "round_robin", "least_in_flight",
                "weighted", or "affinity", which sends calls of one `session=`, or with one beginning, to one
                server, whose prefix cache is then warm.
            breaker: when a failing server is left alone, and for how long; None never leaves one alone.
            health_interval: seconds between looks at each server's `/health` in the background, so that no
                call finds out first that one died or came back; None: the calls' own results tell.
            hedge_after: seconds without an answer after which a second server is asked too; the first answer
                wins and the other request is cancelled. Not for streams.
            max_concurrency: most requests in flight at once (for `AsyncClient` in each event loop); more
                wait.
            requests_per_second: most calls started in a second, on average; more wait.
            coalesce: identical calls that are on their way at the same time share one request, if their
                answer could also be cached (temperature 0, or a seed).
            cache: keep answers: True for the user's cache folder, a file, or a `Cache`. Only complete answers
                that another call would get again: at temperature 0, or with a seed.
            message_policy: what to do about chat templates that refuse system messages or two messages of one
                role: "as_is", "merge_system", "alternate", or "auto", which tries and then keeps to what the
                server's refusal asks for.
            hooks: watch every call; see `myllm.hooks`.
            **defaults: parameters (`temperature=…`, …) of every call that does not set them.

        Raises:
            UnknownParameterError, InvalidParameterError: an argument is not understood.
            MissingExtraError: `engine=` without an engine installed.
            ServerStartError: `engine=` names a model that cannot be loaded.
        """
        if misplaced:
            raise InvalidParameterError(
                f"{misplaced[0]!r}: only `base_url` has a place of its own; give the rest by name, like "
                "`model=` or `api_key=`.",
                param="base_url",
            )
        _check_kind("http", http, HTTPOptions)
        _check_kind("breaker", breaker, Breaker, _Unset)
        hooks = tuple(hooks) if isinstance(hooks, Iterable) else (hooks,)
        if not all(isinstance(hook, Hook) for hook in hooks):
            raise InvalidParameterError(f"`hooks={hooks!r}` must be a list of `Hook`s.", param="hooks")
        if base_url is not None and not base_url:
            raise InvalidParameterError(
                f"`base_url={base_url!r}` names no server: leave it out for the default.", param="base_url"
            )
        if base_url is not None and (isinstance(base_url, bytes) or not isinstance(base_url, Iterable)):
            raise InvalidParameterError(
                f"`base_url={base_url!r}` is no URL: write it out, like 'http://localhost:8000'.",
                param="base_url",
            )
        if endpoints is not None and not endpoints:
            raise InvalidParameterError(
                "`endpoints` is an empty list: name at least one server.", param="endpoints"
            )
        if engine is not None:
            given = {"base_url": base_url, "endpoints": endpoints, "api_key": api_key}
            refuse_places(**given, http=None if http == HTTPOptions() else http)
            endpoints = [engine_endpoint(engine)]
        if endpoints is not None and (base_url is not None or api_key is not None):
            raise InvalidParameterError(
                "`endpoints` already say where and with which key: leave `base_url` and `api_key` out.",
                param="endpoints",
            )
        self._defaults = parameters.build(defaults)
        self.model = model
        self.defaults: dict[str, Any] = dict(defaults)
        self.timeout = Timeout() if isinstance(timeout, _Unset) else Timeout.of(timeout)
        self._http = http or HTTPOptions()
        rate = _positive("requests_per_second", requests_per_second)
        self._max_concurrency = _positive("max_concurrency", max_concurrency, whole=True)
        self._health_interval = _positive("health_interval", health_interval)
        self._coalesce = coalesce
        self._cache = Cache.of(cache)
        self._policy = policy
        self._route = Route(
            balancer=Balancer(
                tuple(
                    one if isinstance(one, Endpoint) else Endpoint(one)
                    for one in endpoints or resolve_endpoints(base_url, api_key)
                ),
                get_policy(policy),
                Breaker() if isinstance(breaker, _Unset) else breaker,
            ),
            dialect=None if dialect == "auto" else get_dialect(dialect),
            max_retries=_checked_retries(max_retries),
            limiter=None if rate is None else RateLimiter(rate),
            hedge_after=_positive("hedge_after", hedge_after),
            headers=checked(headers, "headers"),
            http=self._http,
            message_policy=checked_policy(message_policy),
            hooks=hooks,
            cache=self._cache,
        )
        if self._http.auth and any(endpoint.api_key for endpoint in self._route.endpoints):
            raise InvalidParameterError(
                "`api_key` and basic authentication (`auth`) want the same header: give one of them.",
                param="api_key",
            )

    def endpoints(self) -> EndpointTable:
        """Return how each server is doing, as this client sees it; printed, it is a table."""
        return EndpointTable(self._route.balancer.status())

    @property
    def dialect(self) -> str:
        """The kind of server; "auto" when each server is asked."""
        return self._route.dialect.name if self._route.dialect is not None else "auto"

    @property
    def max_retries(self) -> int:
        """Further tries after a failure that another try may mend."""
        return self._route.max_retries

    def with_options(
        self: ClientT,
        *,
        model: str | None = None,
        timeout: _Unset | TimeoutLike = UNSET,
        max_retries: int | None = None,
        hedge_after: float | _Unset | None = UNSET,
        message_policy: MessagePolicy | None = None,
        coalesce: bool | None = None,
        cache: Cache | bool | str | os.PathLike[str] | _Unset | None = UNSET,
        **defaults: Any,
    ) -> ClientT:
        """Return a client with other settings over the same connections; closing either closes both.

        `defaults` go on top of this client's, and `None` removes one.
        """
        merged, given = parameters.canonical(self.defaults), parameters.canonical(defaults)
        if any(given.get(name) is not None for name in parameters.SHAPES):
            merged = {name: value for name, value in merged.items() if name not in parameters.SHAPES}
        merged.update(given)
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.defaults = {name: value for name, value in merged.items() if value is not None}
        twin._defaults = parameters.build(twin.defaults)
        twin.model = model or self.model
        twin.timeout = self.timeout if isinstance(timeout, _Unset) else Timeout.of(timeout)
        twin._coalesce = self._coalesce if coalesce is None else coalesce
        twin._cache = self._cache if isinstance(cache, _Unset) else Cache.of(cache)
        route = self._route
        twin._route = replace(
            route,
            max_retries=route.max_retries if max_retries is None else _checked_retries(max_retries),
            hedge_after=(
                route.hedge_after
                if isinstance(hedge_after, _Unset)
                else _positive("hedge_after", hedge_after)
            ),
            message_policy=(
                route.message_policy if message_policy is None else checked_policy(message_policy)
            ),
            cache=twin._cache,
        )
        return twin

    def __repr__(self) -> str:
        urls = ", ".join(endpoint.url for endpoint in self._route.endpoints)
        return f"{type(self).__name__}({urls!r}, model={self.model!r}, dialect={self.dialect!r})"

    def _call(self, kind: Kind, subject: Any, given: Mapping[str, Any], *, stream: bool = False) -> Call:
        options: dict[str, Any] = {name: given[name] for name in _REQUEST_OPTIONS if name in given}
        params = {name: given[name] for name in given if name not in options} if options else given
        return Call(
            kind=kind,
            model=options.get("model") or self.model,
            params=(
                parameters.build(params, self._defaults)
                if kind in ("chat", "completion")
                else _few_parameters(kind, params)
            ),
            prompt=_checked_prompt(subject) if kind == "completion" else None,
            messages=checked_messages(subject) if kind == "chat" else None,
            stream=stream,
            extra_body=_mapping("extra_body", options.get("extra_body")),
            extra_headers=checked(options.get("extra_headers"), "extra_headers"),
            timeout=self._limit(options.get("timeout", UNSET)),
            session=_session(options.get("session")),
            cache=self._wants_cache(options.get("cache")),
        )

    def _limit(self, timeout: _Unset | TimeoutLike) -> Timeout:
        return self.timeout if isinstance(timeout, _Unset) else Timeout.of(timeout)

    def _wants_cache(self, cache: Any) -> bool:
        if cache not in (None, True, False) or (cache is True and self._cache is None):
            raise InvalidParameterError(
                f"`cache={cache!r}`: a call may only stay away from the client's cache, with False; which "
                "cache that is, is said when the client is made: `Client(cache=…)`.",
                param="cache",
            )
        return cache is not False

    def _embed_call(self, texts: str | Sequence[str], given: Mapping[str, Any]) -> Call:
        inputs: list[Any] = [texts] if isinstance(texts, str) else list(texts)
        if inputs and _are_ids(inputs):
            inputs = [inputs]
        if not inputs or not all(isinstance(text, str) or _are_ids(text) for text in inputs):
            raise InvalidParameterError(
                "`texts` must be a text, or a list of at least one text, or token ids of either.",
                param="texts",
            )
        extra = dict(given.get("extra_body") or ())
        if given.get("dimensions") is not None:
            extra["dimensions"] = given["dimensions"]
        options = {name: value for name, value in given.items() if name != "dimensions"}
        return replace(self._call("embedding", None, {**options, "extra_body": extra}), inputs=inputs)

    def _response_call(self, input: Any, given: Mapping[str, Any]) -> Call:
        """Return a call of the Responses API; what is no option of the call is a field of its body."""
        options = {name: given[name] for name in _REQUEST_OPTIONS if name in given}
        fields = {name: given[name] for name in given if name not in options}
        if fields.get("stream"):
            raise InvalidParameterError("`stream` is not available here: leave it out.", param="stream")
        body = {"input": input, **fields, **_mapping("extra_body", options.get("extra_body"))}
        return self._call("response", None, {**options, "extra_body": body})

    def _tokenize_call(self, subject: Any, given: Mapping[str, Any]) -> Call:
        call = self._call("tokenize", None, given)
        if isinstance(subject, str):
            return replace(call, prompt=subject)
        return replace(call, messages=checked_messages(subject))

    def _detokenize_call(self, ids: Sequence[int], given: Mapping[str, Any]) -> Call:
        if isinstance(ids, str) or (len(ids) and isinstance(_checked_prompt(ids), str)):
            raise InvalidParameterError(f"`ids={ids!r}` must be token ids.", param="ids")
        return replace(self._call("detokenize", None, given), prompt=list(ids))

    def _shared_key(self, call: Call) -> str | None:
        """Return the key under which identical calls share a request, or None: this one is on its own."""
        if not self._coalesce or not is_cacheable(replace(call, model=call.model or "?"), sampled=False):
            return None
        # Under another policy, or with another tenant's headers, it is not the same call.
        unlike = self._route.message_policy, sorted(call.extra_headers.items())
        return f"{cache_key(replace(call, model=call.model or ''))} {unlike!r}"

    # A client owns sockets: a "copy" that frameworks make of whatever holds one (deepcopy of a DSPy
    # program, of an AutoGen config) is the client itself, and a pickle is its settings.
    def __copy__(self: ClientT) -> ClientT:
        return self

    def __deepcopy__(self: ClientT, memo: dict[int, Any]) -> ClientT:
        return self

    def __getstate__(self) -> dict[str, Any]:
        route = self._route
        return {
            "model": self.model,
            "timeout": self.timeout,
            "max_retries": self.max_retries,
            "dialect": route.dialect or "auto",
            "endpoints": route.endpoints,
            "headers": route.headers,
            "http": self._http,
            "policy": self._policy,
            "breaker": route.balancer.breaker,
            "health_interval": self._health_interval,
            "hedge_after": route.hedge_after,
            "max_concurrency": self._max_concurrency,
            "requests_per_second": route.limiter.per_second if route.limiter else None,
            "coalesce": self._coalesce,
            "cache": self._cache,
            "message_policy": route.message_policy,
            "hooks": route.hooks,
            **self.defaults,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class EndpointTable(list[EndpointStatus]):
    """The servers' states; `print` shows a table."""

    def __str__(self) -> str:
        rows = [("server", "state", "in flight", "requests", "failures", "latency", "last error")]
        for status in self:
            state = status.state if not status.reopens_in else f"{status.state} {status.reopens_in:.0f} s"
            latency = "" if status.latency is None else f"{status.latency:.3f} s"
            error = (status.last_error or "")[:60]
            counts = (str(status.in_flight), str(status.requests), str(status.failures))
            rows.append((status.url, state, *counts, latency, error))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _few_parameters(kind: Kind, given: Mapping[str, Any]) -> parameters.Parameters:
    """Return the parameters of a call that generates nothing."""
    known = {"tokenize": SHAPING, "embedding": EMBEDDING}.get(kind, ())
    for name in given:
        if name in parameters.KNOWN_NAMES and name not in known:
            raise InvalidParameterError(
                f"`{name}` says how to generate, and this call ({kind}) generates nothing.", param=name
            )
    return parameters.build(given)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise InvalidParameterError(f"`{name}={value!r}` must be a mapping.", param=name)
    return dict(value or ())


def _session(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise InvalidParameterError(f"`session={value!r}` must be a text.", param="session")
    return value


def _check_kind(name: str, value: Any, *kinds: type) -> None:
    if value is not None and not isinstance(value, kinds):
        raise InvalidParameterError(f"`{name}={value!r}` must be a `{kinds[0].__name__}`.", param=name)


def _checked_retries(max_retries: int) -> int:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise InvalidParameterError(
            f"`max_retries={max_retries!r}` must be a whole number, 0 or more.", param="max_retries"
        )
    return max_retries


def _positive(name: str, value: Any, *, whole: bool = False) -> Any:
    kinds = int if whole else int | float
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value > 0):
        number = "whole number" if whole else "number"
        raise InvalidParameterError(f"`{name}={value!r}` must be a {number} above 0, or None.", param=name)
    return value


def _are_ids(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return False
    return all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)


def _checked_prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if _are_ids(prompt):
        return list(prompt)
    raise InvalidParameterError(
        f"`prompt={prompt!r}` must be a text, or a list of token ids.", param="prompt"
    )
