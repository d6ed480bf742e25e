"""Let a model see: read images as it was trained to, and make what stands at its image tokens.

Idefics3 and SmolVLM cut an image into tiles, the last a small copy of the whole, and see each tile
as the same number of tokens (https://arxiv.org/abs/2408.12637).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoImageProcessor, PretrainedConfig, PreTrainedModel

from ..config import EngineConfig
from ..errors import InvalidRequestError, ModelLoadError
from .source import ModelSource

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..tokenizer import Tokenizer

VISION_FAMILIES = frozenset({"idefics3", "smolvlm"})

_IMAGE, _FAKE, _GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
# The tower's activations are many times as large as what it makes of a tile.
_TILES_AT_ONCE = 8


@dataclass(frozen=True, slots=True, eq=False)
class ImageInputs:
    """Hold what the model sees in one prompt.

    Attributes:
        pixels: `[tiles, 3, height, width]` float32, of all images in the order of the prompt.
        mask: `[tiles, height, width]` bool, False where a tile is padded.
        places: of the image tokens in the prompt, ascending.
        digest: a hash of `pixels` and `mask`.
    """

    pixels: torch.Tensor
    mask: torch.Tensor
    places: list[int]
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class ExpandedPrompt:
    """Hold a prompt's text with a token for each place of its images, and the images.

    Attributes:
        text: the prompt.
        pixels, mask, digest: see `ImageInputs`.
        image_token_id: what marks their places among the prompt's tokens.
        num_image_tokens: how many places there are.
    """

    text: str
    pixels: torch.Tensor
    mask: torch.Tensor
    digest: bytes
    image_token_id: int
    num_image_tokens: int

    def inputs(self, token_ids: Sequence[int]) -> ImageInputs:
        """Return the images as they belong to the tokens of `text`.

        Raises:
            InvalidRequestError: some of their places are missing, as in a prompt that was cut.
        """
        places = [place for place, token_id in enumerate(token_ids) if token_id == self.image_token_id]
        if len(places) != self.num_image_tokens:
            raise InvalidRequestError(
                f"The prompt has {len(places)} image tokens, and its images need {self.num_image_tokens}: a "
                "prompt with images cannot be cut",
                param="messages",
            )
        return ImageInputs(self.pixels, self.mask, places, self.digest)


class ImageReader:
    """Prepare prompts with images; may be used from several threads.

    Args:
        config: of the model.
        processor: the model's image processor.
        tokenizer: of the model.

    Raises:
        ModelLoadError: the tokenizer does not have the model's image token.
    """

    def __init__(self, config: PretrainedConfig, processor: Any, tokenizer: Tokenizer) -> None:
        self._processor = processor
        self._image_token_id: int = config.image_token_id
        self._tokens_per_tile = tokens_per_tile(config)
        if tokenizer.encode(_IMAGE, add_special_tokens=False) != [self._image_token_id]:
            raise ModelLoadError(
                f"The tokenizer does not read {_IMAGE!r} as the token {self._image_token_id}, which the "
                "model's config names for images: take the tokenizer that comes with the model"
            )

    def expand(self, text: str, images: Sequence[Image]) -> ExpandedPrompt:
        """Put the tokens of each image where the prompt has an `<image>`.

        Args:
            text: the prompt, as the chat template renders it.
            images: in the order of their places.

        Raises:
            InvalidRequestError: there are more or fewer images than places.
        """
        first, *rest = text.split(_IMAGE)
        if len(rest) != len(images):
            raise InvalidRequestError(
                f"The prompt has {len(rest)} places for images ({_IMAGE!r}), and {len(images)} images came "
                f"with it: texts must not hold {_IMAGE!r} themselves",
                param="messages",
            )
        read = self._processor(list(images), return_row_col_info=True, return_tensors="pt")
        pixels = read["pixel_values"].flatten(0, 1).contiguous()
        mask = read.get("pixel_attention_mask")
        mask = torch.ones(pixels[:, 0].shape) if mask is None else mask.flatten(0, 1)
        mask = mask.bool().contiguous()
        [rows], [columns] = read["rows"], read["cols"]
        pieces = [first]
        for after, count, width in zip(rest, rows, columns, strict=True):
            pieces += [self._image_text(count, width), after]
        return ExpandedPrompt(
            text="".join(pieces),
            pixels=pixels,
            mask=mask,
            digest=_digest(pixels, mask),
            image_token_id=self._image_token_id,
            num_image_tokens=len(pixels) * self._tokens_per_tile,
        )

    def _image_text(self, rows: int, columns: int) -> str:
        """Return what stands for one image, as transformers' `Idefics3Processor` writes it."""
        tile = _IMAGE * self._tokens_per_tile
        lines = [
            "".join(f"{_FAKE}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        return "".join(lines) + ("\n" if rows else "") + f"{_FAKE}{_GLOBAL}{tile}{_FAKE}"


def _digest(pixels: torch.Tensor, mask: torch.Tensor) -> bytes:
    """Return a hash (BLAKE2b, 128 bits) of what the model sees."""
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.numpy())
    digest.update(mask.numpy())
    return digest.digest()


def tokens_per_tile(config: PretrainedConfig) -> int:
    """Return how many tokens a tile takes."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side * side // config.scale_factor**2


def load_image_reader(
    config: EngineConfig, source: ModelSource, model_config: PretrainedConfig, tokenizer: Tokenizer
) -> ImageReader | None:
    """Load what prepares images for a model; None when it sees none.

    Raises:
        ModelLoadError: the files of its image processor are missing or damaged, or do not fit the model.
    """
    if model_config.model_type not in VISION_FAMILIES:
        return None
    try:
        processor = AutoImageProcessor.from_pretrained(source.path, revision=config.revision, backend="pil")
    except Exception as error:  # of whatever kind, as damaged files give in transformers
        raise ModelLoadError(
            f"The image processor of {config.model!r} cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    size = processor.max_image_size["longest_edge"]
    if size != model_config.vision_config.image_size:
        raise ModelLoadError(
            f"The image processor of {config.model!r} makes tiles of {size} pixels, and its model sees tiles "
            f"of {model_config.vision_config.image_size}"
        )
    return ImageReader(model_config, processor, tokenizer)


@torch.inference_mode()
def image_features(model: PreTrainedModel, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what the language model reads in place of the embeddings of image tokens.

    Args:
        model: of one of `VISION_FAMILIES`.
        pixels, mask: see `ImageInputs`.

    Returns:
        `[tokens, hidden_size]`.
    """
    parts = []
    for some, their_mask in zip(pixels.split(_TILES_AT_ONCE), mask.split(_TILES_AT_ONCE), strict=True):
        output = model.get_image_features(
            pixel_values=some.unsqueeze(0).to(model.device),
            pixel_attention_mask=their_mask.unsqueeze(0).to(model.device),
            return_dict=True,
        )
        parts += list(output.pooler_output)
    return torch.cat(parts).to(model.dtype)


def try_vision(model: PreTrainedModel, name: str) -> None:
    """Look at blank tiles, as many as are ever looked at together.

    Raises:
        ModelLoadError: the model makes another number of tokens of them than its config says.
    """
    size = model.config.vision_config.image_size
    features = image_features(
        model, torch.ones(_TILES_AT_ONCE, 3, size, size), torch.ones(_TILES_AT_ONCE, size, size).bool()
    )
    expected = _TILES_AT_ONCE * tokens_per_tile(model.config)
    if len(features) != expected:
        raise ModelLoadError(
            f"{name!r} makes {len(features)} tokens of {_TILES_AT_ONCE} tiles, and its config says {expected}"
        )
