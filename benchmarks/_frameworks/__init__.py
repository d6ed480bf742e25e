"""The frameworks' routes that are compared: through our adapters, and each framework's own.

Each is used as its documentation says, and keeps what it makes, as a program does. A framework is imported
when its route is used: a process holds the one that it measures.
"""

from __future__ import annotations

from benchmarks._frameworks import of_ag2, of_autogen, of_dspy, of_litellm
from benchmarks._peers import Peer

ROUTES: dict[str, type[Peer]] = {
    "dspy, myllm": of_dspy.DSPyMyLLM,
    "dspy, lm15": of_dspy.DSPyLM15,
    "dspy, litellm": of_dspy.DSPyLiteLLM,
    "litellm, myllm": of_litellm.LiteLLMMyLLM,
    "litellm, openai": of_litellm.LiteLLMOpenAI,
    "litellm, bare provider": of_litellm.LiteLLMBare,
    "litellm, empty provider": of_litellm.LiteLLMEmpty,
    "autogen, myllm": of_autogen.AutoGenMyLLM,
    "autogen, openai": of_autogen.AutoGenOpenAI,
    "agentchat, myllm": of_autogen.AgentChatMyLLM,
    "agentchat, openai": of_autogen.AgentChatOpenAI,
    "ag2, myllm": of_ag2.AG2MyLLM,
    "ag2, bare client": of_ag2.AG2Bare,
}

FRAMEWORKS = {
    framework: [route for route in ROUTES if route.startswith(f"{framework}, ")]
    for framework in dict.fromkeys(route.partition(",")[0] for route in ROUTES)
}
"""The routes of each framework, ours first."""
