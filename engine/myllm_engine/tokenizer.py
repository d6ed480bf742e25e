"""Turn text into token ids and back, and chat messages into prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Tokenizer:
    """Wrap a transformers tokenizer; safe to use from several threads."""

    chat_template: str | None
    eos_token_ids: frozenset[int]
    vocab_size: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        raise NotImplementedError

    def token_text(self, token_id: int) -> str:
        """Return the decoded text of one token; it may hold U+FFFD."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of one token."""
        raise NotImplementedError

    def is_special(self, token_id: int) -> bool:
        """Tell whether a token is left out when special tokens are skipped."""
        raise NotImplementedError

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the prompt text of a conversation."""
        raise NotImplementedError

    def encode_chat(self, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
        """Return `encode(render_chat(messages, **kwargs), add_special_tokens=False)`."""
        raise NotImplementedError
