"""Calls from request to answer, without I/O: generators that both drivers run.

A flow yields what it wants done (`Send`, `Sleep`, `Recall`, `Remember`), is sent the result or thrown the
error, and returns the answer. The idea is httpx's `Auth.auth_flow`: what is decided here and in `job.py` is
written once for sync and async.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import constraints
from .balancer import Lease
from .cache import cache_key, dump, is_cacheable, is_complete, load
from .dialects import get_dialect
from .errors import ConstraintNotEnforced, InvalidResponseError, MyLLMError
from .job import Done, Flow, Job
from .params import Parameters
from .reading import located, model_list
from .route import Route
from .stream import StreamParser
from .types import Answer, ChatCompletion, Completion, ModelInfo
from .wire import Call, Recall, Remember, ServerInfo, Timeout, WireRequest

_log = logging.getLogger("myllm")
_NO_PARAMETERS = Parameters()


def answer_flow(route: Route, call: Call) -> Flow[Any]:
    """Run a call that is answered whole, from the cache where that has the answer."""
    job = Job(route, call)
    answer: Answer | None = None
    try:
        job.watch.begin()
        key = yield from _key(job)
        answer = yield from _recalled(call, key)
        if answer is not None:
            return answer
        yield from job.keep_to_the_rate()
        done = yield from job.run()
        last = done.replies[-1]
        with located(done.endpoint, job.request_id, job.secrets):
            answer = done.dialect.answer(done.call, done.replies)
            if isinstance(answer, ChatCompletion | Completion):
                _check(done, answer)
        answer._endpoint = done.endpoint
        answer._request_id = last.headers.get("x-request-id") or job.request_id
        if key is not None and is_complete(answer):
            # What was sent may differ from what was looked up: the model of another server, other roles.
            yield Remember(key=cache_key(done.call), value=dump(answer))
        return answer
    except BaseException as exc:
        job.watch.end(answer=answer, error=exc)
        raise
    finally:
        job.watch.end(answer=answer)


@dataclass(slots=True, kw_only=True)
class Opened:
    """A stream that can be read: the parser, and what it reads.

    Attributes:
        body: what the server sends; None when the cache has the answer.
        stored: the answer that the cache has, or None.
        key: under which the cache wants the answer; None: it does not.
    """

    parser: StreamParser
    body: Any = None
    stored: Any = None
    key: str | None = None


def stream_flow(route: Route, call: Call) -> Flow[Opened]:
    """Open a stream: retried until its first byte, and never after it."""
    job = Job(route, call)
    try:
        job.watch.begin()
        key = yield from _key(job)
        stored = yield from _recalled(call, key)
        if stored is not None:
            reader = get_dialect("openai").reader(job.call)
            return Opened(
                stored=stored,
                parser=StreamParser(
                    job.call, reader, stored.endpoint or "", job.request_id, _ended(job), cached=True
                ),
            )
        yield from job.keep_to_the_rate()
        done = yield from job.run(stream=True)
        (reply,) = done.replies
        kind = reply.headers.get("content-type", "text/event-stream")
        parser = StreamParser(
            done.call,
            done.dialect.reader(done.call),
            done.endpoint,
            reply.headers.get("x-request-id") or job.request_id,
            _ended(job, done.lease),
            job.watch.first_chunk,
            server=done.server,
            secrets=job.secrets,
            lines="ndjson" in kind,
        )
        if "event-stream" not in kind and "ndjson" not in kind:
            reply.stream.abandon()
            error = InvalidResponseError(
                f"The answer is no event stream but {kind!r}.",
                endpoint=done.endpoint,
                request_id=job.request_id,
                hint="Can this server stream? A call without streaming may work.",
            )
            done.lease.failed(error)
            raise error
        if key is not None:
            key = cache_key(done.call)
        return Opened(body=reply.stream, parser=parser, key=key)
    except BaseException as exc:
        job.watch.end(error=exc)
        raise


def models_flow(route: Route, timeout: Timeout) -> Flow[list[ModelInfo]]:
    """Ask which models are served."""
    job = Job(route, Call(kind="chat", model="", params=_NO_PARAMETERS, timeout=timeout))
    request = WireRequest(method="GET", path="/v1/models")
    done = yield from job.run(lambda dialect, call, server: [request])
    return model_list(done.replies[-1], done.endpoint, job.request_id, job.secrets)


def server_flow(route: Route, timeout: Timeout) -> Flow[dict[str, ServerInfo | MyLLMError]]:
    """Ask every server what it is; a server that cannot say has its error instead."""
    found: dict[str, ServerInfo | MyLLMError] = {}
    for state in route.balancer.servers():
        job = Job(route, Call(kind="chat", model="", params=_NO_PARAMETERS, timeout=timeout))
        lease = route.balancer.lease(state)
        try:
            state.info = found[state.url] = yield from job.identify(lease)
            lease.succeeded()
        except MyLLMError as exc:
            job.account(lease, exc)
            found[state.url] = exc
        finally:
            lease.released()
    return found


def _check(done: Done, answer: ChatCompletion | Completion) -> None:
    """Check an answer against its constraint."""
    try:
        constraints.check(done.call, answer, done.server)
    except ConstraintNotEnforced:
        done.lease.server.info = None  # another version by now, perhaps, which spells constraints otherwise
        raise


def _key(job: Job) -> Flow[str | None]:
    """Return the key under which the cache has, or will have, the call's answer; None: it may not."""
    cache = job.route.cache
    if cache is None or not job.call.cache:
        return None
    call = job.with_roles(replace(job.call, model=(yield from job.model_name())))
    return cache_key(call) if is_cacheable(call, sampled=cache.sampled) else None


def _recalled(call: Call, key: str | None) -> Flow[Any]:
    """Return the answer that the cache has, or None."""
    stored = (yield Recall(key=key)) if key is not None else None
    if stored is None:
        return None
    assert isinstance(stored, bytes)
    try:
        return load(call.kind, stored)
    except ValueError as exc:
        _log.warning("%s It is asked for anew.", exc)
        return None


def _ended(job: Job, lease: Lease | None = None) -> Callable[[Answer | None, BaseException | None], None]:
    """Return what is to be called when a stream has ended: with its answer, an error, or neither (closed)."""

    def ended(answer: Answer | None, error: BaseException | None) -> None:
        if lease is not None and isinstance(error, MyLLMError):
            job.account(lease, error)
            if isinstance(error, ConstraintNotEnforced):
                lease.server.info = None  # see `_check`
        elif lease is not None:
            lease.released() if answer is None else lease.succeeded()
        job.watch.end(answer=answer, error=error)

    return ended
