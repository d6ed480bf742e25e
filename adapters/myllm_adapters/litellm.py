"""LiteLLM: the provider `myllm/…`.

    import litellm
    import myllm_adapters.litellm  # registers the provider

    litellm.completion(model="myllm/smollm2", messages=[{"role": "user", "content": "Hello!"}],
                       api_base="http://localhost:8000")

Works with `completion`, `text_completion`, `embedding`, their asynchronous twins, streams,
`batch_completion`, `Router`, fallbacks, caching and callbacks. Beside LiteLLM's own arguments every parameter
of `myllm.params.Parameters` is one (`top_k=…`, `min_p=…`, the constraints `json_schema=`, `regex=`,
`choice=`, `grammar=`), and an unknown name is refused. Each server is asked once what it is; `dialect="vllm"`
(or "tgi", …) says it. `ssl_verify` (False, or a CA bundle) defaults to the environment's `SSL_VERIFY`, then
`litellm.ssl_verify`. Retries are LiteLLM's (`num_retries=`), there are none underneath.

Where a call goes: to its `api_base`, else through the client of `register(client)`, else to
`litellm.api_base`, `MYLLM_BASE_URL` or `OPENAI_BASE_URL`; and where nothing names a server, the model is run
in this process (`pip install 'myllm-suite[engine]'`), loaded by its first call and shared by all others.
`api_key` defaults to `MYLLM_API_KEY`.

In the proxy's configuration:

    litellm_settings:
      custom_provider_map:
        - {"provider": "myllm", "custom_handler": myllm_adapters.litellm.handler}
"""

from __future__ import annotations

from ._extra import missing_extra

try:
    import litellm
    from litellm.types.utils import LlmProviders
    from litellm.utils import custom_llm_setup
except ImportError as exc:
    raise missing_extra(__name__, "litellm", exc) from exc

import myllm

from ._litellm.catalog import announce
from ._litellm.provider import MyLLMProvider

__all__ = ["PROVIDER", "MyLLMProvider", "handler", "register"]

PROVIDER = "myllm"
"""The prefix of the models that come here."""


def register(
    client: myllm.Client | myllm.AsyncClient | None = None, provider: str = PROVIDER
) -> MyLLMProvider:
    """Register a provider; importing this module has registered `myllm/…`. Harmless when repeated.

        register(myllm.Client(["http://a:8000", "http://b:8000"], policy="least_in_flight"), "house")
        litellm.completion(model="house/smollm2", messages=messages)

    Args:
        client: what calls without `api_base` go through, with its servers (or its engine), defaults, limits,
            cache and hooks, but without its retries and timeout, which are LiteLLM's. It stays yours to
            close. None: see the top of this module.
        provider: the prefix of its models. Registered again, it goes through the new client.

    Returns:
        The handler, for the `custom_handler` of a proxy's configuration.

    Raises:
        InvalidParameterError: no prefix can look like that, or it is LiteLLM's own or another handler's.
    """
    if client is None and provider == PROVIDER:
        made = handler
    else:
        made = MyLLMProvider(client, provider)
    entry = next((entry for entry in litellm.custom_provider_map if entry["provider"] == provider), None)
    _check(provider, None if entry is None else entry["custom_handler"])
    if entry is None:
        litellm.custom_provider_map.append({"provider": provider, "custom_handler": made})
    else:
        entry["custom_handler"] = made
    # LiteLLM does this in its first call; `get_llm_provider` and `Router` want to know the provider before.
    custom_llm_setup()  # type: ignore[no-untyped-call]
    announce(provider)
    # Else LiteLLM's cache takes calls for one that differ in nothing but `regex=`, `top_k=` and the like.
    litellm.enable_caching_on_provider_specific_optional_params = True
    return made


def _check(provider: str, holder: object) -> None:
    if not provider or "/" in provider or provider != provider.strip():
        raise myllm.InvalidParameterError(
            f"`provider={provider!r}` must be a name without a slash, which models begin with: {PROVIDER!r}.",
            param="provider",
        )
    if provider in {one.value for one in LlmProviders}:
        raise myllm.InvalidParameterError(
            f"`provider={provider!r}` is one of LiteLLM's own, which never come here: take another name.",
            param="provider",
        )
    if holder is not None and not isinstance(holder, MyLLMProvider):
        raise myllm.InvalidParameterError(
            f"`provider={provider!r}` is registered with {holder!r} already: take another name.",
            param="provider",
        )


handler = MyLLMProvider()
"""The handler of `myllm/…`; a proxy's configuration names it."""

register()
