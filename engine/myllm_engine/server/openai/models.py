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


def resolve_model(context: ServerContext, name: str | None) -> str:
    """Return the name to answer with.

    Besides the served names, the model as it was given on the command line and its short name are accepted,
    and `ALIASES`.

    Raises:
        ProblemError: for any other name.
    """
    served = served_names(context)
    if name is None or name in ALIASES:
        return served[0]
    if name in {*served, context.engine.config.model, context.engine.model_name}:
        return name
    raise ProblemError(
        Problem(
            Kind.NOT_FOUND,
            f"The model {name[:200]!r} does not exist here. This server serves: {', '.join(served)}",
            "model",
        )
    )


@router.get("/v1/models", summary="List the models")
async def list_models(context: Context) -> Response:
    """List the names under which the model is served."""
    return json_response({"object": "list", "data": [_card(context, name) for name in served_names(context)]})


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(model_id: str, context: Context) -> Response:
    """Describe the model of that name."""
    return json_response(_card(context, resolve_model(context, model_id)))


def _card(context: ServerContext, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": context.started,
        "owned_by": "myllm",
        "root": context.engine.config.model,
        "parent": None,
        "max_model_len": context.engine.max_model_len,
        "permission": [],
    }
