"""The lines of OpenAI's batch files: what is asked, and what is written about it.

Formats: https://platform.openai.com/docs/api-reference/batch/request-input and …/request-output
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ..errors import APIStatusError, InvalidParameterError, MyLLMError
from ..types import Answer, ChatChoice, ChatCompletion, Completion, CompletionChoice

PREFIX = b'{"id": "batch_req_'
"""How every line that `success` or `failure` makes begins, once it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLine:
    """One line of an input file.

    Attributes:
        number: of the line, from 1.
        id: names the request as it stands, with the model that it goes to; its output line has the same.
        custom_id: the author's name for it, None where the line is so bad that it has none.
        content: the line's JSON object, or None.
        error: what is wrong with it, or None.
    """

    number: int
    id: str
    custom_id: str | None = None
    content: dict[str, Any] | None = None
    error: InvalidParameterError | None = None


def read_line(line: bytes, number: int, model: str | None) -> InputLine:
    """Read one line; what is wrong with it is noted, not raised. `model` is for bodies without one."""
    try:
        content = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as exc:
        return _bad(line, number, f"is not UTF-8 text: {exc.reason} at byte {exc.start + 1}")
    except json.JSONDecodeError as exc:
        return _bad(line, number, f"is not JSON: {exc.msg} at column {exc.colno}")
    except ValueError:  # what is left of them: Python reads no integer of thousands of digits
        return _bad(line, number, "is not JSON that can be read: a number has too many digits")
    except RecursionError:
        return _bad(line, number, "is not JSON that can be read: it is nested too deeply")
    if not isinstance(content, dict):
        return _bad(line, number, "is not a JSON object, {…}")
    custom_id = content.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return _bad(line, number, f"has no `custom_id`, a text: {custom_id!r}", content)
    body = content.get("body")
    named = isinstance(body, dict) and body.get("model") is not None
    return InputLine(
        number=number,
        id=_digest(line.strip(), b"" if named or model is None else model.encode()),
        custom_id=custom_id,
        content=content,
    )


def _bad(line: bytes, number: int, what: str, content: dict[str, Any] | None = None) -> InputLine:
    error = InvalidParameterError(f"Line {number} {what}.")
    return InputLine(
        number=number, id=_digest(line.strip(), b"line %d" % number), content=content, error=error
    )


def _digest(*parts: bytes) -> str:
    return "batch_req_" + hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def success(line: InputLine, answer: Answer) -> dict[str, Any]:
    """Return the output line for an answer."""
    response = {"status_code": 200, "request_id": answer.request_id, "body": _body(answer)}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}


def _body(answer: Answer) -> dict[str, Any]:
    """Return an answer as the server wrote it, where that is OpenAI's form, with what we put right in it."""
    raw = answer.raw
    if not isinstance(raw, dict) or "object" not in raw:
        return answer.model_dump(exclude_none=True)
    if not isinstance(answer, ChatCompletion | Completion):
        return raw
    return {**raw, "choices": list(map(_choice, raw["choices"], answer.choices))}


def _choice(given: dict[str, Any], choice: ChatChoice | CompletionChoice) -> dict[str, Any]:
    """Return a choice with the text cut at its stop string, the reason for its end by OpenAI's name, …"""
    mended = {**given, "finish_reason": choice.finish_reason}
    if choice.stop_reason is not None:
        mended["stop_reason"] = choice.stop_reason
    if isinstance(choice, ChatChoice):
        mended["message"] = {**(given.get("message") or {}), "content": choice.message.content}
    else:
        mended["text"] = choice.text
    # The completion endpoint's older form of them, parallel lists, is left as it is.
    if choice.logprobs is not None and "content" in given["logprobs"]:
        mended["logprobs"] = choice.logprobs.model_dump(exclude_none=True)
    return mended


def failure(line: InputLine, error: Exception) -> dict[str, Any]:
    """Return the output line for an error: the server's answer, if there was one, and what to do about it."""
    response = None
    if isinstance(error, MyLLMError) and error.status is not None:
        body = error.body if isinstance(error, APIStatusError) else None
        response = {"status_code": error.status, "request_id": error.request_id, "body": body}
    words = {"code": type(error).__name__, "message": str(error), "line": line.number}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": words}
