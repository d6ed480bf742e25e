"""One run: every measurement, in interleaved rounds, each side in its own process."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

from benchmarks._process import Figures
from benchmarks._rounds import Rounds, take_turns
from benchmarks.engine.sides import OURS, Running

# Long enough never to end within the tokens asked for.
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 200,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}
PREFIX_TOKENS, OWN_TOKENS = 1000, 24


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        prompt_tokens, new_tokens: of a request.
        concurrency: requests at once, measured in rounds, with structured output too.
        curve: further ones for the plot, measured once.
        lengths: prompt lengths for the time to a first token.
        rounds: of what takes seconds; what is shorter gets more of them, and what is longer fewer.
    """

    prompt_tokens: int = 128
    new_tokens: int = 128
    concurrency: tuple[int, ...] = (1, 8, 32)
    curve: tuple[int, ...] = (2, 4, 16, 64)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    rounds: int = 2

    def rounds_at(self, requests: int) -> int:
        """Return how many rounds so many requests at once get."""
        return self.rounds if requests <= 8 else min(self.rounds, 2)

    def rounds_of(self, length: int) -> int:
        """Return how many rounds a single prompt of so many tokens gets."""
        return self.rounds * 2 - 1 if length <= 512 else min(self.rounds, 2) if length <= 1024 else 1


QUICK = Settings(new_tokens=32, concurrency=(1, 8), curve=(2, 4), lengths=(64, 256, 1024), rounds=1)
TINY = Settings(prompt_tokens=16, new_tokens=4, concurrency=(1, 2), curve=(3,), lengths=(16, 32), rounds=1)


class Measuring:
    """One run over sides that are loaded and stopped; each method returns every side's rounds."""

    def __init__(self, settings: Settings, sides: dict[str, Running], say: Callable[[str], None]) -> None:
        self._settings = settings
        self._sides = sides
        self._all = [name for name, side in sides.items() if not side.spec.prefix_only]
        self._say = say
        # English prose that comes with Python: a peer that speculates finds in it what it finds in real text.
        with sides[OURS].awake():
            self._corpus = sides[OURS].ask("tokenize", text="\n".join(topics.values())[:300_000])["ids"]

    def concurrency(self, requests: int, rounds: int) -> Rounds:
        """So many requests at once."""
        settings = self._settings

        def measure(name: str, number: int) -> Figures:
            prompts = self._texts(requests, settings.prompt_tokens, "concurrency", requests, number)
            return self._ask(name, prompts=prompts, new_tokens=settings.new_tokens)

        return self._rounds(f"{requests} at once", self._all, rounds, measure)

    def first_token(self, length: int) -> Rounds:
        """One prompt, and one token for it."""

        def measure(name: str, number: int) -> Figures:
            return self._ask(name, prompts=self._texts(1, length, "length", length, number), new_tokens=1)

        return self._rounds(f"a prompt of {length}", self._all, self._settings.rounds_of(length), measure)

    def prefix(self) -> Rounds:
        """The time to a first token for the first prompt with a long beginning, and for the next with it."""
        names = [name for name, side in self._sides.items() if side.spec.prefix_cache]

        def measure(name: str, number: int) -> Figures:
            [prefix] = self._texts(1, PREFIX_TOKENS, "prefix", number)
            ends = self._texts(2, OWN_TOKENS, "end", number)
            first, following = (
                self._ask(name, prompts=[prefix + end], new_tokens=1)["first_token_ms"] for end in ends
            )
            return {"first_ms": first, "next_ms": following, "ratio": first / following}

        return self._rounds("a shared prefix", names, self._settings.rounds * 2 - 1, measure)

    def structured(self, requests: int) -> Rounds:
        """Our engine with and without a JSON Schema; the rounds' names are "free" and "schema"."""
        settings = self._settings

        def measure(name: str, number: int) -> Figures:
            # Each has prompts of its own, lest the second find the first one's in the prefix cache.
            prompts = self._texts(requests, settings.prompt_tokens, "structured", name, requests, number)
            schema = SCHEMA if name == "schema" else None
            return self._ask(OURS, prompts=prompts, new_tokens=settings.new_tokens, schema=schema)

        # The first compiles the schema, which a server does once.
        self._ask(OURS, prompts=self._texts(1, 16, "schema"), new_tokens=2, schema=SCHEMA)
        return self._rounds(
            f"structured output, {requests} at once",
            ["free", "schema"],
            settings.rounds * 2 - 1,  # the difference is smaller than one round's noise
            measure,
        )

    def _rounds(
        self, title: str, names: list[str], count: int, measure: Callable[[str, int], Figures]
    ) -> Rounds:
        return take_turns(title, names, count, measure, self._say)

    def _ask(self, name: str, **arguments: Any) -> Figures:
        with self._sides[name].awake():
            return self._sides[name].ask("generate", **arguments)

    def _texts(self, count: int, length: int, *key: object) -> list[list[int]]:
        """Return pieces of the corpus: the same for the same key, and no two that begin alike."""
        starts = random.Random(repr(key)).sample(range(len(self._corpus) - length), count)
        return [self._corpus[start : start + length] for start in starts]
