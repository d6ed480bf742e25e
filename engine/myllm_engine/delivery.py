"""Hold the requests in flight, and turn what steps compute into their outputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .batch import Batch
from .beams import BeamGroup
from .errors import ConstraintError, EngineError, InvalidRequestError
from .groups import Group
from .request import RequestOutput
from .sampler import DrawnTokens, SampledToken, prompt_logprobs
from .sampling.edits import edit_logits
from .scheduler import Scheduler
from .sequence import Sequence


@dataclass(slots=True)
class Step:
    """Hold a step that the device works at, or has done.

    Attributes:
        batch: what is computed.
        prefills: sequences of whose prompt it reads.
        logits: `[R, vocab_size]`, those of `batch.rows` first.
        hidden: `[H, hidden_size]`, of `batch.hidden_index`; None when nothing is pooled.
        allowed: what each row's constraint allows.
        drawn: the rows' tokens.
    """

    batch: Batch
    prefills: int
    logits: torch.Tensor
    hidden: torch.Tensor | None
    allowed: list[np.ndarray | ConstraintError | None] = field(default_factory=list)
    drawn: DrawnTokens | None = None


class Delivery:
    """Give each request what its sequences gain, until it ends.

    Args:
        scheduler: forgets sequences that have ended.
        eos_token_ids: tokens that end a completion.
        ended: called whenever a request has left.

    Attributes:
        generation_tokens: tokens generated so far, over all requests.
    """

    def __init__(
        self, scheduler: Scheduler, eos_token_ids: frozenset[int], *, ended: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._eos_token_ids = eos_token_ids
        self._ended = ended
        self._groups: dict[str, Group] = {}
        self.generation_tokens = 0

    @property
    def sequences(self) -> list[Sequence]:
        """Return the sequences of all requests in flight."""
        return [sequence for group in self._groups.values() for sequence in group.sequences]

    def check_id(self, request_id: str) -> None:
        """Raise InvalidRequestError when a request of this id is in flight."""
        if request_id in self._groups:
            raise InvalidRequestError(f"A request with the id {request_id!r} is in flight already")

    def add(self, group: Group) -> None:
        """Take a request in, and queue its sequences."""
        self._groups[group.request.request_id] = group
        for sequence in group.sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request; return its last output, or None when no such request is in flight."""
        group = self._groups.pop(request_id, None)
        if group is None:
            return None
        for sequence in group.sequences:
            if sequence.finish_reason is None:
                self._scheduler.remove(sequence)
        self._ended()
        outputs = group.abort()
        return RequestOutput(
            request_id, group.request.prompt_token_ids, outputs, finished=True, timings=group.timings
        )

    def finish(self, step: Step) -> list[RequestOutput]:
        """Wait for a step, and give each request what is new."""
        batch = step.batch
        outputs: dict[str, RequestOutput] = {}
        if batch.prompt_rows:
            self._keep_prompt_logprobs(batch, step.logits)
        if step.hidden is not None:
            self._pool(batch, step.hidden, outputs)
        for sequence in batch.read:
            if sequence.finish_reason is None:  # else it was aborted meanwhile
                self._end(sequence, outputs)
        if step.drawn is not None:
            self._collect(step, step.drawn.result(), outputs)
        return [output for output in outputs.values() if output.outputs or output.finished]

    def _keep_prompt_logprobs(self, batch: Batch, logits: torch.Tensor) -> None:
        start = len(batch.rows)
        for rows in batch.prompt_rows:
            end = start + len(rows.targets)
            count = rows.sequence.params.prompt_logprobs or 0
            rows.sequence.prompt_logprobs += prompt_logprobs(logits[start:end], rows.targets, count)
            start = end

    def _pool(self, batch: Batch, hidden: torch.Tensor, outputs: dict[str, RequestOutput]) -> None:
        """Add hidden states to the embeddings of their requests, and hand out those that are complete."""
        start = 0
        for sequence, count, complete in batch.pooled:
            total = hidden[start : start + count].float().sum(dim=0)
            start += count
            if sequence.finish_reason is not None:  # aborted meanwhile
                continue
            sequence.pooled = total if sequence.pooled is None else sequence.pooled + total
            if complete:
                sequence.finish_reason = "stop"
                output = self._output(sequence.request.request_id, outputs)
                # Sum and mean have one direction.
                output.embedding = torch.nn.functional.normalize(sequence.pooled, dim=0).tolist()
                self._scheduler.remove(sequence)
                self._close(output)

    def _end(self, sequence: Sequence, outputs: dict[str, RequestOutput]) -> None:
        """End a sequence that gets no token: what was wanted of it is its prompt's log-probabilities."""
        group = self._groups[sequence.request.request_id]
        output = self._output(sequence.request.request_id, outputs)
        output.outputs += group.end(sequence)
        self._scheduler.remove(sequence)
        if group.finished:
            self._close(output)

    def _collect(
        self,
        step: Step,
        tokens: list[SampledToken | EngineError],
        outputs: dict[str, RequestOutput],
    ) -> None:
        """Give each sequence what was drawn for it."""
        rows, index, now = step.batch.rows, 0, time.monotonic()
        while index < len(rows):
            place, sequence = index, rows[index].sequence
            index += rows[index].num_drafted + 1
            sequence.num_pending = 0
            group = self._groups.get(sequence.request.request_id)
            # It was aborted, or ended with the token before, which was not known when this one was drawn.
            if group is None or sequence.finish_reason is not None:
                continue
            before = len(sequence.token_ids)
            output = self._output(group.request.request_id, outputs)
            group.gained(now)
            try:
                if isinstance(group, BeamGroup):
                    new = group.extend(sequence, self._log_probs(step, place))
                    self.generation_tokens += 1
                else:
                    new = group.collect(sequence, tokens[place:index], self._eos_token_ids)
                    self.generation_tokens += len(sequence.token_ids) - before
            except EngineError as error:  # this request's alone, and no reason to end the others
                self.abort(group.request.request_id)
                output.outputs, output.error, output.finished = [], error, True
                continue
            output.outputs += new
            if sequence.finish_reason is not None and not isinstance(group, BeamGroup):
                self._scheduler.remove(sequence)
            if group.finished:
                self._close(output)

    def _log_probs(self, step: Step, place: int) -> torch.Tensor:
        """Return the log-probabilities `[vocab_size]` of a beam's next token, under the request's limits.

        As in transformers, penalties and the like change log-probabilities, which are not normalised again.
        """
        allowed = step.allowed[place]
        if isinstance(allowed, ConstraintError):
            raise allowed
        raw = torch.log_softmax(step.logits[place : place + 1].float(), dim=-1)
        row = step.batch.rows[place]
        return edit_logits(raw, [row], [allowed], eos_token_ids=self._eos_token_ids)[0]

    def _output(self, request_id: str, outputs: dict[str, RequestOutput]) -> RequestOutput:
        """Return the output of this step for a request, made when first asked for."""
        if request_id not in outputs:
            group = self._groups[request_id]
            first = group.first
            group.timings.scheduled = first.admitted
            outputs[request_id] = RequestOutput(
                request_id,
                group.request.prompt_token_ids,
                [],
                num_cached_tokens=first.num_cached_tokens or 0,
                timings=group.timings,
                prompt_logprobs=None
                if group.request.params.prompt_logprobs is None
                else first.prompt_logprobs,
            )
        return outputs[request_id]

    def _close(self, output: RequestOutput) -> None:
        output.outputs.sort(key=lambda item: item.index)
        output.finished = True
        del self._groups[output.request_id]
        self._ended()
