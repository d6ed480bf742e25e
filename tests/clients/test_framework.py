"""The httpx client that frameworks are handed."""

from __future__ import annotations

import copy
import pickle
import uuid
from typing import Any

import httpx
import pytest

from myllm import AuthenticationError, ConnectError, HTTPOptions, MyLLMError, Timeout
from myllm.endpoints import Endpoint
from myllm.transport.framework import httpx_client


class TheirError(Exception):
    """A framework's exception."""


def theirs(error: MyLLMError, request: httpx.Request, response: httpx.Response | None) -> Exception | None:
    return TheirError(type(error), str(error), response)


def nothing(error: MyLLMError, request: httpx.Request, response: httpx.Response | None) -> None:
    """Leave the failure to the framework."""


def test_a_reply_comes_through_with_a_request_id(wire: Any) -> None:
    wire.answers({"a": 1})
    with httpx_client(Endpoint(wire.url, "key"), translate=theirs) as client:
        assert client.post(f"{wire.url}/v1/x", json={"b": 2}).json() == {"a": 1}
    assert wire.bodies == [{"b": 2}]
    assert uuid.UUID(wire.seen[0].headers["x-request-id"])
    assert "authorization" not in wire.seen[0].headers  # the framework shows the key


def test_failures_are_the_frameworks(wire: Any, free_port: int) -> None:
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "bad key"}}, 401)
    client = httpx_client(Endpoint(wire.url), translate=theirs)
    for stream in (False, True):
        with pytest.raises(TheirError) as caught:
            client.send(client.build_request("POST", f"{wire.url}/v1/x"), stream=stream)
        cls, words, response = caught.value.args
        assert cls is AuthenticationError
        assert f"POST {wire.url}/v1/x was answered with status 401" in words
        assert response.json() == {"error": {"message": "bad key"}}
    dead = f"http://127.0.0.1:{free_port}"
    with pytest.raises(TheirError, match="No server answers at") as caught:
        httpx_client(Endpoint(dead), translate=theirs).get(dead)
    assert caught.value.args[0] is ConnectError


def test_failures_can_be_left_as_they_are(wire: Any, free_port: int) -> None:
    wire.handler = lambda seen, reply: reply.json({}, 503)
    assert httpx_client(Endpoint(wire.url), translate=nothing).get(wire.url).status_code == 503
    dead = f"http://127.0.0.1:{free_port}"
    with pytest.raises(httpx.ConnectError):
        httpx_client(Endpoint(dead), translate=nothing).get(dead)


def test_a_stream_that_breaks(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        reply.start_stream()
        reply.piece("data: 1\n\n")
        reply.hang_up()

    wire.handler = handler
    client = httpx_client(Endpoint(wire.url), translate=theirs)
    with pytest.raises(TheirError, match="broke"), client.stream("GET", wire.url) as response:
        list(response.iter_bytes())


def test_the_connect_limit_stays_ours(black_hole: int) -> None:
    url = f"http://127.0.0.1:{black_hole}"
    client = httpx_client(Endpoint(url), translate=theirs, timeout=Timeout(connect=0.2))
    with pytest.raises(TheirError, match=r"within 0\.2 s"):
        client.get(url, timeout=60)


def test_a_copy_is_the_client_and_a_pickle_its_settings(wire: Any) -> None:
    wire.answers({"a": 1})
    client = httpx_client(Endpoint(wire.url), translate=theirs, options=HTTPOptions(auth=("u", "p")))
    assert copy.copy(client) is copy.deepcopy(client) is client
    again = pickle.loads(pickle.dumps(client))
    assert again.get(wire.url).json() == {"a": 1}
    assert wire.seen[0].headers["authorization"].startswith("Basic ")
    assert repr(again) == f"FrameworkClient('{wire.url}')"


def test_no_proxy_catches_this_machine(wire: Any, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    wire.answers({"a": 1})
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")
    assert httpx_client(Endpoint(wire.url), translate=theirs).get(wire.url).status_code == 200
