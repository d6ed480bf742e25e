"""Mark a text, so that whoever knows how can tell it from others by its tokens alone.

The watermark of Kirchenbauer et al. (arXiv:2301.10226): the token before a place divides the vocabulary into
a green list and the rest, and green tokens are made likelier. The numbers are those of TGI
(server/text_generation_server/utils/watermark.py), so that its detectors find it; transformers'
`WatermarkDetector` does with `greenlist_ratio=0.5`.
"""

from __future__ import annotations

import torch

# The share of green tokens, and what is added to their logits.
GAMMA = 0.5
DELTA = 2.0
_HASH_KEY = 15_485_863


def green_list(previous: int, vocab_size: int) -> torch.Tensor:
    """Return the green tokens after the token `previous`, `[vocab_size * GAMMA]` int64 on the CPU.

    On every device they are drawn on the CPU: a list drawn on a GPU could be found on that kind of GPU only.
    """
    generator = torch.Generator().manual_seed(_HASH_KEY * previous)
    return torch.randperm(vocab_size, generator=generator)[: int(vocab_size * GAMMA)]
