"""Check the engine thread and its streams with an engine that counts instead of computing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from myllm_engine.errors import EngineDeadError, InvalidRequestError
from myllm_engine.loop import EngineLoop, OutputStream
from myllm_engine.request import CompletionOutput, Request, RequestOutput, SamplingParams
from myllm_engine.sequence import PreparedRequest


class CountingEngine:
    """Give each request its numbers 0, 1, 2 ... up to `max_tokens`, one a step."""

    def __init__(self) -> None:
        self.requests: dict[str, tuple[Request, int]] = {}
        self.aborted: list[str] = []
        self.steps = 0
        self.fail = False
        self.pause = threading.Event()
        self.pause.set()

    def add_request(self, prepared: PreparedRequest) -> None:
        request = prepared.request
        if request.request_id == "bad":
            raise InvalidRequestError("bad request")
        self.requests[request.request_id] = (request, 0)

    def abort(self, request_id: str) -> RequestOutput | None:
        if self.requests.pop(request_id, None) is None:
            return None
        self.aborted.append(request_id)
        return RequestOutput(request_id, [1], [CompletionOutput(0, finish_reason="abort")], finished=True)

    def step(self) -> list[RequestOutput]:
        self.pause.wait()
        self.steps += 1
        if self.fail:
            raise MemoryError("no more")
        outputs = []
        for name, (request, count) in list(self.requests.items()):
            finished = count + 1 == request.params.max_tokens
            new = CompletionOutput(0, f"{count} ", [count], finish_reason="length" if finished else None)
            outputs.append(RequestOutput(name, [1], [new], finished))
            self.requests[name] = (request, count + 1)
            if finished:
                del self.requests[name]
        return outputs

    def has_unfinished(self) -> bool:
        return bool(self.requests)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def loop(engine: CountingEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    yield loop
    engine.pause.set()
    loop.close()


def open_stream(loop: EngineLoop, name: str, max_tokens: int = 5) -> OutputStream:
    request = Request(prompt_token_ids=[1], params=SamplingParams(max_tokens=max_tokens), request_id=name)
    stream = OutputStream(request, asyncio.get_running_loop())
    loop.open([PreparedRequest(request)], [stream])
    return stream


async def read(stream: OutputStream) -> list[int]:
    tokens: list[int] = []
    while not stream.finished:
        output = await asyncio.wait_for(stream.get(), 10)
        tokens += output.outputs[0].token_ids
    return tokens


async def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


async def test_every_reader_gets_everything(loop):
    streams = [open_stream(loop, str(index), max_tokens=50) for index in range(20)]
    assert await asyncio.gather(*map(read, streams)) == [list(range(50))] * 20
    assert loop.num_sequences == 0


async def test_a_slow_reader_gets_joined_outputs(loop, engine):
    stream = open_stream(loop, "slow", max_tokens=1000)
    await until(lambda: not engine.requests and engine.steps >= 1000)
    await asyncio.sleep(0.05)
    output = await stream.get()
    assert output.outputs[0].token_ids == list(range(1000))
    assert output.outputs[0].text == "".join(f"{number} " for number in range(1000))
    assert output.finished
    assert stream.finished


def test_two_event_loops_are_served_at_once(loop):
    results: dict[int, list] = {}

    def serve(number: int) -> None:
        async def main() -> list:
            return await asyncio.gather(*[read(open_stream(loop, f"{number}-{i}", 200)) for i in range(5)])

        results[number] = asyncio.run(main())

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {0: [list(range(200))] * 5, 1: [list(range(200))] * 5}


async def test_each_event_loop_is_woken_once_a_step(loop, engine, monkeypatch):
    calls = []
    here = asyncio.get_running_loop()
    original = here.call_soon_threadsafe
    monkeypatch.setattr(
        here, "call_soon_threadsafe", lambda *args, **kw: (calls.append(1), original(*args, **kw))[1]
    )
    engine.pause.clear()
    streams = [open_stream(loop, str(index), max_tokens=10) for index in range(8)]
    engine.pause.set()
    await asyncio.gather(*map(read, streams))
    assert len(calls) <= engine.steps


async def test_abort_with_and_without_a_last_output(loop, engine):
    engine.pause.clear()
    kept, left = open_stream(loop, "kept", 10_000_000), open_stream(loop, "left", 10_000_000)
    loop.abort("kept", deliver=True)
    loop.abort("left", deliver=False)
    loop.abort("nobody", deliver=True)
    engine.pause.set()
    while not kept.finished:
        output = await asyncio.wait_for(kept.get(), 10)
    assert output.outputs[0].finish_reason == "abort"
    await until(lambda: sorted(engine.aborted) == ["kept", "left"])
    assert loop.num_sequences == 0
    assert not left.finished


async def test_an_id_in_flight_is_refused(loop, engine):
    engine.pause.clear()
    open_stream(loop, "a")
    with pytest.raises(InvalidRequestError, match="'a' is in flight"):
        open_stream(loop, "a")


async def test_a_refused_request_fails_alone(loop):
    good, bad = open_stream(loop, "good", 20), open_stream(loop, "bad")
    with pytest.raises(InvalidRequestError, match="bad request"):
        await asyncio.wait_for(bad.get(), 10)
    assert bad.finished
    assert await read(good) == list(range(20))
    assert loop.error is None


async def test_a_dying_step_fails_all_and_is_remembered(loop, engine, caplog):
    engine.pause.clear()
    streams = [open_stream(loop, str(index), max_tokens=10**9) for index in range(3)]
    engine.fail = True
    engine.pause.set()
    for stream in streams:
        with pytest.raises(EngineDeadError, match="MemoryError: no more") as caught:
            while True:
                await asyncio.wait_for(stream.get(), 10)
        assert isinstance(caught.value.__cause__, MemoryError)
    assert isinstance(loop.error, MemoryError)
    with pytest.raises(EngineDeadError, match="no more"):
        open_stream(loop, "later")
    assert "step loop died" in caplog.text
    loop.close()


async def test_close_fails_what_is_unfinished_and_may_be_repeated(engine):
    loop = EngineLoop(engine)
    stream = open_stream(loop, "a", max_tokens=10**9)
    await asyncio.wait_for(stream.get(), 10)
    await asyncio.to_thread(loop.close)
    loop.close()
    with pytest.raises(EngineDeadError, match="closed"):
        while True:
            await asyncio.wait_for(stream.get(), 10)
    assert loop.error is None
    with pytest.raises(EngineDeadError, match="closed"):
        open_stream(loop, "b")


async def test_calls_run_between_steps_in_the_engine_s_thread(loop, engine):
    stream = open_stream(loop, "a", max_tokens=50)
    seen = []

    def refuse() -> None:
        raise InvalidRequestError("not so")

    await asyncio.to_thread(loop.call, lambda: seen.append(threading.current_thread().name))
    with pytest.raises(InvalidRequestError, match="not so"):
        await asyncio.to_thread(loop.call, refuse)
    assert seen == ["myllm-engine"]
    assert await read(stream) == list(range(50))
    assert loop.error is None


async def test_calls_that_are_left_behind_fail(loop, engine):
    stream = open_stream(loop, "a", max_tokens=10**9)
    await stream.get()
    engine.pause.clear()
    await asyncio.sleep(0.05)  # it is in its step now
    seen: list[str] = []
    waiting = asyncio.create_task(asyncio.to_thread(loop.call, lambda: seen.append("ran")))
    await until(lambda: len(loop._calls) == 1)
    engine.fail = True
    engine.pause.set()
    with pytest.raises(EngineDeadError, match="MemoryError: no more"):
        await waiting
    with pytest.raises(EngineDeadError):
        loop.call(lambda: None)
    assert not seen


async def test_a_command_that_breaks_ends_the_engine(loop):
    def broken() -> None:
        raise ZeroDivisionError("broken on purpose")

    with pytest.raises(EngineDeadError, match="ZeroDivisionError: broken on purpose"):
        await asyncio.to_thread(loop.call, broken)
    assert isinstance(loop.error, ZeroDivisionError)


def test_a_reader_whose_event_loop_is_gone_is_aborted(loop, engine):
    async def leave() -> None:
        open_stream(loop, "gone", max_tokens=10**9)

    engine.pause.clear()
    asyncio.run(leave())
    engine.pause.set()
    for _ in range(1000):
        if engine.aborted == ["gone"]:
            break
        time.sleep(0.005)
    assert engine.aborted == ["gone"]


def test_an_idle_thread_sleeps(loop, engine):
    time.sleep(0.05)
    before, start = time.process_time(), engine.steps
    time.sleep(0.3)
    assert engine.steps == start
    assert time.process_time() - before < 0.1


async def test_an_id_can_be_used_again_as_soon_as_its_reader_has_left(loop, engine):
    open_stream(loop, "same", max_tokens=1000)
    await until(lambda: engine.steps > 3)
    engine.pause.clear()  # a step of the old request is on its way
    await asyncio.sleep(0.05)
    loop.abort("same", deliver=False)
    again = open_stream(loop, "same", max_tokens=3)
    engine.pause.set()
    assert await read(again) == [0, 1, 2]
    assert engine.aborted == ["same"]


async def test_an_id_is_used_once_among_requests_that_come_together(loop, engine):
    request = PreparedRequest(Request(prompt_token_ids=[1], request_id="twin"))
    streams = [OutputStream(request.request, asyncio.get_running_loop()) for _ in range(2)]
    with pytest.raises(InvalidRequestError, match="twin"):
        loop.open([request, request], streams)
    assert loop.num_sequences == 0


class Notes:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def accepted(self, request: Request) -> None:
        self.events.append(("accepted", request.request_id))

    def delivered(self, outputs: Sequence[RequestOutput]) -> None:
        self.events += [("finished", output.request_id) for output in outputs if output.finished]

    def lost(self, request_ids: Sequence[str]) -> None:
        self.events += [("lost", request_id) for request_id in request_ids]


async def test_observers_hear_of_every_request_before_its_reader(loop, engine):
    notes = Notes()
    loop.observers = (notes,)
    assert await read(open_stream(loop, "whole")) == list(range(5))
    assert notes.events == [("accepted", "whole"), ("finished", "whole")]
    notes.events.clear()

    with pytest.raises(InvalidRequestError, match="bad request"):
        await read(open_stream(loop, "bad"))
    assert notes.events == [("accepted", "bad"), ("lost", "bad")]
    notes.events.clear()

    engine.pause.clear()
    open_stream(loop, "left", max_tokens=1000)
    with pytest.raises(InvalidRequestError, match="in flight already"):
        open_stream(loop, "left")
    loop.abort("left", deliver=False)
    engine.pause.set()
    await until(lambda: notes.events == [("accepted", "left"), ("finished", "left")])
    notes.events.clear()

    engine.fail = True
    with pytest.raises(EngineDeadError):
        await read(open_stream(loop, "unlucky"))
    assert notes.events == [("accepted", "unlucky"), ("lost", "unlucky")]


async def test_an_observer_that_fails_harms_nobody(loop, caplog):
    class Broken(Notes):
        def delivered(self, outputs: Sequence[RequestOutput]) -> None:
            raise ZeroDivisionError

    notes = Notes()
    loop.observers = (Broken(), notes)
    assert await read(open_stream(loop, "a")) == list(range(5))
    assert ("finished", "a") in notes.events
    assert "An observer of the engine failed" in caplog.text
