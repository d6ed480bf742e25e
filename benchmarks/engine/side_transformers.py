"""transformers: `generate` with a static batch, and its continuous batching.

https://huggingface.co/docs/transformers/main/en/continuous_batching
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

from benchmarks.engine.worker import Side


class _Clock(StoppingCriteria):
    """Notes the time of each step, and never stops anything."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generate(Side):
    """All prompts as one static batch: they are equally long, which is its best case."""

    packages = ("transformers", "torch")

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None
    ) -> list[list[float]]:
        ids = torch.tensor(prompts)
        clock = _Clock()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                stopping_criteria=[clock],
            )
        return [clock.times] * len(prompts)


class ContinuousBatching(Side):
    """A manager that stays; its own timestamps are taken.

    512 tokens a step are faster here than the 8,192 that it would choose itself.
    """

    packages = ("transformers", "torch")

    def __init__(self, model: str, threads: int, kv_tokens: int) -> None:
        torch.set_num_threads(threads)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        config = ContinuousBatchingConfig(max_batch_tokens=512)
        config.num_blocks = kv_tokens // config.page_size
        self._manager = loaded.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=config,
        )
        self._manager.start()

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None
    ) -> list[list[float]]:
        ids = self._manager.add_requests(prompts, max_new_tokens=new_tokens, record_timestamps=True)
        times: dict[str, list[float]] = {}
        while len(times) < len(ids):
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise RuntimeError("transformers' generation thread has ended")
            elif result.error is not None:
                raise RuntimeError(result.error)
            elif result.is_finished():
                times[result.request_id] = result.timestamps
        return [times[each] for each in ids]
