"""What LiteLLM's map of models is told of ours: what they cost (nothing) and what may be asked of them.

Whether a server really calls tools or keeps to a schema, the server says: it refuses what it cannot do. What
is written here is that the way there carries it. Whoever knows more of a model, or sells it, says so with
`litellm.register_model` or in a Router's `model_info`, which go before this.
"""

from __future__ import annotations

import re
from typing import Any

import litellm
from litellm.litellm_core_utils.fallback_generalizations import (
    get_fallback_generalization_rules,
    set_fallback_generalizations,
)

_ABILITIES: dict[str, Any] = {
    "supports_function_calling": True,
    "supports_parallel_function_calling": True,
    "supports_tool_choice": True,
    "supports_response_schema": True,
    "supports_system_messages": True,
    "supports_native_streaming": True,
    "input_cost_per_token": 0.0,
    "output_cost_per_token": 0.0,
    # LiteLLM warns of models whose price it knows but for these.
    "cache_creation_input_token_cost": 0.0,
    "cache_read_input_token_cost": 0.0,
}


def announce(provider: str) -> None:
    """Tell LiteLLM of all of a provider's models, before any of them is used."""
    name = f"myllm: {provider}"
    rules = [rule for rule in get_fallback_generalization_rules() if rule.get("name") != name]
    rule = {"name": name, "pattern": f"^{re.escape(provider)}/", "model_info": {"mode": "chat", **_ABILITIES}}
    set_fallback_generalizations([*rules, rule])


def describe(provider: str, model: str, mode: str) -> None:
    """Tell LiteLLM of one model that has answered.

    Its rules do not reach names that its map knows from elsewhere, and are gone when the map is loaded anew.
    """
    key = f"{provider}/{model}"
    if key not in litellm.model_cost:
        litellm.register_model({key: {"litellm_provider": provider, "mode": mode, **_ABILITIES}})
