"""Our engine, by its public face."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.engine.worker import Side
from myllm_engine import Engine, EngineConfig, Request, SamplingParams, Structured


class MyLLM(Side):
    """`Engine`, stepped here, so that each token's time is known."""

    packages = ("myllm-suite", "torch", "transformers")

    def __init__(self, **config: Any) -> None:
        self._engine = Engine(EngineConfig(device="cpu", **config))

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None
    ) -> list[list[float]]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            structured=None if schema is None else Structured.json_schema(schema),
        )
        engine = self._engine
        requests = [Request(prompt_token_ids=prompt, params=params) for prompt in prompts]
        times: dict[str, list[float]] = {request.request_id: [] for request in requests}
        for request in requests:
            engine.add_request(request)
        while engine.has_unfinished():
            outputs = engine.step()
            now = time.perf_counter()
            for output in outputs:
                if output.error is not None:
                    raise output.error
                for completion in output.outputs:
                    times[output.request_id] += [now] * len(completion.token_ids)
        return list(times.values())

    def tokenize(self, text: str) -> list[int]:
        return self._engine.tokenizer.encode(text)
