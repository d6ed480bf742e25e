"""A server that answers every request at once, for tests that kill it: `python replica.py PORT NAME`.

The path decides: `/v1/models`, else a chat completion whose text is NAME; a body with "stream" is streamed.
"""

from __future__ import annotations

import asyncio
import json
import sys


def _whole(name: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": name}, "finish_reason": "stop"}
    body = json.dumps(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body.encode(),
    )


def _streamed(name: str) -> bytes:
    def event(delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return b"data: %s\n\n" % json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode()

    events = [event({"role": "assistant", "content": name}, None), event({}, "stop"), b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(data), data) for data in events)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chunks + b"0\r\n\r\n"


class Replica(asyncio.Protocol):
    """Speaks as much HTTP as the client does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, separator, rest = self.buffer.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            if not separator or len(rest) < length:
                return
            body, self.buffer = rest[:length], rest[length:]
            self.transport.write(STREAMED if b'"stream":true' in body else WHOLE)  # type: ignore[attr-defined]


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    WHOLE, STREAMED = _whole(sys.argv[2]), _streamed(sys.argv[2])
    asyncio.run(main(int(sys.argv[1])))
