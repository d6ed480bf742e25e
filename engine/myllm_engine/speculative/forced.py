"""Jump over what a grammar leaves no choice about.

Of a JSON object's text the keys and the punctuation are mostly forced. Taken as drafts, forced tokens are
computed together with the token before them, in one step in place of one each (SGLang calls the like
jump-forward decoding). A draft counts where it is what is drawn, and here nothing else can be: no answer
changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..sequence import Sequence
from ..structured import forced_tokens

# More are taken by the next step: a schema may force any number of them.
_MOST = 16


def draft_forced(sequences: Iterable[Sequence]) -> None:
    """Set the drafts of decoding sequences to the tokens that must come next."""
    for sequence in sequences:
        if sequence.matcher is None or sequence.num_uncomputed != 1:
            continue
        # The last token of a completion is drawn, not proposed.
        room = min(_MOST, sequence.max_total_tokens - len(sequence.token_ids) - 1)
        if room > 0:
            sequence.drafts = forced_tokens(sequence.matcher)[:room]
