"""The file of a cassette: exchanges as JSON that people can read and compare, with the secrets taken out."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidParameterError, short
from .redaction import secrets_of, spelled
from .transport.http import encoded
from .transport.options import HTTPOptions
from .wire import Send

FORMAT = 1
MASK = "[secret]"
"""What stands in the file in a secret's place."""
KEPT_HEADERS = ("content-type", "content-encoding", "retry-after")
"""Headers of replies that are recorded; of requests none is."""

_SHORTEST = 6
"""Characters that a key must have to be taken out: a placeholder like "none" stands in too many texts."""
_NUMBERS = re.compile(r"\[\n\s*(-?\d[-+.\deE]*(?:,\n\s*-?\d[-+.\deE]*)*)\n\s*\]")


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """A request and the reply that it got.

    Attributes:
        content: the request's body: `{"json": …}`, `{"text": …}`, `{"base64": …}`, or `{}`.
        masked: in the file, `MASK` stands for secrets in the request; else it is the user's own word.
        status: of the reply; 0 as long as there is none.
        pieces: the reply's body as it came.
        complete: False: its reader left before the body's end.
        plays: how often it was replayed.
    """

    method: str
    path: str
    content: Mapping[str, Any]
    masked: bool = False
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False
    plays: int = 0

    @classmethod
    def asked(cls, action: Send) -> Exchange:
        """Begin an exchange with its request.

        Raises:
            InvalidParameterError: the request's body is nothing that JSON can say.
        """
        _, content = encoded(action)
        request = action.request
        return cls(method=request.method, path=request.path, content=_described(content or b""))

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Add the head of the reply."""
        self.status = status
        self.headers = {name: headers[name] for name in KEPT_HEADERS if name in headers}


class Secrets:
    """The texts that must not come into a file, however they are written in it. Grows with the requests."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._words: set[str] = set()
        for word in words:
            self._add(word)

    def learn(self, action: Send, options: HTTPOptions) -> None:
        """Add what a request authenticates itself with."""
        for word in secrets_of(action.headers, [action.endpoint.api_key], options):
            if len(word) >= _SHORTEST:
                self._add(word)

    def _add(self, word: str) -> None:
        self._words |= {word, base64.b64encode(word.encode()).decode()}

    def spans(self, data: bytes) -> list[tuple[int, int]]:
        """Return where secrets are in `data`: beginnings and ends."""
        words = sorted(filter(None, self._words), key=len, reverse=True)
        if not words:
            return []
        return [found.span() for found in re.finditer("|".join(map(spelled, words)).encode(), data)]

    def strip(self, data: bytes) -> bytes:
        """Return `data` with `MASK` for each secret."""
        for start, end in reversed(self.spans(data)):
            data = data[:start] + MASK.encode() + data[end:]
        return data

    def strip_text(self, text: str) -> str:
        """See `strip`."""
        return self.strip(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def strip_json(self, value: Any) -> Any:
        """See `strip`; for the texts in a JSON value."""
        if isinstance(value, str):
            return self.strip_text(value)
        if isinstance(value, Mapping):
            return {self.strip_text(key): self.strip_json(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.strip_json(inner) for inner in value]
        return value

    def strip_pieces(self, pieces: list[bytes]) -> list[bytes]:
        """See `strip`; also where a secret is cut in two, and then stays in the piece that it began in."""
        whole = b"".join(pieces)
        ends = list(itertools.accumulate(map(len, pieces)))
        for start, stop in self.spans(whole):
            ends = [stop if start < end < stop else end for end in ends]
        return [self.strip(whole[a:b]) for a, b in itertools.pairwise([0, *ends]) if a < b]


def load(path: Path) -> list[Exchange]:
    """Read a cassette.

    Raises:
        InvalidParameterError: the file is no cassette, or one of a later version.
    """
    try:
        tape = json.loads(path.read_bytes())
        version = tape["myllm_cassette"]
        if version == FORMAT:
            return [_read(entry) for entry in tape["exchanges"]]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidParameterError(
            f'{str(path)!r} is no cassette ({type(exc).__name__}: {exc}). Record it anew with mode="record".',
            param="path",
        ) from exc
    raise InvalidParameterError(
        f"{str(path)!r} is a cassette of format {version!r}; this version of myllm reads {FORMAT}.",
        param="path",
    )


def save(path: Path, exchanges: Iterable[Exchange], secrets: Secrets) -> None:
    """Write a cassette: all of it, or (disk full, killed) nothing."""
    tape = {"myllm_cassette": FORMAT, "exchanges": [_written(one, secrets) for one in exchanges]}
    text = _NUMBERS.sub(_on_one_line, json.dumps(tape, ensure_ascii=False, allow_nan=False, indent=2))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            # Half a surrogate pair, which models do write, is no UTF-8: it becomes JSON's escape.
            file.write(text.encode(errors="backslashreplace") + b"\n")
        Path(draft).chmod(0o644)  # what `mkstemp` makes is the owner's alone
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def differences(recorded: Any, sent: Any, where: str = "") -> Iterator[str]:
    """Yield how two JSON values differ, one line for each place."""
    if isinstance(recorded, Mapping) and isinstance(sent, Mapping):
        for key in {**recorded, **sent}:
            place = f"{where}.{key}" if where else str(key)
            if key not in sent:
                yield f"`{place}` is {short(recorded[key])} in the cassette, and was not sent"
            elif key not in recorded:
                yield f"`{place}` is not in the cassette, and was sent as {short(sent[key])}"
            else:
                yield from differences(recorded[key], sent[key], place)
    elif isinstance(recorded, list) and isinstance(sent, list) and len(recorded) == len(sent):
        for index, (one, other) in enumerate(zip(recorded, sent, strict=True)):
            yield from differences(one, other, f"{where}[{index}]")
    elif recorded != sent:
        yield f"`{where}` is {short(recorded)} in the cassette, and was sent as {short(sent)}"


def _written(exchange: Exchange, secrets: Secrets) -> dict[str, Any]:
    plain = {"path": exchange.path, **exchange.content}
    stripped = secrets.strip_json(plain)
    request = {"method": exchange.method, **stripped}
    if exchange.masked or stripped != plain:
        request["masked"] = True
    response: dict[str, Any] = {"status": exchange.status, "headers": secrets.strip_json(exchange.headers)}
    if _is_stream(exchange.headers):
        response["pieces"] = [_piece(piece) for piece in secrets.strip_pieces(exchange.pieces)]
    else:
        response |= secrets.strip_json(_described(b"".join(exchange.pieces)))
    if not exchange.complete:
        response["closed_early"] = True
    return {"request": request, "response": response}


def _read(entry: Mapping[str, Any]) -> Exchange:
    request, response = dict(entry["request"]), entry["response"]
    return Exchange(
        method=request.pop("method"),
        path=request.pop("path"),
        masked=request.pop("masked", False),
        content=request,
        status=response["status"],
        headers=response["headers"],
        pieces=[
            piece.encode() if isinstance(piece, str) else base64.b64decode(piece["base64"])
            for piece in response.get("pieces", ())
        ]
        or [_bytes(response)],
        complete=not response.get("closed_early", False),
    )


def _is_stream(headers: Mapping[str, str]) -> bool:
    return any(kind in headers.get("content-type", "") for kind in ("event-stream", "ndjson"))


def _described(data: bytes) -> dict[str, Any]:
    """Return a body as the most readable of `json`, `text` and `base64`; {} for none."""
    if not data:
        return {}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return {"text": text}
    return {"json": value}


def _bytes(described: Mapping[str, Any]) -> bytes:
    if "json" in described:
        return json.dumps(described["json"], separators=(",", ":")).encode()
    if "text" in described:
        return str(described["text"]).encode()
    return base64.b64decode(described.get("base64", ""))


def _piece(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:  # cut in the middle of a character
        return {"base64": base64.b64encode(data).decode()}


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r",\s+", ", ", found[1]) + "]"
