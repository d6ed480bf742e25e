"""Check at load that a model over paged attention computes what it computes by itself.

Families change with transformers' versions, and what one does besides attending to all earlier tokens (a
state of its own, keys shared between layers, later tokens seen too) need not show in its config. So the
logits of two short sequences are taken with the attention that comes with the model, and compared with those
of a paged, chunked and mixed batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..batch import Batch
from ..errors import ModelLoadError

# Tokens per sequence, and how many of them the first of two steps takes: the second is a decode and a chunk.
_LENGTHS, _FIRST = (6, 11), (5, 7)
# Largest difference of the logits, relative to their norm. Rounding gives far less, attention to other
# tokens far more.
_TOLERANCE = {torch.float32: 1e-2}
_TOLERANCE_16_BITS = 0.1


@dataclass(frozen=True, slots=True)
class Expected:
    """Hold what the model answered before its attention was replaced.

    Attributes:
        token_ids: of two sequences.
        logits: `[num_tokens, vocab_size]` of each.
    """

    token_ids: tuple[list[int], ...]
    logits: tuple[torch.Tensor, ...]


@torch.inference_mode()
def take_expected(model: PreTrainedModel, vocab_size: int) -> Expected:
    """Run the model as transformers does, without a cache."""
    # Any ids would do that are not special; special ones are at either end of most vocabularies.
    first, span = min(5, vocab_size - 1), max(1, min(vocab_size, 1000) - 10)
    token_ids = tuple(
        [first + (index * 37 + length) % span for index in range(length)] for length in _LENGTHS
    )
    logits = tuple(
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, return_dict=True).logits[0]
        for ids in token_ids
    )
    return Expected(token_ids, logits)


def verify(
    forward: Callable[[Batch], torch.Tensor], expected: Expected, *, page_size: int, name: str
) -> None:
    """Compare `forward`, which uses pages 1 and up of the KV cache, with what was expected.

    Raises:
        ModelLoadError: the logits differ by more than rounding explains.
    """
    if not all(logits.isfinite().all() for logits in expected.logits):
        return  # broken already, which requests will be told
    second = tuple(n - first for n, first in zip(_LENGTHS, _FIRST, strict=True))
    steps = [(0, 0), _FIRST], [_FIRST, second]
    medians = []
    for starts, counts in steps:
        logits = forward(_batch(expected, starts, counts, page_size)).float()
        ours = logits.split(counts)
        for mine, whole, start, count in zip(ours, expected.logits, starts, counts, strict=True):
            theirs = whole[start : start + count].float()
            # Softmax takes no notice of a constant.
            mine, theirs = mine - mine.mean(-1, keepdim=True), theirs - theirs.mean(-1, keepdim=True)
            errors = (mine - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-6)
            # In 16 bits a single token may take another expert by a hair: hence not the largest.
            medians.append(errors.median())
    worst = torch.stack(medians).max().item()
    if not worst <= _TOLERANCE.get(expected.logits[0].dtype, _TOLERANCE_16_BITS):
        raise ModelLoadError(
            f"{name!r} answers otherwise over a paged KV cache than by itself in transformers (its logits "
            f"differ by {worst:.0%}): its layers do more than attend to earlier tokens, and this engine "
            "cannot run it: choose a model of another family"
        )


def _batch(expected: Expected, starts: tuple[int, ...], counts: tuple[int, ...], page_size: int) -> Batch:
    device = expected.logits[0].device
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    tables = []
    next_page = 1
    for length in _LENGTHS:
        size = -(-length // page_size)
        tables.append(list(range(next_page, next_page + size)))
        next_page += size
    spans = [range(start, end) for start, end in zip(starts, ends, strict=True)]
    ids = [ids[place] for ids, span in zip(expected.token_ids, spans, strict=True) for place in span]
    slots = [
        table[place // page_size] * page_size + place % page_size
        for table, span in zip(tables, spans, strict=True)
        for place in span
    ]
    flat = torch.tensor([ids, [place for span in spans for place in span], slots], device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Batch(
        input_ids=flat[0],
        pending_places=none,
        pending_rows=none,
        positions=flat[1],
        slots=flat[2],
        query_lens=list(counts),
        context_lens=ends,
        page_tables=[table[: -(-end // page_size)] for table, end in zip(tables, ends, strict=True)],
        num_decodes=sum(count == 1 for count in counts),
        logits_index=torch.arange(len(ids), device=device),
        rows=[],
        prompt_rows=[],
        hidden_index=none,
        pooled=[],
        read=[],
        adapters=None,
        image_index=none,
        images=[],
        scheduled=[],
    )


def pages_needed(page_size: int) -> int:
    """Return how many pages `verify` writes to."""
    return sum(-(-length // page_size) for length in _LENGTHS)
