"""Serve what is asked by load balancers and people in a hurry: health and version."""

from __future__ import annotations

from fastapi import APIRouter, Response

from .responses import json_response
from .settings import Context, ServerContext

router = APIRouter(tags=["System"])


def health(context: ServerContext) -> Response:
    """Answer 200 with no body while requests are served, 503 when the engine has died or the server ends."""
    if context.engine.error is None and not context.traffic.draining:
        return Response()
    # TGI's words, which its clients look for; vLLM answers 503 without a body.
    return json_response({"error": "unhealthy", "error_type": "healthcheck"}, 503)


@router.get("/health", summary="Tell whether the engine works")
@router.head("/health", include_in_schema=False)
async def get_health(context: Context) -> Response:
    """Answer 200 while the engine works, else 503."""
    return health(context)


@router.get("/ping", summary="Tell whether the engine works (SageMaker)")
@router.head("/ping", include_in_schema=False)
@router.post("/ping", include_in_schema=False)
async def ping(context: Context) -> Response:
    """Answer 200 while the engine works, else 503."""
    return health(context)


@router.get("/load", summary="Tell how many requests are being answered")
async def get_load(context: Context) -> Response:
    """Return `{"server_load"}`: requests that make the engine work, or wait for it."""
    return json_response({"server_load": context.traffic.in_flight})


@router.get("/version", summary="Tell the version of the server")
@router.head("/version", include_in_schema=False)
async def get_version(context: Context) -> Response:
    """Return `{"version"}`."""
    return json_response({"version": context.version})
