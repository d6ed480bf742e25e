"""The clients under the provider: which one a call goes through, made once and kept."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import litellm
from litellm.llms.custom_httpx.http_handler import get_ssl_verify

import myllm
from myllm import AsyncClient, Client
from myllm.base import BaseClient
from myllm.endpoints import Endpoint, is_named, resolve_endpoints
from myllm.engines import URL as ENGINE_URL
from myllm.engines import engine_endpoint


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes.

    Attributes:
        endpoints: the server; empty: the model is run in this process.
        model: which model that is then.
        dialect, verify: as `myllm.Client` and `myllm.HTTPOptions` take them.
    """

    endpoints: tuple[Endpoint, ...]
    model: str
    dialect: str
    verify: bool | str


class Connections:
    """The clients of a registered provider: the one it was registered with, or one for each place."""

    def __init__(self, client: BaseClient | None) -> None:
        self._sync: Client | None = None
        self._async: AsyncClient | None = None
        if client is None:
            return
        if not isinstance(client, Client | AsyncClient):
            raise myllm.InvalidParameterError(
                f"`client={client!r}` must be a `myllm.Client` or a `myllm.AsyncClient`.", param="client"
            )
        # LiteLLM retries; going on to the next server of several, when one is dead, is no retry.
        calm = client.with_options(max_retries=0)
        # The same settings; each kind of client has connections of its own.
        self._sync = calm if isinstance(calm, Client) else Client(**calm.__getstate__())
        self._async = calm if isinstance(calm, AsyncClient) else AsyncClient(**calm.__getstate__())

    def place(
        self, model: str, api_base: str | None, api_key: str | None, dialect: str | None, ssl_verify: Any
    ) -> Place | None:
        """Return where a call goes; None: through the client that the provider was registered with.

        That is `api_base`, else the registered client, else `litellm.api_base`, `MYLLM_BASE_URL` or
        `OPENAI_BASE_URL`, else the model itself, in this process.

        Raises:
            InvalidParameterError: an argument is no address, key or certificate, or says nothing here.
        """
        if self._sync is None or api_base:
            environment = tuple((name, os.environ.get(name, "")) for name in _VARIABLES)
            endpoints = _servers(api_base or litellm.api_base or None, api_key or None, environment)
            has_certificate = any(endpoint.url.startswith("https:") for endpoint in endpoints)
            verify = _verify(ssl_verify) if has_certificate else True
            return Place(endpoints, model, dialect or "auto", verify)
        for name, value in (("api_key", api_key), ("dialect", dialect), ("ssl_verify", ssl_verify)):
            if value is not None:
                raise myllm.InvalidParameterError(
                    f"`{name}` goes with `api_base`: this provider was registered with a client, which knows "
                    "its own server.",
                    param=name,
                )
        return None

    def url(self, place: Place | None) -> str:
        """Return a place's address, for logs."""
        if place is None:
            assert self._sync is not None
            return self._sync.endpoints()[0].url
        return place.endpoints[0].url if place.endpoints else ENGINE_URL

    def sync(self, place: Place | None) -> Client:
        """Return the client for a place."""
        if place is None:
            assert self._sync is not None
            return self._sync
        return _client(place.endpoints or _engine(place.model), place.dialect, place.verify)

    async def asynchronous(self, place: Place | None) -> AsyncClient:
        """Return the client for a place; loading a model does not hold up the event loop."""
        if place is None:
            assert self._async is not None
            return self._async
        endpoints = place.endpoints or _engines.get(place.model)
        if endpoints is None:
            endpoints = await asyncio.to_thread(_engine, place.model)
        return _async_client(endpoints, place.dialect, place.verify)


_VARIABLES = ("MYLLM_BASE_URL", "OPENAI_BASE_URL", "MYLLM_API_KEY", "OPENAI_API_KEY")


@lru_cache(maxsize=256)
def _servers(
    api_base: str | None, api_key: str | None, environment: tuple[tuple[str, str], ...]
) -> tuple[Endpoint, ...]:
    """Return the server that a call and the environment name; empty when neither names one."""
    environ = dict(environment)
    return resolve_endpoints(api_base, api_key, environ) if is_named(api_base, environ) else ()


_engines: dict[str, tuple[Endpoint]] = {}


def _engine(model: str) -> tuple[Endpoint]:
    if model not in _engines:
        try:
            _engines[model] = (engine_endpoint(model),)
        except myllm.MissingExtraError as exc:
            raise myllm.MissingExtraError(
                f"Neither `api_base` nor `MYLLM_BASE_URL` names a server, so {model!r} would be run in this "
                f"process, but: {exc.message}",
                hint=exc.hint,
            ) from exc
    return _engines[model]


@lru_cache(maxsize=256)
def _client(endpoints: tuple[Endpoint, ...], dialect: str, verify: bool | str) -> Client:
    return Client(endpoints=endpoints, dialect=dialect, max_retries=0, http=myllm.HTTPOptions(verify=verify))


@lru_cache(maxsize=256)
def _async_client(endpoints: tuple[Endpoint, ...], dialect: str, verify: bool | str) -> AsyncClient:
    return AsyncClient(
        endpoints=endpoints, dialect=dialect, max_retries=0, http=myllm.HTTPOptions(verify=verify)
    )


def _verify(of_call: Any) -> bool | str:
    """Return whether to trust any certificate (False), the usual ones (True), or those of a bundle (a path).

    As LiteLLM's own providers read it: the call's `ssl_verify`, `SSL_VERIFY`, `litellm.ssl_verify`.
    """
    verify: Any = get_ssl_verify(of_call)
    if not isinstance(verify, bool | str):
        raise myllm.InvalidParameterError(
            f"`ssl_verify={verify!r}` must be True, False or the path of a CA bundle.", param="ssl_verify"
        )
    return True if verify == "" else verify  # an empty `SSL_VERIFY` says nothing
