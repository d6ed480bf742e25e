"""The examination: which check follows which."""

from __future__ import annotations

from collections.abc import Iterator

from ..client import Client
from ..errors import InvalidParameterError, MyLLMError
from .abilities import look_at_abilities
from .network import look_at_network
from .report import Finding, Report
from .server import identity, look_at_http, look_at_identity
from .settings import Sources, look_at_settings


def examine(client: Client, *, quick: bool = False, origin: Sources | None = None) -> Report:
    """Examine the client's server and return what was found.

    Args:
        client: of one server. Its timeouts hold for each probe, its default parameters don't.
        quick: stop at who the server is: no model is made to work.
        origin: where the URL and the key come from; by default, that they were given.

    Raises:
        InvalidParameterError: the client has several servers.
    """
    findings = tuple(examination(client, quick=quick, origin=origin))
    return Report(url=client._route.endpoints[0].url, findings=findings)


def examination(client: Client, *, quick: bool = False, origin: Sources | None = None) -> Iterator[Finding]:
    """Yield the findings of `examine`, as they come; what a problem makes pointless is left out."""
    if len(client._route.endpoints) != 1:
        raise InvalidParameterError("The client has several servers: examine one at a time.", param="client")
    (endpoint,) = client._route.endpoints
    if origin is None:
        key = "none" if endpoint.api_key is None else "argument"
        origin = Sources(given=endpoint.url, url="argument", key=key)
    bare = client.with_options(
        max_retries=0,
        cache=None,
        coalesce=False,
        hedge_after=None,
        message_policy="as_is",
        **dict.fromkeys(client.defaults),
    )
    yield from look_at_settings(endpoint, client._http, origin)
    for finding in look_at_network(endpoint, client._http, client.timeout.connect):
        yield finding
        if finding.status == "problem":
            return
    http = look_at_http(bare)
    yield http
    if http.status == "problem":
        return
    who = identity(bare)
    well = not isinstance(who, MyLLMError)
    for finding in look_at_identity(bare, who):
        yield finding
        well = well and finding.status != "problem"
    if well and not quick and not isinstance(who, MyLLMError):
        yield from look_at_abilities(bare, who)
