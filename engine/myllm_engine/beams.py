"""Run a request's beam search over sequences that fork."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from .groups import Group
from .request import CompletionOutput, Request
from .sampling.beam import BeamSearch, Extension, Hypothesis
from .scheduler import Scheduler
from .sequence import Sequence


class BeamHost:
    """Fork and end the sequences of beam searches.

    Args:
        scheduler: of the engine.
        copy_page: copies the keys and values of one page to another.
    """

    def __init__(self, scheduler: Scheduler, copy_page: Callable[[int, int], None]) -> None:
        self._scheduler = scheduler
        self._copy_page = copy_page

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give a new sequence the keys and values of another."""
        pages = self._scheduler.fork(parent, child)
        if pages is not None:
            self._copy_page(*pages)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence away that does not go on."""
        self._scheduler.remove(sequence)


class BeamGroup(Group):
    """Hold the running beams of one request, and hand out the best `n` texts when the search has ended.

    A beam's next token is chosen when all beams have their log-probabilities: until then it has nothing to
    compute, and waits.

    Args:
        request: as the user sent it.
        root: the sequence that reads the prompt.
        eos_token_ids: tokens that end a completion.
        host: forks and removes sequences.

    Attributes:
        sequences: the running beams, the best first.
    """

    def __init__(
        self, request: Request, root: Sequence, eos_token_ids: frozenset[int], host: BeamHost
    ) -> None:
        super().__init__(request, [root])
        params = request.params
        self._prompt = _copy(root)
        self._eos_token_ids = eos_token_ids
        self._host = host
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else eos_token_ids)
        self._search = BeamSearch(
            params.num_sequences,
            max_tokens=root.max_total_tokens - root.num_prompt_tokens,
            end_token_ids=frozenset(ends),
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        self._log_probs: dict[Sequence, torch.Tensor] = {}

    def extend(self, sequence: Sequence, log_probs: torch.Tensor) -> list[CompletionOutput]:
        """Take the log-probabilities `[vocab_size]` of what follows a beam; return the texts when done.

        Raises:
            ConstraintError: a beam's constraint cannot be followed.
        """
        self._log_probs[sequence] = log_probs
        if len(self._log_probs) < len(self.sequences):
            return []
        stacked = torch.stack([self._log_probs[beam] for beam in self.sequences])
        self._log_probs = {}
        going = self._search.step(stacked, self._ends)
        self._follow(going)
        if not self._search.done:
            return []
        best = self._search.hypotheses()[: self.request.params.n]
        return [self._write(index, hypothesis) for index, hypothesis in enumerate(best)]

    @property
    def finished(self) -> bool:
        """Tell whether nothing more will come."""
        return self._search.done

    def abort(self) -> list[CompletionOutput]:
        """End the search without a text: none has won yet."""
        for sequence in self.sequences:
            sequence.finish_reason = "abort"
        return [CompletionOutput(index, finish_reason="abort") for index in range(self.request.params.n)]

    def _ends(self, extension: Extension) -> bool:
        """Tell whether a stop string or the constraint ends a beam with a token."""
        beam = self.sequences[extension.parent]
        if beam.matcher is None and not beam.params.stop:
            return False
        return _copy(beam).append(extension.token_id, self._eos_token_ids).finish_reason == "stop"

    def _follow(self, going: list[Extension]) -> None:
        """Let the chosen beams go on, the first of each parent in its own sequence."""
        parents = self.sequences
        heirs: dict[int, Sequence] = {}
        self.sequences = []
        for extension in going:
            parent = parents[extension.parent]
            if extension.parent in heirs:
                beam = _copy(parent)
                self._host.fork(parent, beam)
            else:
                beam = heirs[extension.parent] = parent
            self.sequences.append(beam)
        for index, parent in enumerate(parents):
            if index not in heirs:
                parent.finish_reason = "stop"
                self._host.remove(parent)
        # Only now: forks begin where their parents were.
        for beam, extension in zip(self.sequences, going, strict=True):
            beam.append(extension.token_id, self._eos_token_ids)

    def _write(self, index: int, hypothesis: Hypothesis) -> CompletionOutput:
        """Make the text of a finished beam from its tokens."""
        sequence = _copy(self._prompt)
        output = CompletionOutput(index)
        for token_id in hypothesis.token_ids:
            output.extend(sequence.append(token_id, self._eos_token_ids))
        output.finish_reason = hypothesis.finish_reason
        return output


def _copy(sequence: Sequence) -> Sequence:
    """Return a sequence with the same tokens that goes on by itself, and has no pages."""
    copy = dataclasses.replace(
        sequence,
        detokenizer=sequence.detokenizer.copy(),
        matcher=None if sequence.matcher is None else sequence.matcher.copy(),
        pages=[],
        page_keys=list(sequence.page_keys),
        num_computed=0,
        num_known_pages=0,
        drafts=[],
    )
    copy.token_ids = list(sequence.token_ids)
    return copy
