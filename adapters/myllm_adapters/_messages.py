"""The parts of OpenAI's chat requests, which the adapters write their frameworks' messages and tools in.

Wire format: https://platform.openai.com/docs/api-reference/chat/create, with vLLM's additions for sound and
film (https://docs.vllm.ai, "Multimodal Inputs").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Part = dict[str, Any]
Row = dict[str, Any]

_AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}
# Where JSON Schema has schemas within schemas (2020-12, and `definitions` of older drafts).
_NAMED = ("properties", "$defs", "definitions")
_ONE = ("items", "additionalProperties")
_SEVERAL = ("anyOf", "oneOf", "prefixItems")
# An object whose properties come from more than one place cannot be closed at one of them.
_COMPOSED = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "additionalProperties",
     "unevaluatedProperties"}
)  # fmt: skip


def text_part(text: str) -> Part:
    """Return a piece of text."""
    return {"type": "text", "text": text}


def image_part(url: str, detail: str | None = None) -> Part:
    """Return an image; `url` may be one of the scheme `data:`."""
    return {"type": "image_url", "image_url": {"url": url, **({} if detail is None else {"detail": detail})}}


def audio_part(url: str) -> Part:
    """Return a sound: WAV and MP3 within a `data:` URL as OpenAI has it, anything else as vLLM has it."""
    head, _, data = url.partition(";base64,")
    kind = _AUDIO_FORMATS.get(head.removeprefix("data:"))
    if kind is not None:
        return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return {"type": "audio_url", "audio_url": {"url": url}}


def video_part(url: str) -> Part:
    """Return a film, as vLLM has it."""
    return {"type": "video_url", "video_url": {"url": url}}


def content(parts: Sequence[Part]) -> str | list[Part]:
    """Return a message's content: a single text as a string, which every server reads, else the parts."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return list(parts)


def tool_call(id: str, name: str, arguments: str) -> Part:
    """Return a call in an assistant's message.

    Chat templates read arguments as a JSON object, and servers refuse others. A model may have written others
    (a call that `max_tokens` cut off, for one): these go back as the text that they are, in an object, so
    that the conversation can go on with the error that the tool answered.
    """
    try:
        readable = isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        readable = False
    if not readable:
        arguments = json.dumps({"unreadable": arguments}, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments or "{}"}}


def tool_result(call_id: str, result: str | list[Part]) -> Row:
    """Return the message with what a tool answered."""
    return {"role": "tool", "tool_call_id": call_id, "content": result}


def function_tool(
    name: str, description: str | None, parameters: Mapping[str, Any] | None, **more: Any
) -> Part:
    """Return the description of a function; `parameters` is the JSON Schema of its arguments, an object's."""
    schema = {"type": "object", "properties": {}, **(parameters or {})}
    function = {"name": name, "description": description, "parameters": schema, **more}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON Schema whose objects have the properties that they name, and no others.

    Schemas of classes leave open what else an object may have. Held to such a schema, a small model goes on
    to invent properties, which the class then drops. Objects that say themselves what else they may have are
    left as they are.
    """
    out = dict(schema)
    for name in _NAMED:
        if isinstance(out.get(name), Mapping):
            out[name] = {key: _closed(inner) for key, inner in out[name].items()}
    for name in _ONE:
        if name in out:
            out[name] = _closed(out[name])
    for name in _SEVERAL:
        if isinstance(out.get(name), list):
            out[name] = [_closed(inner) for inner in out[name]]
    if "properties" in out and _COMPOSED.isdisjoint(out):
        out["additionalProperties"] = False
    return out


def _closed(schema: Any) -> Any:
    return closed(schema) if isinstance(schema, Mapping) else schema  # True and False are schemas, too
