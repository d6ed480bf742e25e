"""Describe the messages of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..fields import StrictModel, refusal
from .vision import ImagePart


class TextPart(StrictModel):
    """Hold a piece of a message's text."""

    type: Literal["text"]
    text: str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(StrictModel):
    """Hold one message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": (),
        "tool_call_id": (),
        "tool_calls": ([],),
    }
    # Past thoughts and refusals are not part of what templates of non-reasoning models render.
    no_effect: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "reasoning", "reasoning_content", "refusal"}
    )

    role: str
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role in ("tool", "function"):
            raise refusal(f"Messages of the role {role!r} are not supported by this server yet")
        if role not in ("system", "developer", "user", "assistant"):
            raise refusal(f"Unknown role {role[:50]!r}; the roles are system, developer, user and assistant")
        return role

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, content: Any) -> Any:
        if isinstance(content, list):
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(kind, str) and kind not in ("text", "image_url"):
                    raise refusal(
                        f"Content parts of the type {kind[:50]!r} are not supported by this server yet"
                    )
        return content

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None:
            raise refusal("`content` is required", "content")
        return self

    @property
    def image_urls(self) -> list[str]:
        """Return where the message's images are, in their order."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it; they read the parts of a content or its text.

        `developer` is what OpenAI renamed `system` to; templates know the old name.
        """
        if isinstance(self.content, list):
            content: Any = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in self.content
            ]
        else:
            content = self.content or ""
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        return message
