"""Put the application together."""

from __future__ import annotations

import time
from importlib import metadata

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from ..async_engine import AsyncEngine
from . import system
from .anthropic import routes as messages
from .anthropic.errors import render as render_anthropic
from .auth import ApiKeyMiddleware
from .body_limit import BodyLimitMiddleware
from .errors import Problem, diagnose
from .openai import batch, chat, completions, models
from .openai.errors import render as render_openai
from .openai.responses import routes as responses
from .openai.responses.store import ResponseStore
from .settings import ServerContext, ServerSettings
from .tgi import generate, info
from .tgi.errors import render as render_tgi

DISTRIBUTION = "myllm-suite"


def build_app(engine: AsyncEngine, settings: ServerSettings) -> FastAPI:
    """Return the application that serves `engine`.

    The engine stays the caller's: close it afterwards, and `app.state.context`, which holds worker threads.
    """
    version = metadata.version(DISTRIBUTION)
    app = FastAPI(
        title="myllm",
        version=version,
        description="An OpenAI-compatible and TGI-compatible server of language models.",
        # A web page may send anything but JSON to 127.0.0.1 without asking: only JSON is taken.
        strict_content_type=True,
    )
    app.state.context = ServerContext(engine, settings, version, int(time.time()))
    app.state.responses = ResponseStore(settings.max_stored_responses)
    for module in (system, models, completions, chat, batch, responses, messages, info, generate):
        app.include_router(module.router)
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_size)
    if settings.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys, render=_render)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        problem = diagnose(error)
        detail = f"{problem.message}: {request.method} {request.url.path}"
        return _render(request.url.path, Problem(problem.kind, detail, headers=problem.headers))

    return app


def _render(path: str, problem: Problem) -> Response:
    """Answer a failure outside of every route in the dialect that the path belongs to."""
    for render, modules in ((render_tgi, (info, generate)), (render_anthropic, (messages,))):
        if any(route.path == path for module in modules for route in module.router.routes):
            return render(problem)
    return render_openai(problem)
