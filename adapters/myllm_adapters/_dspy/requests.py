"""DSPy's `Request` as a call of `myllm.Client.chat`.

DSPy has no public writer for the direction from its `Request` to OpenAI's chat body; this is ours. What a
chat body cannot say is refused by name and never left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dspy import lm15

from .._messages import audio_part, function_tool, image_part, text_part, tool_result, video_part
from .._messages import content as one_or_more
from .parameters import PACK, SERVERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """What to ask the client: the messages, the parameters, and raw fields for the body."""

    model: str
    messages: list[dict[str, Any]]
    params: dict[str, Any]
    extra_body: dict[str, Any] = field(default_factory=dict)
    adaptations: tuple[lm15.Adaptation, ...] = ()


def chat_call(request: lm15.Request) -> ChatCall:
    """Translate a request.

    Raises:
        dspy.lm15.UnsupportedFeatureError: a part, tool or setting that OpenAI's chat API has no word for.
    """
    params, extra_body = _extensions(request.config)
    adaptations = _refuse_or_note(request.config)
    return ChatCall(
        model=request.model,
        messages=_messages(request),
        params={**_sampling(request.config), **_tools(request), **params},
        extra_body=extra_body,
        adaptations=adaptations,
    )


def _extensions(config: lm15.Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the raw fields that travelled beside DSPy's own settings."""
    params: dict[str, Any] = dict(config.extensions or {})
    metadata = dict(params.pop("metadata", None) or {})
    params.update(metadata.pop(PACK, None) or {})
    metadata.pop(SERVERS, None)  # for DSPy's cache alone
    extra_body = dict(params.pop("extra_body", None) or {})
    if metadata:
        params["metadata"] = metadata  # not a parameter of the SDK, which says so
    return params, extra_body


def _refuse_or_note(config: lm15.Config) -> tuple[lm15.Adaptation, ...]:
    for name in ("cache", "service_tier", "store"):
        if getattr(config, name) is not None:
            raise _unsupported(
                f"config.{name}",
                f"`{name}` is a setting of hosted services, which this server has no word for",
            )
    if config.probabilities == "required":
        raise _unsupported("config.probabilities", "`probabilities` cannot be measured over this API")
    notes = []
    if config.probabilities == "if_available":
        reason = "probabilities of declared keys cannot be measured over this API"
        notes.append(lm15.Adaptation("config.probabilities", "dropped", reason, asked="if_available"))
    if config.reasoning is not None and config.reasoning.summary in ("concise", "detailed"):
        summary, reason = config.reasoning.summary, "the server sends its reasoning as it is"
        notes.append(lm15.Adaptation("config.reasoning.summary", "substituted", reason, summary, "auto"))
    return tuple(notes)


def _sampling(config: lm15.Config) -> dict[str, Any]:
    params = {
        name: getattr(config, name)
        for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty",
                     "presence_penalty")
    }  # fmt: skip
    params["user"] = config.user_id
    if config.stop:
        params["stop"] = list(config.stop)
    if config.logprobs is not None:
        params["logprobs"], params["top_logprobs"] = True, config.logprobs
    if config.response_format is not None:
        params["response_format"] = _response_format(config.response_format)
    if config.reasoning is not None:
        if config.reasoning.thinking_budget is not None:
            raise _unsupported(
                "config.reasoning.thinking_budget",
                "`thinking_budget` has no common name among servers: send this server's with `extra_body`",
            )
        params["reasoning_effort"] = "none" if config.reasoning.is_off else config.reasoning.effort
    return {name: value for name, value in params.items() if value is not None}


def _response_format(given: dict[str, Any]) -> dict[str, Any]:
    if given["type"] != "json_schema":
        return given
    schema = {"name": given.get("name") or "response", "schema": given["schema"]}
    if "strict" in given:
        schema["strict"] = given["strict"]
    return {"type": "json_schema", "json_schema": schema}


