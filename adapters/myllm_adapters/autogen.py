"""AutoGen (the `autogen` with `config_list`): your own server as an entry of the LLM configuration.

    from autogen import ConversableAgent, UserProxyAgent
    from myllm_adapters.autogen import llm_config

    assistant = ConversableAgent("agent", llm_config=llm_config("smollm2", port=8000))

`llm_config` returns an `autogen.LLMConfig`; `MyLLMConfigEntry` is one entry of it, for a `config_list` of
one's own. A plain dict reaches the server too, without what an entry adds (checked parameter names, values
above AutoGen's own limits, short connect timeouts, errors that say what to do):

    {"model": "smollm2", "base_url": "http://localhost:8000/v1", "api_key": "EMPTY", "price": [0, 0]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from myllm import HTTPOptions, InvalidParameterError, MyLLMError, RequestTimeoutError, Timeout
from myllm.dialects import OpenAIDialect, VLLMDialect
from myllm.endpoints import Endpoint, PortSpec, UrlSpec, resolve_endpoints
from myllm.engines import engine_endpoint, refuse_places
from myllm.errors import ConnectTimeoutError
from myllm.params import KNOWN_NAMES, build, unknown_parameter
from myllm.transport.framework import httpx_client
from myllm.wire import Call, ServerInfo

from ._extra import missing_extra

try:
    import httpx
    import openai
    from autogen import LLMConfig
    from autogen.llm_config.entry import ApplicationConfig
    from autogen.oai.client import OpenAILLMConfigEntry, OpenAIWrapper
    from pydantic import Field, field_serializer
except ImportError as exc:
    raise missing_extra(__name__, "autogen", exc) from exc

# Names that AutoGen reads itself, or gives to the `openai` client; they pass as they are. `response_format`,
# `tools` and `tool_choice` are here because AutoGen reshapes them before they are sent.
_FRAMEWORK_NAMES = (
    frozenset(OpenAILLMConfigEntry.model_fields)
    | frozenset(OpenAIWrapper.extra_kwargs)
    | {"tools", "functions", "organization", "project", "default_query"}
)
# Names with which `openai`'s `create()` can be called; whatever else a server understands is extra body.
_OPENAI_NAMES = OpenAIDialect.chat_params | {"logprobs", "top_logprobs"}
_LLM_CONFIG_NAMES = frozenset(
    {"cache_seed", "routing_method", "check_every_ms", "allow_format_str_template", "tools", "functions"}
)


class MyLLMConfigEntry(OpenAILLMConfigEntry):
    """One server in an AutoGen `config_list`.

    It is an entry of AutoGen's type "openai" whose HTTP client follows the SDK's rules, so nothing has to be
    registered, and it survives `register_function` and deep copies. When the server cannot be reached or
    refuses, AutoGen goes on to the next entry; after the last one the error says which server it was and
    what to do.

    Args:
        model: the served model's name.
        base_url: where the server is, with `/v1` or without; also spelled `url`. Default: `MYLLM_BASE_URL`,
            then `OPENAI_BASE_URL`, then http://localhost:8000.
        port: instead of a port in the URL.
        api_key: the server's key. Default: `MYLLM_API_KEY`.
        price: dollars for 1000 prompt tokens and for 1000 completion tokens.
        timeout: seconds to wait for the next byte of an answer, or a `myllm.Timeout`.
        max_retries: further tries after a refused connection and the statuses 408, 409, 429 and 5xx.
        http: certificates, proxy and basic authentication.
        engine: instead of a server, an engine in this process, as `myllm.Client` takes it.
        **settings: parameters (`temperature=…`, `top_k=…`: `myllm.params.Parameters`), the other fields of
            AutoGen's entry (`tags=`, `stream=`, …), and `extra_body=` for fields to send as they are.

    Raises:
        UnknownParameterError, InvalidParameterError, UnsupportedFeatureError: an argument is not understood.
    """

    # AutoGen stops at 1; OpenAI's API and vLLM go to 2.
    temperature: float | None = Field(default=None, ge=0, le=2)

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        url: str | None = None,
        port: int | str | None = None,
        api_key: str | None = None,
        price: Sequence[float] = (0, 0),
        timeout: Timeout | float | None = 300.0,
        max_retries: int = 2,
        http: HTTPOptions | None = None,
        http_client: httpx.Client | None = None,
        engine: Any = None,
        extra_body: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if engine is not None:
            refuse_places(base_url=base_url, url=url, port=port, api_key=api_key, http=http)
            endpoint = engine_endpoint(engine)
        else:
            endpoint = _one(resolve_endpoints(_one_url(base_url, url), api_key, port=port))
        top_level, extra = _split(model, settings)
        client = http_client or httpx_client(
            endpoint,
            options=http,
            timeout=_limits(timeout),
            translate=partial(_as_openai_error, max_retries=max_retries),
        )
        super().__init__(
            model=model,
            base_url=f"{endpoint.url}/v1",
            api_key=endpoint.api_key or "EMPTY",  # `openai` insists on one; servers without keys ignore it
            price=list(price),
            max_retries=max_retries,
            http_client=client,
            extra_body={**extra, **(extra_body or {})} or None,
            **top_level,
        )

    @field_serializer("http_client", when_used="json")
    def _no_client_in_json(self, client: httpx.Client | None) -> None:
        """Leave sockets out of JSON."""

    def apply_application_config(self, application_config: ApplicationConfig) -> MyLLMConfigEntry:
        """Take over what the whole configuration says and this entry does not; a 0 of this entry stays."""
        entry = self.model_copy()
        for name in ("max_tokens", "top_p", "temperature"):
            if getattr(entry, name) is None:
                setattr(entry, name, getattr(application_config, name))
        return entry


def llm_config(
    model: str,
    *,
    base_url: UrlSpec | None = None,
    url: UrlSpec | None = None,
    port: PortSpec = None,
    api_key: str | None = None,
    **settings: Any,
) -> LLMConfig:
    """Return what AutoGen's agents take as `llm_config`.

    Several URLs or ports make several entries: AutoGen asks the next one when one fails, and takes turns
    with `routing_method="round_robin"`. `settings` are those of `MyLLMConfigEntry`, and AutoGen's own for
    the whole configuration (`cache_seed`, `routing_method`, …); without `cache_seed` no answer is cached.

    Raises:
        UnknownParameterError, InvalidParameterError, UnsupportedFeatureError: an argument is not understood.
    """
    whole = {name: settings.pop(name) for name in _LLM_CONFIG_NAMES & settings.keys()}
    if settings.get("engine") is not None:
        refuse_places(base_url=base_url, url=url, port=port, api_key=api_key)
        return LLMConfig(MyLLMConfigEntry(model, **settings), **whole)
    endpoints = resolve_endpoints(_one_url(base_url, url), api_key, port=port)
    entries = [
        MyLLMConfigEntry(model, base_url=endpoint.url, api_key=endpoint.api_key, **settings)
        for endpoint in endpoints
    ]
    return LLMConfig(*entries, **whole)


def _one_url(base_url: Any, url: Any) -> Any:
    if base_url is not None and url is not None:
        raise InvalidParameterError("`url` and `base_url` are the same thing: give one of them.", param="url")
    return url if base_url is None else base_url


def _one(endpoints: Sequence[Endpoint]) -> Endpoint:
    if len(endpoints) != 1:
        raise InvalidParameterError(
            "An entry is one server: make one entry for each, or use `llm_config`.", param="base_url"
        )
    return endpoints[0]


def _limits(timeout: Timeout | float | None) -> Timeout:
    if isinstance(timeout, Timeout):
        return timeout
    limits = Timeout.of(timeout)
    return Timeout(connect=limits.connect, first_byte=limits.first_byte, idle=limits.idle)


def _split(model: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what AutoGen hands to `openai` by name, and what goes into the extra body.

    The names are the SDK's, so they are checked, and translated to what vLLM's chat endpoint calls them.
    """
    top_level: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, value in settings.items():
        if name in KNOWN_NAMES and name not in ("response_format", "tools", "tool_choice"):
            given[name] = value
        elif name in _FRAMEWORK_NAMES:
            top_level[name] = value
        else:
            raise unknown_parameter(name)
    call = Call(kind="chat", model=model, params=build(given), messages=[])
    (request,) = VLLMDialect().requests(call, ServerInfo(dialect="vllm"))
    body = {name: value for name, value in request.json.items() if name not in ("model", "messages")}
    top_level.update({name: value for name, value in body.items() if name in _OPENAI_NAMES})
    return top_level, {name: value for name, value in body.items() if name not in _OPENAI_NAMES}


