"""Read the images that messages hold: as data URLs, or from the web where that is allowed."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InvalidRequestError
from .fetch import Fetcher, FetchError
from .settings import ServerContext, ServerSettings

# What parsers may be tried: each is a target, and the others of PIL's are for files that no client sends.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


async def load_images(
    urls: Sequence[str], context: ServerContext, *, fetcher: Fetcher | None = None
) -> list[Image.Image]:
    """Return the images behind URLs, in RGB.

    Args:
        urls: `data:image/png;base64,…`, or `http(s)://…` with `ServerSettings.allow_image_urls`.
        context: of the server.
        fetcher: fetches in place of one made of the settings.

    Raises:
        InvalidRequestError: there are too many; one is too large, is damaged, is no image, or cannot be had.
    """
    settings = context.settings
    if len(urls) > settings.max_images:
        raise _refusal(
            f"The messages hold {len(urls)} images, and this server takes {settings.max_images} a request"
        )
    fetcher = fetcher or Fetcher(domains=settings.allowed_media_domains, max_bytes=settings.max_image_size)
    images = []
    for url in urls:
        content = await _content(url, settings, fetcher)
        if len(content) > settings.max_image_size:
            raise _refusal(
                f"An image has {len(content)} bytes, and this server takes {settings.max_image_size}"
            )
        images.append(await context.readers.run(decode_image, content, max_pixels=settings.max_image_pixels))
    return images


async def _content(url: str, settings: ServerSettings, fetcher: Fetcher) -> bytes:
    if url[:5].lower() == "data:":
        return decode_data_url(url)
    if not url.lower().startswith(("http://", "https://")):
        raise _refusal(
            "The `url` of an image must begin with `data:image/…;base64,`, `http://` or `https://`; got "
            f"{url[:40]!r}"
        )
    if not settings.allow_image_urls:
        raise _refusal(
            "This server fetches no images: send them as data URLs (`data:image/png;base64,…`), or start it "
            "with `--allow-image-urls`"
        )
    try:
        return await fetcher.fetch(url)
    except FetchError as error:
        raise _refusal(f"The image {url[:200]!r} cannot be had: {error}") from error


def decode_data_url(url: str) -> bytes:
    """Return what a base64 data URL (RFC 2397) holds.

    Raises:
        InvalidRequestError: it is none, or its base64 is damaged.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise _refusal(f"A data URL must read `data:image/png;base64,…`; got {url[:40]!r}")
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal(f"The base64 of a data URL is damaged: {error}") from error


def decode_image(content: bytes, *, max_pixels: int) -> Image.Image:
    """Return an image in RGB, turned as its EXIF orientation says; of an animation the first frame.

    Raises:
        InvalidRequestError: it is too large, damaged, or of another format than those in the message.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _refusal(
                    f"An image has {width} x {height} pixels, and this server takes {max_pixels} "
                    "(`--max-image-pixels`): send it smaller"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except InvalidRequestError:
        raise
    except UnidentifiedImageError as error:
        raise _refusal(f"An image is of none of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # PIL's parsers raise what they come upon
        raise _refusal(f"An image is damaged: {error}") from error


def _refusal(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")
