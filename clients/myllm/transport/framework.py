"""httpx clients for frameworks that bring an API client of their own: our rules under their requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from ..diagnosis import error_from_reply
from ..dialects import get_dialect
from ..endpoints import Endpoint
from ..errors import MyLLMError
from ..wire import Reply, Send, Timeout, WireRequest, new_request_id
from .options import HTTPOptions
from .pool import PoolTransport

Translate = Callable[[MyLLMError, httpx.Request, httpx.Response | None], Exception | None]
"""From our error (and the request, and the reply if there was one) to the exception that a framework
understands; None leaves the failure to the framework, for example to be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What a `FrameworkClient` is made of; `httpx_client` explains."""

    endpoint: Endpoint
    options: HTTPOptions
    timeout: Timeout
    translate: Translate


class FrameworkClient(httpx.Client):
    """An `httpx.Client` for a framework that brings an API client of its own; see `httpx_client`.

    Frameworks deep-copy their configuration: a copy is the client itself, a pickle is its settings.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        limits = settings.timeout
        bare = replace(settings.endpoint, api_key=None)  # the framework sends the key
        super().__init__(
            timeout=httpx.Timeout(limits.first_byte, connect=limits.connect),
            transport=PoolTransport([bare], breaker=None, http=settings.options, timeout=limits),
            trust_env=False,
        )

    def send(self, request: httpx.Request, *, stream: bool = False, **kwargs: Any) -> httpx.Response:
        """Send with our limits and an `X-Request-Id`; failures raise what `translate` returns."""
        request.headers.setdefault("X-Request-Id", new_request_id())
        try:
            response = super().send(request, stream=stream, **kwargs)
            if response.status_code >= 400:
                response.read()
        except httpx.HTTPError as exc:
            raise self._translated(exc, request) from exc
        if response.status_code >= 400:
            reply = Reply(status=response.status_code, headers=response.headers, body=response.content)
            refusal = error_from_reply(
                self._action(request), reply, get_dialect("openai"), request.headers["X-Request-Id"]
            )
            if (error := self._settings.translate(refusal, request, response)) is not None:
                raise error from refusal
        elif stream:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _TranslatedStream(response.stream, self, request)
        return response

    def _action(self, request: httpx.Request) -> Send:
        endpoint = self._settings.endpoint
        path = str(request.url).removeprefix(endpoint.url)
        return Send(
            request=WireRequest(method=request.method, path=path),
            endpoint=endpoint,
            headers=request.headers,
            timeout=self._settings.timeout,
        )

    def _translated(self, exc: httpx.HTTPError, request: httpx.Request) -> Exception:
        """Return what the framework is to see for one of httpx's errors, which has ours as its cause."""
        cause = exc.__cause__
        error = self._settings.translate(cause, request, None) if isinstance(cause, MyLLMError) else None
        return exc if error is None else error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.endpoint.url!r})"

    def __copy__(self) -> FrameworkClient:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrameworkClient:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._settings,)


class _TranslatedStream(httpx.SyncByteStream):
    """A reply's open body whose breaking off is told like every other failure."""

    def __init__(self, body: httpx.SyncByteStream, client: FrameworkClient, request: httpx.Request) -> None:
        self._body = body
        self._client = client
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except httpx.HTTPError as exc:
            raise self._client._translated(exc, self._request) from exc

    def close(self) -> None:
        self._body.close()


def httpx_client(
    endpoint: Endpoint,
    *,
    translate: Translate,
    options: HTTPOptions | None = None,
    timeout: Timeout | None = None,
) -> FrameworkClient:
    """Make an `httpx.Client` that reaches one server by this SDK's rules, for a framework's own API client.

    The rules: no proxy from the environment for this machine, no redirects, a short connect limit whatever
    the framework's own, silence bounded by `timeout`, and failures that say which server and what to do.

    Args:
        endpoint: the server. Its key is not sent: the framework does that.
        translate: makes the framework's exception out of ours.
        options: certificates, proxy and basic authentication.
        timeout: limits for connecting and for silence; `total` is not looked at.
    """
    return FrameworkClient(
        ClientSettings(
            endpoint=endpoint,
            options=options or HTTPOptions(),
            timeout=timeout or Timeout(),
            translate=translate,
        )
    )
