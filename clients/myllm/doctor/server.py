"""What answers over HTTP: its health, its kind and version, its models."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from .._version import __version__
from ..client import Client
from ..endpoints import Endpoint
from ..errors import AuthenticationError, MyLLMError, OverloadedError
from ..headers import merged
from ..wire import Reply, Send, ServerInfo, WireRequest
from .report import Finding, Status, failure


def get(client: Client, path: str) -> Reply:
    """Get a path of the client's first server and return the reply whatever its status, without retries.

    Raises:
        ConnectError, RequestTimeoutError: there is none.
    """
    endpoint: Endpoint = client._route.endpoints[0]
    key = {} if endpoint.api_key is None else {"Authorization": f"Bearer {endpoint.api_key}"}
    headers = merged({"User-Agent": f"myllm/{__version__}"}, key, client._route.headers)
    request = WireRequest(method="GET", path=path)
    send = Send(request=request, endpoint=endpoint, headers=headers, timeout=client.timeout)
    return client._transport.send(send)


def look_at_http(client: Client) -> Finding:
    """Ask `/health`: whether anything speaks HTTP there, and whether it is ready."""
    start = time.monotonic()
    try:
        reply = get(client, "/health")
    except MyLLMError as exc:
        return failure("http", "Connection", exc)
    seconds = time.monotonic() - start
    status: Status = "ok"
    summary, advice = "healthy", None
    server = reply.headers.get("server", "")
    if reply.status == 503:
        status, summary = "problem", "not ready (status 503)"
        advice = "It is loading its model, draining, or broken: wait, then look at its log."
    elif reply.status >= 500:
        status, summary = "warning", f"its health check fails (status {reply.status})"
        advice = "Look at the server's log."
    elif 300 <= reply.status < 400:
        status, summary = "problem", f"redirects to {reply.headers.get('location')!r}"
        advice = "Use that as the URL if you trust it: redirects are not followed, for the key's sake."
    elif reply.status in (401, 403):
        summary = f"answers (status {reply.status})"
    elif reply.status >= 400:
        summary = f"answers, and has no `/health` to ask (status {reply.status})"
    return Finding(
        check="http",
        section="Server",
        status=status,
        summary=summary + (f"; it is {server!r}" if server else ""),
        advice=advice,
        seconds=seconds,
        data={"status": reply.status, "server": server or None},
    )


def identity(client: Client) -> ServerInfo | MyLLMError:
    """Ask the client's server what it is."""
    (found,) = client.server_info().values()
    return found


def look_at_identity(client: Client, found: ServerInfo | MyLLMError) -> Iterator[Finding]:
    """Yield what the server told of itself, or why it did not."""
    if isinstance(found, AuthenticationError):
        yield _refused(client, found)
        return
    if isinstance(found, OverloadedError):
        yield failure(
            "kind", "Server", found, advice="It has no room, or is not ready: wait, and look again."
        )
        return
    if isinstance(found, MyLLMError):
        yield failure("kind", "Server", found)
        return
    yield Finding(
        check="kind",
        section="Server",
        status="ok",
        summary=_kind(found),
        advice=None
        if found.product or found.dialect != "openai"
        else "If it has a kind of its own, say so: `dialect=`.",
        data={
            "dialect": found.dialect,
            "product": found.product,
            "version": None if found.version is None else list(found.version),
            "features": sorted(found.features),
            "limits": dict(found.limits),
        },
    )
    yield _models(client, found)
    length = found.limits.get("max_model_len")
    yield Finding(
        check="context",
        section="Server",
        status="absent" if length is None else "ok",
        summary="the server does not tell its length" if length is None else f"{length} tokens",
        data={"max_model_len": length},
    )


def _kind(found: ServerInfo) -> str:
    if found.product:
        return f"{found.product}, spoken to as {found.dialect!r}"
    if found.dialect == "openai":
        return "of no known kind: spoken to as 'openai', with OpenAI's parameters and no others"
    return f"it does not say; spoken to as {found.dialect!r}"


def _refused(client: Client, error: AuthenticationError) -> Finding:
    if client._route.endpoints[0].api_key is None:
        summary, advice = (
            "it wants a key, and none was given",
            "Give its key as `api_key=`, or in `MYLLM_API_KEY`.",
        )
    elif error.status == 403:
        summary, advice = (
            "the key is known, and not allowed to do this",
            "Ask who runs the server for the right.",
        )
    else:
        summary, advice = (
            "the key is refused",
            "Is it this server's key? Servers say theirs at their start (`--api-key`).",
        )
    words = f" (status {error.status}{': ' if error.server_message else ''}{error.server_message or ''})"
    return Finding(
        check="auth",
        section="Server",
        status="problem",
        summary=summary + words,
        advice=advice,
        data={"status": error.status},
    )


def _models(client: Client, found: ServerInfo) -> Finding:
    wanted = client.model
    ids = [model.id for model in found.models]
    status: Status = "ok"
    summary, advice = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else ""), None
    if not ids:
        status, summary = "problem", "it lists none"
        advice = "Is this an LLM server? Ollama lists what was pulled."
        url = client._route.endpoints[0].url
        if path := urlsplit(url).path:
            root = url.removesuffix(path)
            advice = (
                f"Is {path!r} part of the server's address? Its root is what stands before `/v1`: try {root}."
            )
    elif wanted is not None and wanted not in ids:
        status, summary = "problem", f"{wanted!r} is not among {summary}"
        near = difflib.get_close_matches(wanted, ids, n=1)
        advice = f"Ask for {(near or ids)[0]!r}, or serve {wanted!r} under that name."
    elif wanted is None and len(ids) > 1:
        summary += f"; {ids[0]!r} is examined"
    return Finding(
        check="models", section="Server", status=status, summary=summary, advice=advice, data={"models": ids}
    )