def _tools(request: lm15.Request) -> dict[str, Any]:
    choice = request.config.tool_choice
    allowed = choice.allowed if choice is not None else ()
    tools = [_tool(tool) for tool in request.tools if not allowed or tool.name in allowed]
    params: dict[str, Any] = {"tools": tools} if tools else {}
    if choice is not None:
        # Of OpenAI's forms servers know the words and one function's name, and no list of allowed tools:
        # sending only the allowed ones says the same.
        one = choice.mode == "required" and len(allowed) == 1
        params["tool_choice"] = {"type": "function", "function": {"name": allowed[0]}} if one else choice.mode
        if choice.parallel is not None:
            params["parallel_tool_calls"] = choice.parallel
    return params


def _tool(tool: lm15.FunctionTool | lm15.BuiltinTool) -> dict[str, Any]:
    if isinstance(tool, lm15.BuiltinTool):
        raise _unsupported(
            f"tools[{tool.name}]", f"the built-in tool {tool.name!r} exists at hosted services only"
        )
    return function_tool(tool.name, tool.description, tool.parameters)


def _messages(request: lm15.Request) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if request.system:
        system = request.system
        rows.append({"role": "system", "content": system if isinstance(system, str) else _content(system)})
    for message in request.messages:
        if message.role == "tool":
            rows.extend(_tool_row(part) for part in message.parts)
        elif message.role == "assistant":
            rows.append(_assistant_row(message.parts))
        else:
            # Chat templates know `system`; `developer` is OpenAI's newer name of it.
            role = "system" if message.role == "developer" else message.role
            rows.append({"role": role, "content": _content(message.parts)})
    return rows


def _tool_row(part: Any) -> dict[str, Any]:
    if not isinstance(part, lm15.ToolResultPart):
        raise _unsupported("messages", f"a tool message holds tool results, not a {part.type} part")
    content = _content(part.content)
    if part.is_error:  # the wire has no flag for it
        if isinstance(content, str):
            content = f"[error] {content}"
        else:
            content = [text_part("[error]"), *content]
    return tool_result(part.id, content)


def _assistant_row(parts: Sequence[Any]) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for part in parts:
        if isinstance(part, lm15.TextPart | lm15.RefusalPart):
            texts.append(part.text)
        elif isinstance(part, lm15.DataPart):
            texts.append(_json(part.value))
        elif isinstance(part, lm15.ThinkingPart):
            thoughts.append(part.text)
        elif isinstance(part, lm15.ToolCallPart):
            function = {"name": part.name, "arguments": _json(part.input)}
            calls.append({"id": part.id, "type": "function", "function": function})
        elif not isinstance(part, lm15.CitationPart):  # a citation annotates text that is sent anyway
            raise _unsupported("messages", f"an assistant message cannot hold a {part.type} part")
    row: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) if texts else None}
    if any(thoughts):
        row["reasoning_content"] = "\n".join(thoughts)
    if calls:
        row["tool_calls"] = calls
    return row


def _content(parts: Sequence[Any]) -> str | list[dict[str, Any]]:
    return one_or_more([_block(part) for part in parts])


def _block(part: Any) -> dict[str, Any]:
    if isinstance(part, lm15.TextPart):
        return text_part(part.text)
    if isinstance(part, lm15.DataPart):
        return text_part(_json(part.value))
    if isinstance(part, lm15.ImagePart):
        return image_part(_url(part), part.detail)
    if isinstance(part, lm15.AudioPart):
        return audio_part(_url(part))
    if isinstance(part, lm15.VideoPart):
        return video_part(_url(part))
    raise _unsupported("messages", f"OpenAI's chat API has no place for a {part.type} part")


def _url(part: Any) -> str:
    return part.url if part.url is not None else f"data:{part.media_type};base64,{_base64(part)}"


def _base64(part: Any) -> str:
    if part.file_id is not None:
        raise _unsupported(
            "messages", f"a {part.type} part by `file_id` needs a file store; give its data or URL"
        )
    return part.data if part.data is not None else base64.b64encode(part.path.read_bytes()).decode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _unsupported(feature: str, why: str) -> lm15.UnsupportedFeatureError:
    return lm15.UnsupportedFeatureError(f"{why}; nothing was sent.", feature=feature)
