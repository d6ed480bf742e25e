"""Choose the next token of each sequence from its row of logits.

What happens to a row depends on nothing but its logits and the place that it stands for: the parameters, the
tokens before it, the seed and the position. Given equal logits, a seeded request therefore gives the same
tokens alone, in any batch, after a preemption and with speculation. Logits themselves differ in their last
bits from batch to batch (the order of sums changes with its size, most so in bfloat16). `sampling.draw` says
why that hardly ever changes a draw.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from .errors import ConstraintError, EngineError, GenerationError
from .request import SamplingParams, TokenLogprob
from .sampling.draw import draw
from .sampling.edits import edit_logits, edits_of
from .sampling.filters import token_weights
from .sampling.kernels import HostCopy, maximum, maximum_allowed, on_device, pick
from .sampling.logprobs import TokenLogprobs, prompt_logprobs
from .sampling.noise import derive_seed, noise_keys
from .sequence import Row

__all__ = ["DrawnTokens", "SampledToken", "derive_seed", "draw_tokens", "prompt_logprobs", "sample"]

# Logits whose rows are drawn together, which bounds the memory for what is computed of them.
_LOGITS_TOGETHER = {"cpu": 2**21, "cuda": 2**25}


@dataclass(frozen=True, slots=True)
class SampledToken:
    """Hold a drawn token, and its log-probability when the request asked for it."""

    token_id: int
    logprob: TokenLogprob | None = None


class DrawnTokens:
    """Hold tokens that were drawn on the device, and may not have arrived; made by `draw_tokens`.

    Attributes:
        token_ids: `[R]` int64 on the device; anything where nothing could be drawn.
    """

    def __init__(
        self,
        token_ids: torch.Tensor,
        drawable: torch.Tensor,
        sound: torch.Tensor,
        logprobs: TokenLogprobs,
        all_params: SequenceOf[SamplingParams],
        allowed: SequenceOf[np.ndarray | ConstraintError | None],
    ) -> None:
        self.token_ids = token_ids
        self._copy = HostCopy(token_ids, drawable, sound)
        self._logprobs = logprobs
        self._all_params = all_params
        self._errors = [item if isinstance(item, ConstraintError) else None for item in allowed]

    def result(self) -> list[SampledToken | EngineError]:
        """Wait for the tokens, and return what `sample` returns."""
        result: list[SampledToken | EngineError] = []
        columns = (*self._copy.lists(), self._logprobs.result(), self._all_params, self._errors)
        for token_id, is_drawable, is_sound, logprob, params, error in zip(*columns, strict=True):
            if error is not None:
                result.append(error)
            elif is_drawable:
                result.append(SampledToken(token_id, logprob))
            else:
                result.append(_nothing_to_draw(params, is_sound))
        return result


def draw_tokens(
    logits: torch.Tensor,
    rows: SequenceOf[Row],
    allowed: SequenceOf[np.ndarray | ConstraintError | None],
    *,
    eos_token_ids: frozenset[int],
) -> DrawnTokens:
    """Begin to draw what `sample` draws, behind what a GPU does, without waiting for it."""
    all_params = [row.sequence.params for row in rows]
    on_cpu = logits.device.type == "cpu"
    needed = [edits_of(row.sequence, eos_token_ids).needed(row) for row in rows]
    # Where a mask alone decides, a CPU looks at what it allows, and neither copies nor fills a row of logits.
    masked = [
        index
        for index, (params, mask) in enumerate(zip(all_params, allowed, strict=True))
        if on_cpu and params.greedy and isinstance(mask, np.ndarray) and not needed[index]
    ]
    others = sorted(set(range(len(rows))).difference(masked))
    is_edited = any(needed[index] or allowed[index] is not None for index in others)
    work = logits[others] if masked else logits
    if is_edited:
        work = edit_logits(
            work,
            [rows[index] for index in others],
            [allowed[index] for index in others],
            eos_token_ids=eos_token_ids,
        )
    largest, token_ids = maximum(work)
    if masked:
        found = maximum_allowed(logits, masked, [allowed[index] for index in masked])
        back = torch.tensor(others + masked).argsort()  # to the order of `rows`
        largest, token_ids = (
            torch.cat(both)[back] for both in zip((largest.float(), token_ids), found, strict=True)
        )
    drawable = largest.isfinite()
    # What the model said may be sound where the request's limits leave nothing of it. On a CPU it costs
    # nothing to see that this is not asked; a GPU would have to be waited for.
    is_asked = (is_edited or bool(masked)) and not (on_cpu and bool(drawable.all()))
    sound = logits.amax(dim=-1).isfinite() if is_asked else drawable
    drawn = [place for place, index in enumerate(others) if not all_params[index].greedy]
    step = max(1, _LOGITS_TOGETHER.get(logits.device.type, 2**21) // logits.shape[1])
    for start in range(0, len(drawn), step):
        places = drawn[start : start + step]  # in `work`
        some = [others[place] for place in places]
        weights = token_weights(
            pick(work, places).float(), [all_params[index] for index in some], pick(largest, some).float()
        )
        keys = noise_keys(
            [rows[index].sequence.seed for index in some], [rows[index].position for index in some]
        )
        token_ids[on_device(some, logits.device)] = draw(weights, keys)
    logprobs = TokenLogprobs(
        logits,
        token_ids,
        [params.logprobs for params in all_params],
        {row: params.logprob_token_ids for row, params in enumerate(all_params) if params.logprob_token_ids},
    )
    return DrawnTokens(token_ids, drawable, sound, logprobs, all_params, allowed)


def sample(
    logits: torch.Tensor,
    rows: SequenceOf[Row],
    allowed: SequenceOf[np.ndarray | ConstraintError | None],
    *,
    eos_token_ids: frozenset[int],
) -> list[SampledToken | EngineError]:
    """Draw one token per row of `logits` `[R, vocab_size]`, under the parameters of the row's sequence.

    Args:
        logits: what the model says of each row; left as it is.
        rows: the places they belong to.
        allowed: what each row's constraint allows, from `structured.allowed_tokens`.
        eos_token_ids: tokens that end a completion.

    Returns:
        A token per row. One from which nothing can be drawn gives the error that ends its request:
        ConstraintError when its constraint fails, or when constraint, `allowed_token_ids` and `bad_words`
        together leave no token; GenerationError when its largest logit is infinite or NaN.
    """
    return draw_tokens(logits, rows, allowed, eos_token_ids=eos_token_ids).result()


def _nothing_to_draw(params: SamplingParams, is_sound: bool) -> EngineError:
    """Say why a row has no finite maximum; `is_sound` tells whether the model's own logits have one."""
    limits = {"allowed_token_ids": params.allowed_token_ids, "bad_words": params.bad_words}
    if params.structured is not None:
        limits[params.structured.param] = (params.structured.kind,)
    names = [name for name, given in limits.items() if given]
    if names and is_sound:
        return ConstraintError(
            f"No token is left to choose: together, {' and '.join(f'`{name}`' for name in names)} exclude "
            "them all at this place. Allow more tokens or forbid fewer words",
            param=names[0],
        )
    return GenerationError(
        "The model's logits hold no finite maximum, so no token can be drawn: with float16 weights "
        "try `dtype` bfloat16 or float32"
    )
