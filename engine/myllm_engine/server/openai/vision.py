"""Put the images of a conversation into its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from fastapi import Request as HttpRequest
from pydantic import Field

from ...errors import InvalidRequestError
from ..fields import StrictModel
from ..generation import until_disconnect
from ..images import load_images
from ..settings import ServerContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...models.vision import ExpandedPrompt


class ImageURL(StrictModel):
    """Say where an image is."""

    # Images are always seen as the model was trained to see them.
    no_effect: ClassVar[frozenset[str]] = frozenset({"detail"})

    url: str = Field(description="`data:image/png;base64,…`, or `https://…` where the server allows it.")


class ImagePart(StrictModel):
    """Hold an image within a message."""

    # Prefixes are cached wherever they are the same, and images known by their pixels.
    no_effect: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint", "uuid"})

    type: Literal["image_url"]
    image_url: ImageURL


class WithImages(Protocol):
    """Be a message that may hold images."""

    @property
    def image_urls(self) -> list[str]:
        """Return where the message's images are, in their order."""


def check_sight(messages: Sequence[WithImages], context: ServerContext) -> None:
    """Refuse images for a model that sees none."""
    for number, message in enumerate(messages):
        if message.image_urls and context.engine.vision is None:
            raise InvalidRequestError(
                f"{context.engine.model_name} reads text alone, and the message holds an image",
                param=f"messages[{number}].content",
            )


async def expand_images(
    messages: Sequence[WithImages], prompt: str, context: ServerContext, http: HttpRequest
) -> ExpandedPrompt | None:
    """Load the images of messages, and put their tokens into the rendered prompt; None when there are none.

    Raises:
        InvalidRequestError: an image cannot be had or read, or the prompt has not a place for each.
        ClientDisconnectedError: the client left first.
    """
    vision = context.engine.vision
    urls = [url for message in messages for url in message.image_urls]
    if not urls or vision is None:
        return None
    images = await until_disconnect(http, load_images(urls, context))
    return await until_disconnect(http, context.readers.run(vision.expand, prompt, images))
