"""Check AsyncEngine on the bundled model: streams, disconnects, limits, death."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig
from myllm_engine.errors import ContextLengthError, EngineDeadError, InvalidRequestError, QueueFullError
from myllm_engine.request import Request, SamplingParams


def make_request(engine: AsyncEngine, text: str, **fields) -> Request:
    fields.setdefault("temperature", 0.0)
    return Request(prompt_token_ids=engine.tokenizer.encode(text), params=SamplingParams(**fields))


async def idle(engine: AsyncEngine) -> None:
    for _ in range(400):
        stats = engine.stats()
        if stats.num_running == stats.num_waiting == 0 and stats.kv_pages_free == stats.kv_pages_total:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still busy: {engine.stats()}")


async def collect(engine: AsyncEngine, request: Request) -> tuple[str, list[int]]:
    text, tokens = "", []
    async for output in engine.submit(request):
        for item in output.outputs:
            text += item.text
            tokens += item.token_ids
    assert output.finished
    return text, tokens


def test_face(async_engine):
    assert async_engine.model_name == "SmolLM2-135M-Instruct"
    assert async_engine.max_model_len == 8192
    assert async_engine.vocab_size == 49152
    assert (async_engine.device, async_engine.dtype) == ("cpu", "float32")
    assert async_engine.error is None


async def test_a_request_knows_when_it_got_how_far(async_engine):
    request = make_request(async_engine, "A prompt of its own", max_tokens=4, ignore_eos=True)
    request = replace(request, cache_salt="nobody else's")
    began = time.monotonic()
    outputs = [output async for output in async_engine.submit(request)]
    timings = outputs[-1].timings
    assert all(output.timings is timings for output in outputs)
    assert began <= timings.queued <= timings.scheduled < timings.first_token < timings.last_token
    assert timings.last_token <= time.monotonic()


async def test_steps_are_counted(async_engine):
    def counted():
        steps = async_engine.steps
        return [
            steps.tokens.sum,
            *(sum(each.counts) for each in (steps.prefill_seconds, steps.decode_seconds)),
        ]

    request = make_request(async_engine, "A prompt of its own", max_tokens=4, ignore_eos=True)
    before = counted()
    await collect(async_engine, replace(request, cache_salt="of this test"))
    # One step reads the prompt, and three read the token before.
    gained = [after - earlier for after, earlier in zip(counted(), before, strict=True)]
    assert gained == [len(request.prompt_token_ids) + 3, 1, 3]


async def test_observers_come_and_go(async_engine):
    class Counting:
        def __init__(self):
            self.ids = []

        def accepted(self, request):
            self.ids.append(request.request_id)

        def delivered(self, outputs):
            pass

        def lost(self, request_ids):
            pass

    observer = Counting()
    async_engine.add_observer(observer)
    heard, unheard = (make_request(async_engine, "Hi", max_tokens=1) for _ in range(2))
    await collect(async_engine, heard)
    async_engine.remove_observer(observer)
    async_engine.remove_observer(observer)
    await collect(async_engine, unheard)
    assert observer.ids == [heard.request_id]


async def test_concurrent_streams_equal_single_ones(async_engine):
    texts = ["Once upon a time", "def f(x):", "😀😃", "The sea"]
    alone = [await collect(async_engine, make_request(async_engine, text, max_tokens=8)) for text in texts]
    together = await asyncio.gather(
        *[collect(async_engine, make_request(async_engine, text, max_tokens=8)) for text in texts]
    )
    assert together == alone
    for text, tokens in alone:
        assert async_engine.tokenizer.decode(tokens).startswith(text)
    await idle(async_engine)


async def test_leaving_a_stream_frees_its_pages(async_engine):
    stream = async_engine.submit(make_request(async_engine, "Count: 1 2 3", n=3, ignore_eos=True))
    async for _ in stream:
        break
    assert async_engine.stats().num_running > 0
    await stream.aclose()
    await idle(async_engine)


async def test_cancelling_a_reader_frees_its_pages(async_engine):
    task = asyncio.create_task(collect(async_engine, make_request(async_engine, "Go on", ignore_eos=True)))
    for _ in range(400):
        await asyncio.sleep(0.01)
        if async_engine.stats().num_running:
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(async_engine)


async def test_abort_ends_the_stream(async_engine):
    request = make_request(async_engine, "Go on", ignore_eos=True)
    reasons = []
    async for output in async_engine.submit(request):
        reasons.append(output.outputs[0].finish_reason)
        async_engine.abort(request.request_id)
    assert reasons[-1] == "abort"
    await idle(async_engine)


async def test_what_cannot_run_is_refused_before_it_starts(async_engine):
    too_long = make_request(async_engine, "x", max_tokens=9000)
    with pytest.raises(ContextLengthError):
        async_engine.validate(too_long)
    with pytest.raises(ContextLengthError):
        await anext(async_engine.submit(too_long))
    with pytest.raises(InvalidRequestError):
        await anext(async_engine.submit(Request(prompt_token_ids=[99_999])))
    assert async_engine.error is None
    assert async_engine.stats().num_running == 0


async def test_queue_limit_death_and_close(tiny_model, caplog):
    engine = AsyncEngine(
        EngineConfig(
            model=str(tiny_model("llama")), dtype="float32", device="cpu", max_num_seqs=2, max_queue=1
        )
    )
    tasks = [
        asyncio.create_task(collect(engine, make_request(engine, "x", ignore_eos=True, max_tokens=400)))
        for _ in range(3)
    ]
    await asyncio.sleep(0.05)
    with pytest.raises(QueueFullError, match="3 sequences run or wait, and no more than 3 may"):
        await collect(engine, make_request(engine, "x"))
    # More than may ever wait is the request's own fault, and no reason to come back later.
    with pytest.raises(InvalidRequestError, match=r"`n` \(4\) must not be above 3") as caught:
        await collect(engine, make_request(engine, "x", n=4))
    assert caught.value.param == "n"
    assert engine.error is None

    def die(*_: object) -> None:
        raise ZeroDivisionError("broken on purpose")

    engine._engine._runner.forward = die
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineDeadError)
        assert "ZeroDivisionError: broken on purpose" in str(result)
    assert isinstance(engine.error, ZeroDivisionError)
    with pytest.raises(EngineDeadError):
        await collect(engine, make_request(engine, "x"))
    assert "broken on purpose" in caplog.text
    engine.close()
    engine.close()
