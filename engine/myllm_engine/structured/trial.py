"""Compile grammars in a process that can be ended: run as a script, by `compiler`.

Nothing bounds llguidance's work on a grammar (fifteen patterns in one `allOf` take it for ever), a deep one
can overflow the stack, which ends a process, and nothing stops a thread. So each grammar is compiled here
first.

Protocol: one JSON document a line. The first line in is the tokenizer and the limits, each further one a
grammar; for each grammar one line comes out: what is wrong with it, or null. A grammar that takes more than
its share of CPU time or memory ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

STACK = 512 * 2**20  # bytes of address space; only what is used takes memory


def main() -> None:
    """Answer until standard input ends."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    setup = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(setup["tokenizer"], n_vocab=setup["vocab_size"], eos_token=setup["eos_token_ids"])
    limits = LLParserLimits(**setup["limits"])
    _limit_memory(setup["memory"])
    for line in sys.stdin:
        grammar = json.loads(line)
        _limit_time(setup["seconds"])
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        # Some limits show only here. Where nothing may follow, the mask holds the end of the text alone.
        matcher.compute_bitmask()
        _limit_time(0)
        sys.stdout.write(json.dumps(matcher.get_error() or None) + "\n")
        sys.stdout.flush()


def _limit_time(seconds: float) -> None:
    """End the process after so many seconds of CPU time from now; 0: no limit."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, unhandled, ends it


def _limit_memory(more: int) -> None:
    """Let the process have so many bytes more than it has now."""
    if sys.platform != "linux":
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(5)  # the model's threads come first
    threading.stack_size(STACK)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
