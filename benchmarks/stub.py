"""A server that answers at once, with canned bytes: what a call then costs is the client's own.

    python -m benchmarks.stub

It prints its port, and ends when its standard input does, so that it cannot outlive whoever started it.
It speaks as vLLM does: chat completions, `/version` and `/v1/models`. Streams of `CHUNKS` chunks go out in
one write a chunk (as servers send them) or, for the model `COALESCED`, all in one write.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

TEXT = "Paris is the capital of France."
CHUNKS = 2000
# Several words, for LiteLLM breaks off a stream that repeats one.
WORDS = (" The", " capital", " of", " France", " is", " Paris", ".", "\n")
STREAM_TEXT = "".join(WORDS) * (CHUNKS // len(WORDS))
MODEL, COALESCED = "separate", "coalesced"


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _response(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def _piece(data: bytes) -> bytes:
    """Return `data` as one event, in one chunk of the chunked transfer coding."""
    event = b"data: %s\n\n" % data
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _piece(_json(_answer("chat.completion.chunk", choice)))


def _answer(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1700000000, "model": MODEL, "choices": [choice]}


_CHOICE = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
_USAGE = {"usage": {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}}
_CHAT = _response(_json({**_answer("chat.completion", _CHOICE), **_USAGE}))
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_STREAM_CHUNKS = [_chunk({"content": word}) for word in WORDS] * (CHUNKS // len(WORDS))
_STREAM_END = _chunk({}, "stop") + _piece(b"[DONE]") + b"0\r\n\r\n"
_STREAM_WHOLE = b"".join([_STREAM_HEAD, *_STREAM_CHUNKS, _STREAM_END])
_GETS = {
    b"/version": _response(_json({"version": "0.14.0"})),
    b"/v1/models": _response(
        _json({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]})
    ),
}
_NOT_FOUND = _response(b'{"detail":"Not Found"}', b"404 Not Found")


class Stub(asyncio.Protocol):
    """One connection: keep-alive, one request after the other."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            size = _content_length(head)
            body = self._buffer[end + 4 : end + 4 + size]
            if len(body) < size:
                return
            self._buffer = self._buffer[end + 4 + size :]
            self._reply(head, body)

    def _reply(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            self._transport.write(_GETS.get(path, _NOT_FOUND))
        elif path != b"/v1/chat/completions":
            self._transport.write(_NOT_FOUND)
        elif b'"stream"' not in body or not (request := json.loads(body)).get("stream"):
            self._transport.write(_CHAT)
        elif request["model"] == COALESCED:
            self._transport.write(_STREAM_WHOLE)
        else:
            self._write_next(iter([_STREAM_HEAD, *_STREAM_CHUNKS, _STREAM_END]))

    def _write_next(self, pieces: Iterator[bytes]) -> None:
        """Write one piece a turn of the loop: uvloop joins what one turn writes into one packet."""
        piece = next(pieces, None)
        if piece is not None and not self._transport.is_closing():
            self._transport.write(piece)
            asyncio.get_running_loop().call_soon(self._write_next, pieces)


def _content_length(head: bytes) -> int:
    _, name, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if name else 0


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())


if __name__ == "__main__":
    main()
