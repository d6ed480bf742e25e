"""Compilation: whatever is asked for, others notice nothing, and the answer comes soon."""

from __future__ import annotations

import random
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from myllm_engine.constraint import Structured
from myllm_engine.errors import ConstraintError, EngineError, InvalidRequestError, QueueFullError
from myllm_engine.structured import GrammarCompiler

VOCAB_SIZE = 49152
SECONDS = 0.5


def never_ready(number: int = 15) -> Structured:
    """Return a schema of a few hundred characters that llguidance works at for ever."""
    return Structured.json_schema(
        {"type": "string", "allOf": [{"pattern": f".*{number}c{i}.*"} for i in range(20)]}
    )


@pytest.fixture(scope="module")
def grammars(tokenizer):
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, seconds=SECONDS)
    compiler.matcher(Structured.regex("a"))
    yield compiler
    compiler.close()


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "a long repetition": Structured.regex("(a|b|c){1,100000}"),
    "nested repetitions": Structured.regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    "nested stars": Structured.regex("(((x+x+)+)+y)*" * 50),
    "windows": Structured.regex(".*" + "a.{1000}" * 3),
    "deep parentheses": Structured.regex("(" * 100_000 + "a" + ")" * 100_000),
    "a huge enum": Structured.json_schema({"enum": [f"value {i}" for i in range(15_000)]}),
    "a huge choice": Structured.choice([f"text {i}" for i in range(15_000)]),
    "a giant minLength": Structured.json_schema({"type": "string", "minLength": 10**9}),
    "giant minItems": Structured.json_schema({"type": "array", "minItems": 10**9}),
    "a cycle of references": Structured.json_schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "exponential anyOf": Structured.json_schema(
        {
            "allOf": [
                {"anyOf": [{"properties": {f"a{i}": {"type": kind}}} for kind in ("string", "integer")]}
                for i in range(20)
            ]
        }
    ),
    "deep": Structured.json_schema(nested(40)),
    "deeper": Structured.json_schema(nested(150)),
    "many properties": Structured.json_schema({"properties": {f"p{i}": True for i in range(5000)}}),
    "never ready": never_ready(),
    "a megabyte": Structured.json_schema({"title": "x" * 2**20}),
    "2 ** 40 letters": Structured.grammar(
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40 ::= "a"'
    ),
    "ambiguity": Structured.grammar('start: s\ns: s s s | s s | "a" | ""'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_end_soon_and_stop_nobody(grammars, name):
    longest, stop = 0.0, threading.Event()

    def tick() -> None:
        nonlocal longest
        while not stop.is_set():
            started = time.perf_counter()
            time.sleep(0.001)
            longest = max(longest, time.perf_counter() - started)

    ticking = threading.Thread(target=tick)
    ticking.start()
    started = time.process_time()
    refusal = ""
    try:
        grammars.matcher(HOSTILE[name]).allowed()
    except InvalidRequestError as error:
        refusal = str(error)
    finally:
        stop.set()
        ticking.join()
    # Time of this process: it compiles, at most, what took the other one so long.
    assert time.process_time() - started < SECONDS + 1
    assert longest < 0.4
    assert len(refusal) < 400


def test_what_is_never_ready_says_so_and_is_not_tried_again(grammars):
    with pytest.raises(InvalidRequestError, match="too complex to be compiled.*takes too long.*simplify it"):
        grammars.matcher(never_ready(1))
    started = time.monotonic()
    with pytest.raises(InvalidRequestError, match="takes too long"):
        grammars.matcher(never_ready(1))
    assert time.monotonic() - started < 0.1
    assert grammars.matcher(Structured.regex("b")).allowed().any()


def test_too_many_are_refused_and_those_known_never_wait(grammars):
    grammars.matcher(Structured.regex("known"))
    slow = [grammars.submit(never_ready(number)) for number in range(100, 132)]
    assert not any(future.done() for future in slow)
    with pytest.raises(QueueFullError, match="try again later"):
        grammars.matcher(Structured.regex("one more"))
    started = time.monotonic()
    assert grammars.matcher(Structured.regex("known")).allowed().any()
    again = grammars.submit(never_ready(131))  # waits with the other
    for future in slow:
        future.cancel()
    assert time.monotonic() - started < 0.3
    # The two that had begun end, and the one that somebody still wants; the others never begin.
    with pytest.raises(InvalidRequestError, match="takes too long"):
        again.result(timeout=30)
    with pytest.raises(CancelledError):
        slow[-1].result()
    assert grammars.matcher(Structured.regex("one more")).allowed().any()


def test_a_crash_is_the_constraints_fault_alone(grammars):
    """Whatever ends the process that tries a constraint, a new one is there for the next."""
    pending = grammars.submit(never_ready(2))
    while not pending.done():
        time.sleep(0.05)
        for process in grammars._workshop._trials:
            process.kill()
    with pytest.raises(InvalidRequestError, match="too much memory or is nested too deeply"):
        pending.result()
    assert grammars.matcher(Structured.regex("after a crash")).allowed().any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_limited(grammars):
    grammars.matcher(Structured.regex("limited"))
    (process, *_) = [process for process in grammars._workshop._trials if process.alive]
    limits = Path(f"/proc/{process._process.pid}/limits").read_text().splitlines()
    (line,) = [line for line in limits if line.startswith("Max address space")]
    assert 2 * 2**30 <= int(line.split()[3]) < 6 * 2**30


def test_many_threads_get_what_they_asked_for(grammars):
    wrong = []

    def ask(number: int) -> None:
        for turn in range(5):
            text = f"text {number % 4} {turn}"
            matcher = grammars.matcher(Structured.choice([text]))
            for token in grammars._workshop._tokenizer.encode(text):
                if not matcher.allowed()[token]:
                    wrong.append(text)
                matcher.append(token)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_grammar_that_met_a_limit_is_compiled_anew(grammars):
    """Its matchers share what the lexer has learned, of which there may be too much."""
    hostile = Structured.regex("((((((((((a?b?){30}){30}){30}c?){30}){30})+)+)+)+)x")
    matcher, rng = grammars.matcher(hostile), random.Random(1)
    with pytest.raises(ConstraintError, match="too complex to be followed"):
        for _ in range(50):
            matcher.append(rng.choice(matcher.allowed().nonzero()[0].tolist()[1:]))
    assert grammars.matcher(hostile).allowed().any()
    assert grammars.matcher(hostile)._grammar is not matcher._grammar


def test_after_close_nothing_is_compiled(tokenizer):
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE)
    compiler.matcher(Structured.regex("a"))
    (process,) = compiler._workshop._trials
    compiler.close()
    assert not process.alive
    with pytest.raises(EngineError, match="closed"):
        compiler.matcher(Structured.regex("b"))


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Structured.regex("(a"), "The regex cannot be enforced: .*unclosed group"),
        (Structured.json_schema({"$ref": "#"}), "it matches no text"),
        (Structured.json_schema({"enum": []}), "Unsatisfiable schema"),
        (Structured.grammar('root ::= "a"\nx ::= ('), r"line 2: `\(` is never closed"),
        (Structured.grammar('start: "a"\nb: "c" ('), r"2\(9\): Expected token"),
        (Structured.json_schema({"type": "object"}, whitespace_pattern="("), "unclosed group"),
    ],
)
def test_messages_say_what_is_wrong(grammars, constraint, words):
    with pytest.raises(InvalidRequestError, match=words):
        grammars.matcher(constraint)
