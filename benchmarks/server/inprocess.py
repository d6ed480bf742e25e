"""Our engine under the same load without HTTP: what the server's share of the time is reckoned from.

python -m benchmarks.server.inprocess
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvloop

from benchmarks._process import Figures, obey
from benchmarks.server.load import Answer, drive
from myllm_engine import AsyncEngine, EngineConfig, Request, SamplingParams


class InProcess:
    """Runs the engine; each method is a command and returns figures."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._engine: AsyncEngine

    def load(self, **config: Any) -> Figures:
        """Load the model."""
        self._engine = AsyncEngine(EngineConfig(device="cpu", **config))
        return {}

    def drive(self, streams: int, prompts: list[str], new_tokens: int) -> Figures:
        """Answer the prompts, `streams` at once."""
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)

        async def answer(token_ids: list[int]) -> Answer:
            answer = Answer(time.perf_counter())
            async for output in self._engine.submit(Request(prompt_token_ids=token_ids, params=params)):
                answer.last = time.perf_counter()
                answer.first = answer.first or answer.last
                answer.tokens += len(output.outputs[0].token_ids)
            return answer

        encoded = [self._engine.tokenizer.encode(prompt) for prompt in prompts]
        return self._runner.run(drive([answer] * streams, encoded, new_tokens))


def main() -> None:
    """Obey until the standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        obey(lambda: InProcess(runner))


if __name__ == "__main__":
    main()
