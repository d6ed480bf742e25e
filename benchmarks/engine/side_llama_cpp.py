"""llama.cpp, by the C interface that `llama-cpp-python` binds.

That package has no server that batches; its `llama_decode` takes many sequences at once, and the loop here is
that of llama.cpp's own tools/batched-bench, plus an argmax: less work than its server does.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import llama_cpp as c
import numpy as np

from benchmarks.engine.worker import Side

_WARNING, _ERROR = 3, 4  # of ggml_log_level
_BATCH = 2048  # tokens in one call, as in llama.cpp's server


@c.llama_log_callback
def _log(level: int, text: bytes, _: Any) -> None:
    if level in (_WARNING, _ERROR):
        print(text.decode(errors="replace"), end="", file=sys.stderr)


class LlamaCpp(Side):
    """One context for each shape of batch, with a KV cache for each sequence, which is the faster way."""

    packages = ("llama-cpp-python",)

    def __init__(self, model: str, threads: int) -> None:
        c.llama_log_set(_log, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {model}")
        self._vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self._threads = threads
        self._context: Any = None
        self._batch = c.llama_batch_init(_BATCH, 0, 1)

    def prepare(self, requests: int, tokens: int) -> None:
        """Make a context; the old one would hold back memory and cells."""
        if self._context is not None:
            c.llama_free(self._context)
        params = c.llama_context_default_params()
        params.n_seq_max = requests
        params.n_ctx = requests * -(-tokens // 256) * 256  # it pads to 256 itself
        params.n_batch = _BATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False
        params.no_perf = True
        self._context = c.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context for {requests} × {tokens} tokens")

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None
    ) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in prompts]
        tokens = [0] * len(prompts)

        def decode(rows: list[tuple[int, int, int, bool]]) -> None:
            """Run rows of (token, position, sequence, wants logits); take the likeliest next tokens."""
            batch = self._batch
            batch.n_tokens = len(rows)
            for place, (token, position, sequence, wanted) in enumerate(rows):
                batch.token[place] = token
                batch.pos[place] = position
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = wanted
            if status := c.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode failed with {status}")
            for place, (_, _, sequence, wanted) in enumerate(rows):
                if wanted:
                    tokens[sequence] = self._argmax(place)
                    times[sequence].append(time.perf_counter())

        rows: list[tuple[int, int, int, bool]] = []
        for sequence, prompt in enumerate(prompts):
            if rows and len(rows) + len(prompt) > _BATCH:
                decode(rows)
                rows = []
            for position, token in enumerate(prompt):
                if len(rows) == _BATCH:  # a prompt longer than a batch
                    decode(rows)
                    rows = []
                rows.append((token, position, sequence, position == len(prompt) - 1))
        decode(rows)
        for step in range(new_tokens - 1):
            decode(
                [
                    (tokens[sequence], len(prompt) + step, sequence, True)
                    for sequence, prompt in enumerate(prompts)
                ]
            )
        return times

    def _argmax(self, place: int) -> int:
        logits = c.llama_get_logits_ith(self._context, place)
        address = ctypes.addressof(logits.contents)
        row = np.ctypeslib.as_array((ctypes.c_float * self._vocabulary).from_address(address))
        return int(row.argmax())
