"""Serve `GET /info`, and `GET /`, TGI's health check."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import RedirectResponse

from ..responses import json_response
from ..settings import READERS, Context
from ..system import health
from .errors import TGIRoute
from .plan import max_input_tokens

router = APIRouter(route_class=TGIRoute, tags=["TGI"])


@router.get("/", summary="Tell whether the engine works")
@router.head("/", include_in_schema=False)
async def root_health(context: Context, http: HttpRequest) -> Response:
    """Answer 200 while the engine works, else 503; send browsers to the page at `/ui`."""
    if context.settings.enable_ui and "text/html" in http.headers.get("accept", ""):
        return RedirectResponse(f"{http.scope.get('root_path', '')}/ui")
    return health(context)


@router.get("/info", summary="Describe the model and the limits")
async def get_info(context: Context) -> Response:
    """Describe the model and the limits, under TGI's names; null: no limit."""
    engine, settings, config = context.engine, context.settings, context.engine.config
    concurrent = settings.max_concurrent_requests
    if concurrent is None and config.max_queue is not None:
        concurrent = config.max_num_seqs + config.max_queue
    return json_response(
        {
            # Under the name that clients ask for: some compare it with theirs.
            "model_id": (settings.served_model_names or (config.model,))[0],
            "model_sha": None,
            "model_dtype": engine.dtype,
            "model_device_type": engine.device.partition(":")[0],
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": concurrent,
            "max_best_of": settings.max_best_of,
            "max_stop_sequences": settings.max_stop_sequences,
            "max_top_n_tokens": settings.max_top_n_tokens,
            "max_input_tokens": max_input_tokens(context),
            "max_total_tokens": engine.max_model_len,
            "validation_workers": READERS,
            "max_client_batch_size": settings.max_client_batch_size,
            "router": "myllm",
            "version": context.version,
            "sha": None,
            "docker_label": None,
        }
    )
