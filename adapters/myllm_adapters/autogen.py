"""AutoGen (the `autogen` with `config_list`): your own server as an entry of the LLM configuration.

    from autogen import ConversableAgent
    from myllm import Client
    from myllm_adapters.autogen import llm_config

    client = Client("http://localhost:8000", model="smollm2")
    assistant = ConversableAgent("agent", llm_config=llm_config(client, temperature=0))

An entry comes in two forms. One is served by the client: its parameters are checked, its message policy makes
conversations fit for templates that are strict about roles, and its retries, cache, hooks and several servers
hold; nothing is registered with an agent, and it survives `register_function` and deep copies. The other one,
`config_list(client, plain=True)`, is a dict as AutoGen's documentation has them, which JSON can hold:

    {"model": "smollm2", "base_url": "http://localhost:8000/v1", "api_key": "EMPTY", "price": [0, 0]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._extra import missing_extra

try:
    import httpx
    from autogen import LLMConfig
    from autogen.oai.client import OpenAILLMConfigEntry
    from pydantic import field_serializer

    from ._autogen.settings import Subject, read_settings
except ImportError as exc:
    raise missing_extra(__name__, "autogen", exc) from exc

# What AutoGen takes for the whole configuration, and not for an entry.
_WHOLE = frozenset(
    {"cache_seed", "routing_method", "check_every_ms", "allow_format_str_template", "tools", "functions"}
)


class MyLLMConfigEntry(OpenAILLMConfigEntry):
    """An entry of an AutoGen configuration whose requests a client answers.

    It is an entry of AutoGen's type "openai" with an HTTP client of ours. Where the client's servers fail or
    refuse, AutoGen goes on to the configuration's next entry; after the last one the error says which server
    it was and what to do.

    Args:
        client: a `myllm.Client`, whose model and parameters the entry takes over; a client without a model
            asks which one is served. Or one of DSPy's old clients (`HFClientVLLM`, …). Or a model's name, for
            a client to be made of the arguments of `myllm.Client`, and `url` (another name of `base_url`) and
            `port`.
        price: dollars for 1000 prompt tokens and for 1000 completion tokens.
        **settings: parameters (`temperature=…`, `top_k=…`: `myllm.params.Parameters`), which go before the
            client's own; `timeout`, `max_retries`, `hedge_after`, `coalesce`, `cache` and `message_policy` in
            place of the client's; `extra_body` for fields to be sent as they are; and AutoGen's own (`tags`,
            `stream`, `response_format`, `extra_headers`, …). Where the client's message policy is "as_is",
            the entry's is "auto" unless it is said here.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        MyLLMError: the server could not be asked for its model.
    """

    def __init__(self, client: Subject, *, price: Sequence[float] = (0, 0), **settings: Any) -> None:
        parts = read_settings(client, settings)
        super().__init__(model=parts.model, price=list(price), **parts.served())

    @field_serializer("http_client", when_used="json")
    def _no_client_in_json(self, client: httpx.Client | None) -> None:
        """Leave sockets out of JSON."""


def config_list(
    client: Subject, *, plain: bool = False, price: Sequence[float] = (0, 0), **settings: Any
) -> list[Any]:
    """Return the entries of an AutoGen configuration.

    Args:
        client, price, **settings: see `MyLLMConfigEntry`.
        plain: False for one entry that the client answers, whatever the number of its servers. True for one
            dict a server, which AutoGen sends to by itself: they hold the servers' keys and the parameters,
            and nothing else of the client (no message policy, retries or cache).

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        UnsupportedFeatureError: a plain entry cannot say this to this kind of server.
    """
    if not plain:
        return [MyLLMConfigEntry(client, price=price, **settings)]
    return [{**entry, "price": list(price)} for entry in read_settings(client, settings).plain()]


def llm_config(client: Subject, *, plain: bool = False, **settings: Any) -> LLMConfig:
    """Return what AutoGen's agents take as `llm_config`.

    Args:
        client, plain, **settings: see `config_list`; also what AutoGen takes for the whole configuration:
            `cache_seed` (without it AutoGen caches nothing), `routing_method`, `tools`, `functions`,
            `check_every_ms` and `allow_format_str_template`.

    Raises:
        UnknownParameterError, InvalidParameterError, UnsupportedFeatureError: see `config_list`.
    """
    whole = {name: settings.pop(name) for name in _WHOLE & settings.keys()}
    return LLMConfig(*config_list(client, plain=plain, **settings), **whole)
