"""Compile constraints: cached, in few threads, each within limits of size, time and memory."""

from __future__ import annotations

import functools
import queue
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..constraint import Structured
from ..errors import EngineError, InvalidRequestError, QueueFullError
from . import trial
from .grammar import check_size, name_of, refused, to_grammar
from .matcher import Grammar, Matcher
from .process import TrialEndedError, TrialProcess

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

    from ..tokenizer import Tokenizer

_CACHED_GRAMMARS = 256
_THREADS = 2
_WAITING = 30
# Of CPU time, for a constraint. Of 300 real schemas the slowest takes 0.08 s.
_SECONDS = 2.0
_MEMORY = 2 * 2**30
# llguidance's own defaults but for these: half the work a mask (it stays below about 10 ms), a fifth of the
# lexer's memory (1 to 2 kB a state), and errors that don't quote the text.
_LIMITS = {"step_lexer_fuel": 100_000, "max_lexer_states": 50_000, "verbose_errors": False}


class GrammarCompiler:
    """Make matchers for one tokenizer. Safe to use from several threads.

    A constraint that was compiled or refused before is answered at once. Others go to one of two threads,
    which try it in a process of their own first, for that one can be ended: a constraint takes 2 s of CPU
    time and 2 GiB of memory at most, cannot crash this process, and is compiled without Python's lock.

    Args:
        tokenizer: of the model.
        vocab_size: width of the logits, which may be more than the tokenizer has tokens.
        seconds: CPU time that a constraint may take.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, seconds: float = _SECONDS) -> None:
        self._workshop = _Workshop(tokenizer, vocab_size, seconds)
        self._lock = threading.Lock()
        self._jobs: OrderedDict[Structured, Future[Grammar]] = OrderedDict()
        self._waiters: dict[Future[Grammar], int] = {}
        self._finalizer = weakref.finalize(self, self._workshop.close)

    def matcher(self, constraint: Structured) -> Matcher:
        """Return a matcher at the beginning of the text; blocks while it is compiled.

        Raises:
            InvalidRequestError: the constraint is malformed, too large, takes too long, or asks for what
                cannot be enforced; llguidance is not installed.
            QueueFullError: too many constraints wait to be compiled.
        """
        return self.submit(constraint).result()

    def submit(self, constraint: Structured) -> Future[Matcher]:
        """Return the matcher to be, without waiting; see `matcher` for what it may raise.

        Cancelling it takes the constraint out of the queue, unless another waits for the same one or its turn
        has come.
        """
        result: Future[Matcher] = Future()
        try:
            job = self._job(constraint)
        except EngineError as error:
            result.set_exception(error)
            return result

        def done(job: Future[Grammar]) -> None:
            if job.cancelled() or not result.set_running_or_notify_cancel():
                return
            if error := job.exception():
                # A fresh one for each: a shared one would collect the tracebacks of all who raise it.
                message = InvalidRequestError(str(error), param=constraint.param)
                result.set_exception(message if isinstance(error, InvalidRequestError) else error)
            else:
                result.set_result(Matcher(job.result(), constraint))

        result.add_done_callback(lambda _: self._leave(job))
        job.add_done_callback(done)
        return result

    def close(self) -> None:
        """End the threads and their processes; what waits is refused."""
        self._finalizer()

    def _job(self, constraint: Structured) -> Future[Grammar]:
        with self._lock:
            job = self._jobs.get(constraint)
            if job is None or job.cancelled() or (job.done() and _is_spent(job)):
                check_size(constraint)
                job = self._workshop.submit(constraint)
                self._jobs[constraint] = job
                while len(self._jobs) > _CACHED_GRAMMARS:
                    self._jobs.popitem(last=False)
            self._jobs.move_to_end(constraint)
            self._waiters[job] = self._waiters.get(job, 0) + 1
            return job

    def _leave(self, job: Future[Grammar]) -> None:
        with self._lock:
            self._waiters[job] -= 1
            if not self._waiters[job]:
                del self._waiters[job]
                job.cancel()  # does nothing once it runs


def _is_spent(job: Future[Grammar]) -> bool:
    error = job.exception()
    return not isinstance(error, InvalidRequestError) if error else job.result().spent


class _Workshop:
    """Run the threads that compile. Knows nothing of who waits."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, seconds: float) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._seconds = seconds
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Structured, Future[Grammar]] | None] = queue.SimpleQueue()
        self._num_threads = 0
        self._num_open = 0  # jobs that wait or run
        self._trials: list[TrialProcess] = []
        self._closed = False

    def submit(self, constraint: Structured) -> Future[Grammar]:
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed")
            if self._num_open >= _THREADS + _WAITING:
                raise QueueFullError(f"{_WAITING} constraints wait to be compiled already: try again later")
            job: Future[Grammar] = Future()
            job.add_done_callback(self._ended)
            self._num_open += 1
            self._queue.put((constraint, job))
            if self._num_threads < min(_THREADS, self._num_open):
                self._num_threads += 1
                # llguidance recurses, and overflowing kills the process. The size holds for the next thread
                # that starts in this process: this one, or one that does not mind.
                previous = threading.stack_size(trial.STACK)
                try:
                    threading.Thread(target=self._work, name="compile-grammars", daemon=True).start()
                finally:
                    threading.stack_size(previous)
            return job

    def close(self) -> None:
        with self._lock:
            self._closed = True
            trials, self._trials = self._trials, []
            for _ in range(self._num_threads):
                self._queue.put(None)
        for process in trials:
            process.kill()

    def _ended(self, _: Future[Grammar]) -> None:
        with self._lock:
            self._num_open -= 1

    def _work(self) -> None:
        process: TrialProcess | None = None
        while (item := self._queue.get()) is not None:
            constraint, job = item
            if not job.set_running_or_notify_cancel():
                continue
            try:
                if self._closed:
                    raise EngineError("The engine is closed")
                _require_llguidance(constraint)
                grammar = to_grammar(constraint, self._tokenizer.special_tokens)
                if process is None or not process.alive:
                    process = self._start_trials()
                job.set_result(self._compile(constraint, grammar, process))
            except BaseException as error:  # noqa: BLE001 - handed to who waits
                job.set_exception(error)

    def _start_trials(self) -> TrialProcess:
        process = TrialProcess(
            {
                "tokenizer": self._tokenizer.backend.to_str(),
                "vocab_size": self._vocab_size,
                "eos_token_ids": sorted(self._tokenizer.eos_token_ids),
                "limits": _LIMITS,
                "memory": _MEMORY,
                "seconds": self._seconds,
            }
        )
        with self._lock:
            closed = self._closed
            self._trials = [*(other for other in self._trials if other.alive), process]
        if closed:
            process.kill()
        return process

    def _compile(self, constraint: Structured, grammar: str, process: TrialProcess) -> Grammar:
        tokenizer, limits = self._ll_tokenizer()
        try:
            fault = process.fault(grammar)
        except TrialEndedError as error:
            raise InvalidRequestError(
                f"The {name_of(constraint)} is too complex to be compiled (it {error}): simplify it",
                param=constraint.param,
            ) from None
        if fault is None:
            from llguidance import LLMatcher

            root = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            # What this learns serves all matchers.
            root.compute_bitmask()
            if not root.is_error():
                return Grammar(root, self._vocab_size)
            fault = root.get_error()
        raise refused(constraint, fault)

    def _ll_tokenizer(self) -> tuple[LLTokenizer, LLParserLimits]:
        with self._lock:
            return self._made_tokenizer

    @functools.cached_property
    def _made_tokenizer(self) -> tuple[LLTokenizer, LLParserLimits]:
        from llguidance import LLParserLimits, LLTokenizer

        tokenizer = LLTokenizer(
            self._tokenizer.backend.to_str(),
            n_vocab=self._vocab_size,
            eos_token=sorted(self._tokenizer.eos_token_ids),
        )
        return tokenizer, LLParserLimits(**_LIMITS)


def _require_llguidance(constraint: Structured) -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise InvalidRequestError(
            f"Structured output needs llguidance, which is not installed ({error}): "
            "pip install 'myllm-suite[engine]'",
            param=constraint.param,
        ) from error
