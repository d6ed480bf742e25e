"""Run the model over batches."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .attention import make_backend
from .attention.backend import AttentionBackend
from .attention.choose import AttentionNeeds
from .attention.probe import ProbeAttention
from .batch import Batch
from .config import EngineConfig
from .context import forward_context
from .errors import ModelLoadError
from .graphs import DecodeGraphs, reserve_bytes
from .kv_cache import KVCache, PagePool, page_bytes
from .memory import num_pages
from .models.load import LoadedModel
from .models.lora import LoraPlan
from .models.verify import pages_needed, verify
from .models.vision import VISION_FAMILIES, image_features, try_vision

logger = logging.getLogger(__name__)

_CPU_PROBE_TOKENS = 16


@contextmanager
def _last_hidden_state(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Gather what the model below its head returns: `[T, hidden_size]`, one for each call in the block."""
    seen: list[torch.Tensor] = []
    handle = model.base_model.register_forward_hook(lambda _, __, output: seen.append(output[0][0]))
    try:
        yield seen
    finally:
        handle.remove()


class ModelRunner:
    """Own the model, the KV cache and the attention backend.

    Args:
        loaded: the model.
        config: of the engine.
        max_num_batched_tokens: the most tokens that one batch will have.
        agree: turns this process's number of pages into that of all that run the model together.

    Attributes:
        pool: the pages of the KV cache.
        max_model_len: tokens that one sequence may have; the model's limit, or what the KV cache holds if
            less.

    Raises:
        ModelLoadError: the model's layers are not what its config says, or the KV cache is too small.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        *,
        max_num_batched_tokens: int,
        agree: Callable[[int], int] = lambda count: count,
    ) -> None:
        self._model = loaded.model
        self._lora = loaded.lora
        self._native = loaded.native
        self.torch_device: torch.device = torch.device("cpu") if self._native else self._model.device
        self.dtype: torch.dtype = self._model.dtype
        self._picks_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        on_gpu = self.torch_device.type == "cuda"
        probe_tokens = min(max_num_batched_tokens if on_gpu else _CPU_PROBE_TOKENS, loaded.max_model_len)
        captures = on_gpu and config.cuda_graphs and config.tensor_parallel_size == 1
        features: set[str] = set()
        if self._native is not None:
            shapes, peak = self._native.shapes, 0
        else:
            size = min(config.max_num_seqs, probe_tokens)
            probe, peak = self._probe(config.model, probe_tokens, size, loaded.max_model_len)
            shapes, features = [probe.shapes[layer] for layer in sorted(probe.shapes)], probe.features
        if self._model.config.model_type in VISION_FAMILIES:
            peak = max(peak, self._measure(lambda: try_vision(self._model, config.model)))
        if captures:
            size = min(config.max_num_seqs, probe_tokens)
            _, decode_peak = self._probe(config.model, size, size, loaded.max_model_len)
            peak += reserve_bytes(config.max_num_seqs, loaded.vocab_size, self.dtype, decode_peak)
        each = page_bytes(shapes, config.page_size, self.dtype)
        count = agree(
            num_pages(
                config,
                page_bytes=each,
                max_model_len=loaded.max_model_len,
                device=self.torch_device,
                peak_bytes=peak,
            )
        )
        self.pool = PagePool(count, config.page_size)
        self.max_model_len = self._fit(config, loaded.max_model_len, each)
        self._cache = KVCache(
            shapes, num_pages=count, page_size=config.page_size, dtype=self.dtype, device=self.torch_device
        )
        if self._native is not None:
            threads = torch.get_num_threads()
            self._native.attach(self._cache, max_tokens=max_num_batched_tokens, num_threads=threads)
        # At least what `verify` needs: two sequences of some tokens.
        most_seqs, longest = max(config.max_num_seqs, 2), max(self.max_model_len, 16)
        needs = AttentionNeeds(frozenset(features), most_seqs, longest)
        self._backend: AttentionBackend = make_backend(self._cache, needs)
        self._graphs: DecodeGraphs | None = None
        if loaded.expected is not None and self.pool.num_total >= pages_needed(config.page_size):
            verify(
                lambda batch: ModelRunner.forward(self, batch)[0],  # every rank is here, and none listens yet
                loaded.expected,
                page_size=config.page_size,
                name=config.model,
            )
        if config.compile:
            self._model.compile(dynamic=True)
        if captures and self._backend.capturable:
            self._graphs = self._capture(config, loaded.vocab_size)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Store the batch's keys and values, and return what it asks for.

        Returns:
            Logits `[R, vocab_size]`, and the hidden states `[H, hidden_size]` after the last layer's norm, or
            None when none are wanted.
        """
        if self._native is not None:
            return self._native.forward(batch, batch.hidden_index if batch.pooled else None)
        if self._graphs is not None and not (batch.pooled or batch.adapters or batch.images):
            logits = self._graphs.forward(batch)
            if logits is not None:
                return logits, None
        self._backend.plan(batch)
        if not batch.pooled:
            return self._run_planned(batch), None
        with _last_hidden_state(self._model) as seen:
            logits = self._run_planned(batch)
        return logits, seen[0][batch.hidden_index]

    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of one page to another, behind the steps that have begun."""
        self._cache.copy_page(source, target)

    def close(self) -> None:
        """Give back what lies outside of this process."""

    def _run_planned(self, batch: Batch) -> torch.Tensor:
        lora = None
        if batch.adapters is not None:
            lora = self._lora.plan(batch.adapters, batch.logits_index if self._picks_logits else None)
        embeddings = self._embed(batch) if batch.images else None
        return self._run(
            self._backend, batch.input_ids, batch.positions, batch.logits_index, lora, embeddings
        )

    def _embed(self, batch: Batch) -> torch.Tensor:
        """Return what the model reads of tokens and images, `[T, hidden_size]`."""
        embeddings = self._model.get_input_embeddings()(batch.input_ids)
        parts = []
        for seen, start, end in batch.images:
            if seen.features is None:
                seen.features = image_features(self._model, seen.inputs.pixels, seen.inputs.mask)
            parts.append(seen.features[start:end])
        embeddings[batch.image_index] = torch.cat(parts)
        return embeddings

    @torch.inference_mode()
    def _capture(self, config: EngineConfig, vocab_size: int) -> DecodeGraphs | None:
        try:
            return DecodeGraphs(
                self._run_planned,
                self._backend,
                max_num_seqs=config.max_num_seqs,
                vocab_size=vocab_size,
                dtype=self.dtype,
                device=self.torch_device,
            )
        except RuntimeError as error:
            logger.warning("CUDA graphs are off: %s cannot be captured (%s)", config.model, error)
            return None

    def _run(
        self,
        backend: AttentionBackend,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        logits_index: torch.Tensor,
        lora: LoraPlan | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # The prompt's other tokens stay out of `lm_head`, which is a third of a small model.
        options = {"logits_to_keep": logits_index} if self._picks_logits else {}
        if embeddings is None:
            options["input_ids"] = input_ids.unsqueeze(0)
        else:
            options["inputs_embeds"] = embeddings.unsqueeze(0)
        with forward_context(backend, lora):
            output = self._model(
                position_ids=positions.unsqueeze(0),
                use_cache=False,
                return_dict=True,
                **options,
            )
        logits = output.logits[0]
        return logits if self._picks_logits else logits[logits_index]

    @torch.inference_mode()
    def _probe(
        self, name: str, num_tokens: int, num_logits: int, max_model_len: int
    ) -> tuple[ProbeAttention, int]:
        """Run `num_tokens` tokens once.

        Return what attention saw and the peak of memory on top of the weights.
        """
        probe = ProbeAttention()
        positions = torch.arange(num_tokens, device=self.torch_device)
        try:
            peak = self._measure(
                lambda: self._run(probe, torch.zeros_like(positions), positions, positions[:num_logits])
            )
        except NotImplementedError as error:
            raise ModelLoadError(f"{name!r} cannot run in this engine: {error}") from error
        config = self._model.config.get_text_config(decoder=True)
        expected = list(range(config.num_hidden_layers))
        if sorted(probe.shapes) != expected:
            raise ModelLoadError(
                f"{name!r} (family `{config.model_type}`) has {config.num_hidden_layers} layers, but "
                f"attention ran in layers {sorted(probe.shapes)}: this engine cannot run it"
            )
        for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
            if kind == "sliding_attention" and layer in probe.windows and probe.windows[layer] is None:
                raise ModelLoadError(
                    f"{name!r} (family `{config.model_type}`) does not tell its attention the sliding "
                    f"window of layer {layer}: this engine would compute it wrongly"
                )
        window = getattr(config, "sliding_window", None)
        told = getattr(config, "layer_types", None) or any(probe.windows.values())
        if window and not told and getattr(config, "use_sliding_window", True) and window < max_model_len:
            raise ModelLoadError(
                f"{name!r} (family `{config.model_type}`) does not tell its attention the sliding window of "
                f"{window} tokens: this engine would compute it wrongly beyond; set `max_model_len` to "
                f"{window}"
            )
        return probe, peak

    def _measure(self, work: Callable[[], object]) -> int:
        """Do something; return the peak of the GPU's memory on top of what was there before."""
        if self.torch_device.type != "cuda":
            work()
            return 0
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        work()
        peak = torch.cuda.max_memory_allocated(self.torch_device) - before
        torch.cuda.empty_cache()
        return peak

    def _fit(self, config: EngineConfig, max_model_len: int, bytes_each: int) -> int:
        """Return the sequence length that the pool can hold."""
        capacity = self.pool.num_total * config.page_size
        if capacity >= max_model_len:
            return max_model_len
        if config.max_model_len is not None:
            needed = (self.pool.pages_for(max_model_len) + 1) * bytes_each
            raise ModelLoadError(
                f"The KV cache holds {capacity} tokens, fewer than `max_model_len` ({max_model_len}): lower "
                f"`max_model_len`, or set `kv_cache_memory` to {needed} bytes or more"
            )
        logger.warning(
            "The KV cache holds %d tokens, fewer than the model's context of %d: they are the limit now.",
            capacity,
            max_model_len,
        )
        return capacity