class _OpenAITimeoutError(openai.APITimeoutError):
    """A timeout that says where and how long; AutoGen knows it by its base class."""

    def __init__(self, message: str, request: httpx.Request) -> None:
        super().__init__(request)
        self.message = message
        self.args = (message,)


_STATUS_ERRORS: dict[int, type[openai.APIStatusError]] = {
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}
_RETRIED_STATUSES = frozenset({408, 409, 429})


def _as_openai_error(
    error: MyLLMError, request: httpx.Request, response: httpx.Response | None, *, max_retries: int
) -> openai.APIError | None:
    """Return the error that AutoGen knows how to pass by, or None for `openai` to try again.

    `openai` tells in a header which try it is, and lets its own errors through untouched.
    """
    tries_left = max_retries - int(request.headers.get("x-stainless-retry-count") or 0)
    if response is None:
        if isinstance(error, RequestTimeoutError) and not isinstance(error, ConnectTimeoutError):
            return _OpenAITimeoutError(str(error), request)  # it had its time: not tried again
        if tries_left > 0 and not isinstance(error, ConnectTimeoutError):
            return None
        return openai.APIConnectionError(message=str(error), request=request)
    status = response.status_code
    if tries_left > 0 and (status >= 500 or status in _RETRIED_STATUSES):
        return None
    body = getattr(error, "body", None)
    if status >= 500:
        cls: type[openai.APIStatusError] = openai.InternalServerError
    elif status == 400 and _is_openai_error(body):
        cls = openai.BadRequestError
    else:
        # AutoGen looks into a BadRequestError's JSON without checking its shape.
        cls = _STATUS_ERRORS.get(status, openai.APIStatusError)
    return cls(str(error), response=response, body=body)


def _is_openai_error(body: Any) -> bool:
    if not isinstance(body, dict):
        return False
    error = body.get("error")
    return error is None or (isinstance(error, dict) and isinstance(error.get("message"), str))
