"""List the served models, and find the one that a request names."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from ..errors import Kind, Problem, ProblemError
from ..responses import json_response
from ..settings import Context, ServerContext
from .errors import OpenAIRoute

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])

# Names that clients send when they know none: huggingface_hub's InferenceClient(base_url=...) sends "tgi".
ALIASES = frozenset({"", "tgi", "dummy", "default"})


def served_names(context: ServerContext) -> tuple[str, ...]:
    """Return the names to report, the preferred one first."""
    return context.settings.served_model_names or (context.engine.config.model,)


def is_base(context: ServerContext, name: str) -> bool:
    """Tell whether a name means the model itself, and no LoRA adapter of this name, if there is one."""
    return name in {*served_names(context), context.engine.config.model, context.engine.model_name}


def resolve_model(context: ServerContext, name: str | None) -> str:
    """Return the name to answer with.

    Besides the served names and those of LoRA adapters, the model as it was given on the command line and its
    short name are accepted, and `ALIASES`.

    Raises:
        ProblemError: for any other name.
    """
    served = served_names(context)
    if is_base(context, name or "") or name in context.engine.loras:
        return name or ""
    if name is None or name in ALIASES:
        return served[0]
    names = ", ".join((*served, *context.engine.loras))
    raise ProblemError(
        Problem(
            Kind.NOT_FOUND,
            f"The model {name[:200]!r} does not exist here. This server serves: {names}",
            "model",
        )
    )


def lora_of(context: ServerContext, model: str) -> str | None:
    """Return the LoRA adapter that a name from `resolve_model` means; None: the model itself."""
    return None if is_base(context, model) or model not in context.engine.loras else model


@router.get("/v1/models", summary="List the models")
async def list_models(context: Context) -> Response:
    """List the names under which the model is served, and its LoRA adapters."""
    names = [*served_names(context), *(name for name in context.engine.loras if not is_base(context, name))]
    return json_response({"object": "list", "data": [_card(context, name) for name in names]})


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(model_id: str, context: Context) -> Response:
    """Describe the model, or the LoRA adapter, of that name."""
    return json_response(_card(context, resolve_model(context, model_id)))


def _card(context: ServerContext, name: str) -> dict[str, Any]:
    lora = lora_of(context, name)
    return {
        "id": name,
        "object": "model",
        "created": context.started,
        "owned_by": "myllm",
        "root": context.engine.config.model if lora is None else context.engine.loras[lora],
        "parent": None if lora is None else served_names(context)[0],
        "max_model_len": context.engine.max_model_len,
        "permission": [],
    }
