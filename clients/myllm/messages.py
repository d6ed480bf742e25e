"""What a conversation must look like: checked, and made fit for chat templates that are strict about roles.

Gemma's and the older Mistral templates refuse a system message, and want user and assistant to take turns
(autogen#1037, autogen#3597, vllm#6862); Qwen's want a system message only at the beginning. A policy
rewrites a conversation accordingly, and loses nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from .errors import InvalidParameterError, MyLLMError, short

MessagePolicy = Literal["as_is", "merge_system", "alternate", "auto"]
"""What is done to a conversation before it is sent:

- "as_is": nothing.
- "merge_system": a system message's text goes in front of the next user message.
- "alternate": that, and neighbouring messages of one role become one, and the user begins.
- "auto": nothing, until the server refuses the roles; then what `refused_roles` says.
"""
POLICIES: tuple[MessagePolicy, ...] = ("as_is", "merge_system", "alternate", "auto")

_SYSTEM = frozenset({"system", "developer"})
_BETWEEN = "\n\n"
_THOUGHTS = ("reasoning", "reasoning_content")

# The words of the models' own chat templates: Mistral, Llama 2, Gemma ("Conversation roles must alternate
# user/assistant/…", "After the optional system message, conversation roles must alternate …"); Gemma
# ("System role not supported"); TGI's templates and Mistral's ("Only user and assistant roles are supported",
# "Only user, assistant and tool roles are supported, got system."); Qwen ("System message must be at the
# beginning."); mistral-common ("Unexpected role 'system' after role 'user'").
_ALTERNATE = re.compile(r"roles must alternate|must alternate between|must start with a user message", re.I)
_NO_SYSTEM = re.compile(
    r"system (role|message|prompt)s? (is |are )?not supported|only user(,| and) assistant (and tool )?roles"
    r"|system message must be at the (beginning|start)|unexpected role '?system",
    re.I,
)


def checked_messages(subject: Any) -> list[dict[str, Any]]:
    """Return a conversation as a list of copies; a text is the user's one message.

    Raises:
        InvalidParameterError: it is neither a text nor a list of messages.
    """
    if isinstance(subject, str):
        return [{"role": "user", "content": subject}]
    if isinstance(subject, Mapping):
        raise _no_messages(f"`messages={short(subject)}` is one message: put it into a list.")
    if not isinstance(subject, Sequence) or isinstance(subject, bytes | bytearray):
        raise _no_messages(f"`messages={short(subject)}` is neither a text nor a list of messages.")
    if not subject:
        raise _no_messages("`messages` is empty.")
    return [_checked(position, message) for position, message in enumerate(subject)]


def _checked(position: int, message: Any) -> dict[str, Any]:
    if isinstance(message, BaseModel):  # an answer's message, put back into the conversation
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        problem = " is no mapping."
    elif message.get("role") is None:
        problem = " has no `role`."
    elif not isinstance(message["role"], str) or not message["role"]:
        problem = ": a `role` is a text."
    elif not isinstance(message.get("content"), str | list | tuple | None):
        problem = ": `content` is a text or a list of parts."
    else:
        return dict(message)
    raise _no_messages(f"`messages[{position}]={short(message)}`{problem}")


def _no_messages(words: str) -> InvalidParameterError:
    return InvalidParameterError(
        words,
        param="messages",
        hint="Give a text, or a list of messages such as {'role': 'user', 'content': 'Hello'}.",
    )


def checked_policy(policy: str) -> MessagePolicy:
    """Return a policy.

    Raises:
        InvalidParameterError: no policy of that name.
    """
    for known in POLICIES:
        if policy == known:
            return known
    raise InvalidParameterError(
        f"`message_policy={policy!r}` must be one of {', '.join(map(repr, POLICIES))}.",
        param="message_policy",
    )


def apply(policy: MessagePolicy, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation rewritten by a policy; the caller's messages stay as they are.

    Contents are joined with an empty line between them; if one of two is a list of parts, so is the result.
    Messages with a `name` that become one keep their names as "name: " in front of their texts. Tool
    results and what comes right after them stay where they are: templates count them apart.

    Raises:
        InvalidParameterError: two messages must become one, and both have a field of which there can be one.
    """
    if policy in ("as_is", "auto"):
        return [dict(message) for message in messages]
    merged = _without_system(messages)
    return merged if policy == "merge_system" else _in_turns(merged)


def refused_roles(error: MyLLMError) -> MessagePolicy | None:
    """Return the policy that mends what a server refused, or None when it refused something else."""
    return policy_for(error.server_message or "")


def policy_for(words: str) -> MessagePolicy | None:
    """Return the policy that the server's words call for, or None."""
    if _ALTERNATE.search(words):
        return "alternate"
    return "merge_system" if _NO_SYSTEM.search(words) else None


def _without_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put each system message in front of the next user message, or in a user's place where none follows."""
    out: list[dict[str, Any]] = []
    waiting: dict[str, Any] | None = None
    for message in messages:
        if message["role"] in _SYSTEM:
            system = {**message, "role": "user"}
            waiting = system if waiting is None else _joined(waiting, system)
        elif message["role"] == "user" and waiting is not None:
            out.append(_joined(waiting, message))
            waiting = None
        else:
            out.append(dict(message))
    return out if waiting is None else [*out, waiting]


def _in_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join neighbours of one role, and let the user begin."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if out and out[-1]["role"] == message["role"] and message["role"] in ("user", "assistant"):
            out[-1] = _joined(out[-1], message)
        else:
            out.append(dict(message))
    if out and out[0]["role"] == "assistant":
        # Mistral's and Gemma's templates want the user at every even place; nothing was said there.
        out.insert(0, {"role": "user", "content": ""})
    return out


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two messages of one role as one."""
    first, second = ({k: v for k, v in one.items() if v is not None} for one in (first, second))
    if first.get("name") != second.get("name"):
        first, second = named(first), named(second)
    out = {**first, **second, "role": first["role"]}
    for field in set(first) & set(second) - {"role", "content", "tool_calls"}:
        if field in _THOUGHTS:
            out[field] = _contents(first[field], second[field])
        elif first[field] != second[field]:
            raise InvalidParameterError(
                f"Two neighbouring messages must become one for `message_policy`, and both have `{field}`: "
                f"{short(first[field])} and {short(second[field])}.",
                param="messages",
                hint="Join them yourself, or take `message_policy='as_is'`.",
            )
    if first.get("tool_calls") and second.get("tool_calls"):
        out["tool_calls"] = [*first["tool_calls"], *second["tool_calls"]]
    elif calls := first.get("tool_calls") or second.get("tool_calls"):
        out["tool_calls"] = calls
    out["content"] = _contents(first.get("content"), second.get("content"))
    return out


def named(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message that says its name in its text."""
    out = {field: value for field, value in message.items() if field != "name"}
    if message.get("name"):
        label = f"{message['name']}: "
        content = message.get("content")
        if isinstance(content, str) or content is None:
            out["content"] = label + (content or "")
        else:
            out["content"] = _contents(label, content, between="")
    return out


def _contents(first: Any, second: Any, between: str = _BETWEEN) -> Any:
    """Join two contents, each a text, a list of parts, or nothing."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return first + between + second
    parts = [*_parts(first), *_parts(second)]
    seam = len(_parts(first))
    before, after = parts[seam - 1], parts[seam]
    if _is_text(before) and _is_text(after):
        parts[seam - 1 : seam + 1] = [{**before, **after, "text": before["text"] + between + after["text"]}]
    return parts


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
