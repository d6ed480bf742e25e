"""Load LoRA adapters while the server runs, and unload them: vLLM's endpoints, behind a setting."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from fastapi import APIRouter, Response
from pydantic import Field

from ...errors import ModelLoadError
from ..errors import Kind, Problem, ProblemError, invalid
from ..fields import StrictModel
from ..settings import Context, ServerContext
from .errors import OpenAIRoute
from .models import is_base

logger = logging.getLogger(__name__)
router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])


class LoadAdapterRequest(StrictModel):
    """Ask for a LoRA adapter to be loaded."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "is_3d_lora_weight": (False,),
        "load_inplace": (False,),
    }
    reasons: ClassVar[dict[str, str]] = {
        "is_3d_lora_weight": "is not taken: adapters come in PEFT's format, two matrices a layer",
        "load_inplace": "is not taken: unload the adapter first, or load the new one under another name",
    }

    lora_name: str = Field(min_length=1, max_length=256, description="What requests then give as `model`.")
    lora_path: str = Field(min_length=1, description="A folder on the server, or a hub id.")


class UnloadAdapterRequest(StrictModel):
    """Ask for a LoRA adapter to be unloaded."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})  # vLLM does not read it either

    lora_name: str = Field(min_length=1)


@router.post("/v1/load_lora_adapter", summary="Load a LoRA adapter")
async def load_lora_adapter(body: LoadAdapterRequest, context: Context) -> Response:
    """Load a LoRA adapter, while requests go on; needs `--allow-runtime-lora`."""
    _check_allowed(context)
    if is_base(context, body.lora_name):
        raise invalid(f"The name {body.lora_name!r} is the model's own: take another one", "lora_name")
    try:
        await context.loaders.run(context.engine.add_lora_blocking, body.lora_name, body.lora_path)
    except ModelLoadError as error:
        raise invalid(str(error), "lora_path") from error
    logger.info("loaded a LoRA adapter", extra={"lora_name": body.lora_name})
    return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.", media_type="text/plain")


@router.post("/v1/unload_lora_adapter", summary="Unload a LoRA adapter")
async def unload_lora_adapter(body: UnloadAdapterRequest, context: Context) -> Response:
    """Unload a LoRA adapter; requests that use it go on to their end. Needs `--allow-runtime-lora`."""
    _check_allowed(context)
    await context.loaders.run(context.engine.remove_lora_blocking, body.lora_name)
    logger.info("unloaded a LoRA adapter", extra={"lora_name": body.lora_name})
    return Response(
        f"Success: LoRA adapter '{body.lora_name}' removed successfully.", media_type="text/plain"
    )


def _check_allowed(context: ServerContext) -> None:
    """Refuse what only somebody trusted may do: a path is any folder of the server, a hub id a download."""
    if not context.settings.allow_runtime_lora:
        raise ProblemError(
            Problem(
                Kind.NOT_FOUND,
                "This server loads no LoRA adapters on request: start it with `--allow-runtime-lora`, or "
                "give it the adapters with `--lora-modules`",
            )
        )
