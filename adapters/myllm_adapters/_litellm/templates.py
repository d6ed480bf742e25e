"""Prompt templates that a user registers with LiteLLM, for models that have none of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import litellm
from litellm.constants import known_tokenizer_config
from litellm.litellm_core_utils.prompt_templates.factory import custom_prompt

from myllm import InvalidParameterError

# LiteLLM's own knowledge of some models' templates, which is not the user's wish.
_KNOWN = dict(known_tokenizer_config)
_NEED_A_TEMPLATE = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "reasoning_effort",
)


def registered_prompt(
    provider: str, model: str, messages: Sequence[Mapping[str, Any]], of_call: Mapping[str, Any] | None
) -> str | None:
    """Return the prompt that the template of a model makes of messages; None when there is no template.

    The template is the call's (`roles=`, `initial_prompt_value=`, …), or what
    `litellm.register_prompt_template` put into `litellm.custom_prompt_dict`, under the model's name with or
    without the provider.

    Raises:
        InvalidParameterError: a message holds more than text, for which such a template has no place.
    """
    template = (of_call or {}).get(model) or _of(litellm.custom_prompt_dict, provider, model)
    if not template:
        return None
    for index, message in enumerate(messages):
        if not _is_text(message.get("content")) or message.get("tool_calls"):
            raise InvalidParameterError(
                f"`messages[{index}]` holds more than text, and the prompt template registered for {model!r} "
                "has a place for text only.",
                param="messages",
            )
    return custom_prompt(
        role_dict=template.get("roles") or {},
        messages=[dict(message) for message in messages],
        initial_prompt_value=template.get("initial_prompt_value") or "",
        final_prompt_value=template.get("final_prompt_value") or "",
        bos_token=template.get("bos_token") or "",
        eos_token=template.get("eos_token") or "",
    )


def check_arguments(model: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what only a chat template carries out.

    Raises:
        InvalidParameterError: naming the first such argument.
    """
    for name in _NEED_A_TEMPLATE:
        if arguments.get(name) is not None:
            raise InvalidParameterError(
                f"`{name}` is for the server's chat template, but LiteLLM has a template of {model!r}.",
                param=name,
                hint="Leave one of them out.",
            )


def registered_chat_template(provider: str, model: str) -> str | None:
    """Return the Jinja template that `litellm.register_prompt_template(tokenizer_config=…)` was given."""
    entry = _of(known_tokenizer_config, provider, model)
    if not entry or any(entry is known for known in _KNOWN.values()):
        return None
    template = (entry.get("tokenizer") or {}).get("chat_template")
    return template if isinstance(template, str) else None


def _of(registered: Mapping[str, Any], provider: str, model: str) -> Any:
    if not registered:
        return None
    return registered.get(model) or registered.get(f"{provider}/{model}")


def _is_text(content: Any) -> bool:
    if isinstance(content, str):
        return True
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    )
