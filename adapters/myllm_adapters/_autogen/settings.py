"""What an entry of AutoGen's configuration is made of: the client, and parameters as AutoGen takes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from myllm import Client, HTTPOptions, InvalidParameterError, UnsupportedFeatureError
from myllm.compat import CLIENT_OPTIONS, HFClient
from myllm.constraints import schema_in
from myllm.dialects import get_dialect
from myllm.endpoints import resolve_endpoints
from myllm.engines import refuse_places
from myllm.errors import short
from myllm.params import KNOWN_NAMES, PARAMETER_NAMES, Parameters, build, unknown_parameter
from myllm.wire import Call, ServerInfo

from .served import HOW_TO_USE_TOOLS, NO_KEY, ServedClient

Subject = Client | HFClient | str
"""What answers: a client, one of DSPy's old ones, or the name of a model for a client to be made."""

AUTOGEN_NAMES = frozenset(
    {"stream", "tags", "response_format", "tools", "functions", "verbosity", "voice", "extra_headers",
     "default_headers", "filter_func", "context"}
)  # fmt: skip
"""Names that an entry hands to AutoGen as they are."""
_PLACE = frozenset({"base_url", "url", "port", "api_key", "engine", "http", "dialect"})
_ANEW = frozenset({"timeout", "max_retries", "hedge_after", "coalesce", "cache", "message_policy"})
# AutoGen's own fields. All that is not said with them reaches the server by way of `extra_body`, which
# `openai` puts on top of a request; it takes less time there, too.
_READ = frozenset({"n"})  # AutoGen must know how many answers to put together
_KNOWN = frozenset({"n", "max_tokens", "temperature", "top_p"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one entry is made of.

    Attributes:
        client: answers.
        model: the name to ask for.
        params: the client's parameters and the entry's, checked, but for `response_format`.
        autogen: what AutoGen takes as it is, `response_format` among it.
        extra_body: fields to be sent as they are.
    """

    client: Client
    model: str
    params: Parameters
    autogen: dict[str, Any]
    extra_body: dict[str, Any] = field(default_factory=dict)

    def served(self) -> dict[str, Any]:
        """Return the fields of an entry whose requests the client answers."""
        says = {**dict.fromkeys(PARAMETER_NAMES), **self.params.set_values()}  # and nothing else by itself
        client = self.client.with_options(**{**says, **dict.fromkeys(HOW_TO_USE_TOOLS)})
        return {
            **_fields(self.params.set_values(), self.extra_body, _READ),
            **self.autogen,
            "base_url": f"{client.endpoints()[0].url}/v1",
            "api_key": NO_KEY,
            "max_retries": 0,  # the client's are enough
            "http_client": ServedClient(client, self.extra_body),
        }

    def plain(self) -> list[dict[str, Any]]:
        """Return an OpenAI-compatible entry for each server, which AutoGen sends to by itself.

        Raises:
            UnsupportedFeatureError: the servers have no word for a parameter.
            InvalidParameterError: the client reaches its servers in a way that a plain entry cannot name.
        """
        state = self.client.__getstate__()
        if any(endpoint.dial is not None for endpoint in state["endpoints"]):
            raise _cannot_be_plain("an engine in this process has no address", "engine")
        if state["http"] != HTTPOptions():
            raise _cannot_be_plain("it has no place for certificates, proxies and passwords", "http")
        dialect = get_dialect("vllm" if state["dialect"] == "auto" else state["dialect"])
        call = Call(kind="chat", model=self.model, params=self.params, messages=[])
        requests = dialect.requests(call, ServerInfo(dialect=dialect.name))
        if len(requests) != 1 or requests[0].path != "/v1/chat/completions":
            raise UnsupportedFeatureError(
                f"A plain entry is one OpenAI-compatible request, and {dialect.name!r} needs others.",
                hint="Leave `plain` out: then the client asks the server in its own words.",
            )
        words = {name: value for name, value in requests[0].json.items() if name not in ("model", "messages")}
        fields = {**_fields(words, self.extra_body, _KNOWN), **self.autogen}
        if state["headers"]:
            fields["default_headers"] = {**state["headers"], **fields.get("default_headers", {})}
        return [
            {
                "model": self.model,
                "base_url": f"{endpoint.url}/v1",
                "api_key": endpoint.api_key or NO_KEY,
                **fields,
            }
            for endpoint in state["endpoints"]
        ]


def read_settings(subject: Subject, given: Mapping[str, Any]) -> Settings:
    """Read what `llm_config`, `config_list` and `MyLLMConfigEntry` are given.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        MyLLMError: a client without a model could not ask its server for one.
    """
    given = dict(given)
    extra_body = given.pop("extra_body", None)
    if extra_body is not None and not isinstance(extra_body, Mapping):
        raise InvalidParameterError(f"`extra_body={extra_body!r}` must be a mapping.", param="extra_body")
    client = _client(subject, given)
    autogen = {name: given.pop(name) for name in AUTOGEN_NAMES & given.keys()}
    for name in given:
        if name not in KNOWN_NAMES:
            raise unknown_parameter(name)
    params = build(given, client.defaults)
    if (form := autogen.pop("response_format", params.response_format)) is not None:
        autogen["response_format"] = _response_format(form)
        params = params.model_copy(update={"response_format": None})
    return Settings(
        client=client,
        model=client.model or client.models()[0].id,
        params=params,
        autogen=autogen,
        extra_body=dict(extra_body or {}),
    )


def _client(subject: Subject, given: dict[str, Any]) -> Client:
    """Return the client; takes the arguments that are about it out of `given`."""
    if isinstance(subject, str):
        return _new_client(subject, given)
    if isinstance(subject, HFClient):
        if subject.system_prompt or subject.model_type == "text":
            name = "system_prompt" if subject.system_prompt else "model_type"
            raise InvalidParameterError(
                f"`{name}={getattr(subject, name)!r}` of the {type(subject).__name__} has no place here: "
                "AutoGen's agents hold chats, and each has a `system_message` of its own.",
                param=name,
            )
        client = subject.client.with_options(model=subject.model, **subject.kwargs)
    elif isinstance(subject, Client):
        client = subject
    else:
        raise InvalidParameterError(
            f"{subject!r} is neither a `myllm.Client` nor the name of a model.", param="client"
        )
    if misplaced := sorted(((CLIENT_OPTIONS | _PLACE) - _ANEW) & given.keys()):
        raise InvalidParameterError(
            f"`{misplaced[0]}` is said when the client is made: `Client({misplaced[0]}=…)`.",
            param=misplaced[0],
        )
    options = {name: given.pop(name) for name in _ANEW & given.keys()}
    if client.__getstate__()["message_policy"] == "as_is":
        options.setdefault("message_policy", "auto")
    return client.with_options(**options)


def _new_client(model: str, given: dict[str, Any]) -> Client:
    options = {name: given.pop(name) for name in (CLIENT_OPTIONS | _PLACE) & given.keys()}
    base_url, url = options.pop("base_url", None), options.pop("url", None)
    port, api_key = options.pop("port", None), options.pop("api_key", None)
    if options.get("engine") is not None:
        refuse_places(base_url=base_url, url=url, port=port, api_key=api_key)
    elif base_url is not None and url is not None:
        raise InvalidParameterError("`url` and `base_url` are the same thing: give one of them.", param="url")
    else:
        where = url if base_url is None else base_url
        options["endpoints"] = resolve_endpoints(where, api_key, port=port)
    options.setdefault("message_policy", "auto")
    return Client(model=model, **options)


def _response_format(form: Any) -> Any:
    """Return a response format as AutoGen takes it, which would wrap OpenAI's "json_schema" into another."""
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return form
    schema = schema_in(form)
    if schema is None:
        raise InvalidParameterError(
            f"`response_format={short(form)}` has no schema.",
            param="response_format",
            hint="{'type': 'json_schema', 'json_schema': {'name': …, 'schema': …}}, or a pydantic class.",
        )
    return schema


def _fields(
    params: Mapping[str, Any], extra_body: Mapping[str, Any], named: Collection[str]
) -> dict[str, Any]:
    """Return parameters as an entry has them: `named` ones in AutoGen's own fields, where these hold them."""
    top: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in params.items():
        # AutoGen loses a 0 when it copies a configuration (`LLMConfigEntry.apply_application_config`), and
        # its temperature stops at 1.
        fits = name in named and value and not (name == "temperature" and value > 1)
        (top if fits else extra)[name] = value
    extra.update(extra_body)
    return {**top, "extra_body": extra} if extra else top


def _cannot_be_plain(why: str, param: str) -> InvalidParameterError:
    return InvalidParameterError(
        f"This client has no plain entry: {why}.",
        param=param,
        hint="Leave `plain` out: then the client itself answers.",
    )
