"""How a job's calls are made: one for each prompt, and without parameters that may be dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack, ExitStack
from contextvars import copy_context
from typing import TypeVar

from myllm import AsyncClient, Client, UnsupportedFeatureError

from .requests import Job
from .streams import AnyAsyncStream, AnyStream

T = TypeVar("T")

PROMPTS_AT_ONCE = 32
"""Prompts of one call that are on their way at the same time."""


def ask(job: Job, send: Callable[[], T]) -> T:
    """Return what `send` returns; under `drop_params` without what its server turns out to lack."""
    while True:
        try:
            return send()
        except UnsupportedFeatureError as exc:
            if not job.drop(exc):
                raise


async def aask(job: Job, send: Callable[[], Awaitable[T]]) -> T:
    """See `ask`."""
    while True:
        try:
            return await send()
        except UnsupportedFeatureError as exc:
            if not job.drop(exc):
                raise


def each_prompt(job: Job, send: Callable[[str], T]) -> list[T]:
    """Return what `send` returns for each prompt, in their order; after a failure nothing more is started."""
    if len(job.prompts) == 1:
        return [ask(job, lambda: send(job.prompts[0]))]

    def one(prompt: str) -> T:
        return ask(job, lambda: send(prompt))

    with ThreadPoolExecutor(min(len(job.prompts), PROMPTS_AT_ONCE)) as pool:
        calls = [pool.submit(copy_context().run, one, prompt) for prompt in job.prompts]
        wait(calls, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)  # what a thread has begun, it ends
    failed = [call for call in calls if not call.cancelled() and call.exception() is not None]
    return [call.result() for call in failed or calls]


async def aeach_prompt(job: Job, send: Callable[[str], Awaitable[T]]) -> list[T]:
    """See `each_prompt`; a failure cancels the others."""
    if len(job.prompts) == 1:
        return [await aask(job, lambda: send(job.prompts[0]))]
    turn = asyncio.Semaphore(PROMPTS_AT_ONCE)

    async def one(prompt: str) -> T:
        async with turn:
            return await aask(job, lambda: send(prompt))

    try:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(one(prompt)) for prompt in job.prompts]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [call.result() for call in calls]


def open_streams(job: Job, client: Client) -> list[AnyStream]:
    """Open the streams of a job; when one is refused, those that are open already are closed."""
    if job.kind == "chat":
        return [ask(job, lambda: client.stream_chat(job.messages, **job.arguments))]
    with ExitStack() as opened:
        streams: list[AnyStream] = each_prompt(
            job, lambda prompt: opened.enter_context(client.stream_complete(prompt, **job.arguments))
        )
        opened.pop_all()
    return streams


async def aopen_streams(job: Job, client: AsyncClient) -> list[AnyAsyncStream]:
    """See `open_streams`."""
    if job.kind == "chat":
        return [await aask(job, lambda: client.stream_chat(job.messages, **job.arguments))]
    async with AsyncExitStack() as opened:
        streams: list[AnyAsyncStream] = await aeach_prompt(
            job, lambda prompt: opened.enter_async_context(client.stream_complete(prompt, **job.arguments))
        )
        opened.pop_all()
    return streams
