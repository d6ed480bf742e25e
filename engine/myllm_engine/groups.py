"""Turn what is drawn for the sequences of one request into the request's outputs."""

from __future__ import annotations

import time

from .errors import EngineError
from .request import CompletionOutput, Request, RequestTimings
from .sampler import SampledToken
from .sequence import Sequence


class Group:
    """Hold the sequences of one request, each of which is one completion of its answer.

    Args:
        request: as the user sent it.
        sequences: of the request.

    Attributes:
        first: the sequence that knows about the prompt.
        sequences: those that run or wait, and those that have ended.
        timings: when the request got how far.
    """

    def __init__(self, request: Request, sequences: list[Sequence]) -> None:
        self.request = request
        self.first = sequences[0]
        self.sequences = sequences
        self.timings = RequestTimings(time.monotonic())

    @property
    def finished(self) -> bool:
        """Tell whether nothing more will come."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def gained(self, now: float) -> None:
        """Take note that a token was made."""
        if self.timings.first_token is None:
            self.timings.first_token = now
        self.timings.last_token = now

    def collect(
        self, sequence: Sequence, tokens: list[SampledToken | EngineError], eos_token_ids: frozenset[int]
    ) -> list[CompletionOutput]:
        """Add what was drawn for a sequence: a token, and one for each of its drafts; return what is new.

        Each token was drawn as if the drafts before it were right. The first one that differs from its draft
        is the last that counts: what follows was drawn for another text.

        Raises:
            EngineError: a token could not be drawn, or the constraint cannot follow it.
        """
        drafts, sequence.drafts = sequence.drafts, []
        output = CompletionOutput(sequence.index)
        for place, token in enumerate(tokens):
            if isinstance(token, EngineError):
                raise token
            output.extend(_append(sequence, token, eos_token_ids))
            right = place < len(drafts) and drafts[place] == token.token_id
            if sequence.finish_reason is not None or not right:
                break
        if drafts:  # keys and values of wrong ones are in the way of what comes next
            sequence.num_computed = min(sequence.num_computed, len(sequence.token_ids) - 1)
        return self._hand_out(output)

    def _hand_out(self, output: CompletionOutput) -> list[CompletionOutput]:
        return [output]

    def end(self, sequence: Sequence) -> list[CompletionOutput]:
        """End a sequence that has read its prompt and gets no token; return what is new."""
        sequence.finish_reason = "length"
        return self._hand_out(CompletionOutput(sequence.index, finish_reason="length"))

    def abort(self) -> list[CompletionOutput]:
        """End all sequences, and return the last outputs of those that had not ended."""
        outputs = []
        for sequence in self.sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "abort"
                text = sequence.detokenizer.finish()
                outputs += self._hand_out(CompletionOutput(sequence.index, text=text, finish_reason="abort"))
        return outputs


class BestOfGroup(Group):
    """Keep back what the sequences make, and hand out the best `n` when all have ended.

    They are ranked by mean log-probability a token, as OpenAI's and TGI's `best_of`; its sequences must draw
    their tokens with log-probabilities, which are handed out only if the request wants them.
    """

    def __init__(self, request: Request, sequences: list[Sequence]) -> None:
        super().__init__(request, sequences)
        self._outputs = [CompletionOutput(sequence.index) for sequence in sequences]

    def _hand_out(self, output: CompletionOutput) -> list[CompletionOutput]:
        self._outputs[output.index].extend(output)
        if not self.finished:
            return []
        best = sorted(self._outputs, key=_mean_logprob, reverse=True)[: self.request.params.n]
        for index, item in enumerate(best):
            item.index = index
            if self.request.params.logprobs is None:
                item.logprobs = None
        return best


def _append(sequence: Sequence, token: SampledToken, eos_token_ids: frozenset[int]) -> CompletionOutput:
    new = sequence.append(token.token_id, eos_token_ids)
    if token.logprob is not None:
        new.logprobs = [token.logprob]
    return new


def _mean_logprob(output: CompletionOutput) -> float:
    logprobs = output.logprobs or []
    return sum(item.logprob for item in logprobs) / max(1, len(logprobs))
