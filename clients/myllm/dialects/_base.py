"""What a dialect is, and what dialects share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic_core import from_json

from ..errors import InvalidResponseError, UnsupportedFeatureError, short
from ..params import Parameters
from ..types import Answer, ChatChunk, CompletionChunk
from ..wire import Call, Reply, ServerInfo, WireRequest


class _Done:
    """The type of `DONE`."""


DONE: Final = _Done()
"""What a chunk reader returns for the event that ends a stream."""


@dataclass(frozen=True, slots=True)
class ServerWords:
    """A server's error, out of whatever shape it has; `param` is the field that it complains of."""

    message: str | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None


class ChunkReader(Protocol):
    """Reads the events of one stream, in order."""

    def read(self, data: bytes) -> ChatChunk | CompletionChunk | _Done | None:
        """Return the chunk in an event's data, `DONE` at the stream's end, or None for nothing to tell.

        Raises:
            InvalidResponseError: the data is not of this API.
            APIStatusError: the event is an error.
        """

    @property
    def complete(self) -> bool:
        """Whether what came so far is a whole answer (the stream may then just end)."""

    @property
    def ended(self) -> bool:
        """Whether nothing can follow, though no event says so."""


class Dialect(Protocol):
    """A kind of server."""

    name: str

    def requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """Return the requests that make up a call: one, unless the server cannot do `n` at once.

        Args:
            call: what is asked, of whatever kind.
            server: who is asked; only its dialect is known unless `depends_on_server(call)` had it asked.

        Raises:
            UnsupportedFeatureError: the server has no word for something that would matter.
        """

    def depends_on_server(self, call: Call) -> bool:
        """Whether `requests` needs more of `server` than its dialect: its version or its limits.

        The flow then asks the server first, once for each endpoint.
        """

    def answer(self, call: Call, replies: Sequence[Reply]) -> Answer:
        """Read the replies to `requests(call, server)`, in order.

        Raises:
            InvalidResponseError: a body of another API.
        """

    def reader(self, call: Call) -> ChunkReader:
        """Return a reader for the events of the stream of `call`."""

    def server_words(self, body: Any) -> ServerWords:
        """Read an error body (parsed JSON, or text)."""


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "min_tokens": (0,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "mirostat": (0,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "watermark": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "ignore_eos": (False,),
    "logprobs": (False,),
    "echo": (False,),
    "suffix": ("",),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (-1,),
    "response_format": ({"type": "text"},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "tools": ([],),
    "priority": (0,),
}
"""Values that change nothing: a server without the parameter obeys them by doing nothing."""


def effective(params: Parameters) -> dict[str, Any]:
    """Return the parameters that are set to something that changes the answer."""
    return {k: v for k, v in params.set_values().items() if not is_neutral(k, v)}


def is_neutral(name: str, value: Any) -> bool:
    """Whether a parameter's value is the same as not having it."""
    # `type` keeps True apart from 1 and False from 0.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL.get(name, ())
    )


def refuse(name: str, value: Any, dialect: str, where: str, instead: str = "") -> UnsupportedFeatureError:
    """Return the error for a parameter that the server has no word for."""
    return UnsupportedFeatureError(
        f"`{name}={short(value)}`: {where} of {dialect!r} servers has no such parameter, so nothing was "
        "sent.",
        param=name,
        hint=instead or "Leave it out, or send the server's own field with `extra_body={…}`.",
    )


def load_json(body: bytes) -> Any:
    """Parse a body that must be JSON.

    Raises:
        InvalidResponseError: it is not.
    """
    try:
        try:
            return from_json(body)  # twice as fast
        except ValueError:
            return json.loads(body)  # knows lone surrogates, which models cut in two
    except ValueError:
        raise InvalidResponseError(
            f"The answer is not JSON: {short(body[:1000].decode('utf-8', 'replace'))}.",
            hint="Does `url` lead to an LLM server, and not to a web page or a proxy in front of it?",
        ) from None
