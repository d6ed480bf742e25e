"""Put the application together."""

from __future__ import annotations

import time
from importlib import metadata

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from ..async_engine import AsyncEngine
from . import chat_tokenize, dispatch, system, vertex
from .anthropic import routes as messages
from .anthropic.errors import render as render_anthropic
from .errors import Problem, diagnose
from .layers import add_layers
from .metrics import route as metrics
from .openai import adapters, batch, chat, completions, embeddings, models, tokenization
from .openai.errors import render as render_openai
from .openai.responses import routes as responses
from .openai.responses.store import ResponseStore
from .paths import route_path
from .request_log import RequestLog
from .sampling_defaults import sampling_defaults
from .settings import ServerContext, ServerSettings
from .tgi import generate, info
from .tgi.errors import render as render_tgi
from .ui import page, stats
from .ui.latency import Latency

DISTRIBUTION = "myllm-suite"

_TGI = (info, generate, chat_tokenize, vertex)


def build_app(engine: AsyncEngine, settings: ServerSettings) -> FastAPI:
    """Return the application that serves `engine`.

    The engine stays the caller's: close it afterwards, and `app.state.context`, which holds worker threads.

    Raises:
        ValueError: a middleware cannot be imported.
    """
    version = metadata.version(DISTRIBUTION)
    docs = settings.http.enable_docs
    app = FastAPI(
        title="myllm",
        version=version,
        description="An OpenAI-compatible and TGI-compatible server of language models.",
        openapi_url="/openapi.json" if docs else None,
        # A web page may send anything but JSON to 127.0.0.1 without asking: only JSON is taken.
        strict_content_type=True,
    )
    context = _make_context(engine, settings, version)
    app.state.context = context
    app.state.registry = metrics.make_registry(context)
    app.state.responses = ResponseStore(settings.max_stored_responses)
    for module in (
        *(system, metrics, models, completions, chat, batch, responses, embeddings, tokenization, adapters),
        *(dispatch, messages),
        *_TGI,
    ):
        app.include_router(module.router)
    if settings.enable_ui:
        app.state.latency = Latency()
        context.observe(app.state.latency)
        app.include_router(page.router)
        app.include_router(stats.router)
    add_layers(app, context, _render)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        problem = diagnose(error)
        detail = f"{problem.message}: {request.method} {request.url.path}"
        return _render(route_path(request.scope), Problem(problem.kind, detail, headers=problem.headers))

    return app


def _make_context(engine: AsyncEngine, settings: ServerSettings, version: str) -> ServerContext:
    recommended = (
        engine.generation_config if settings.generation_config is None else settings.generation_config
    )
    context = ServerContext(
        engine,
        settings,
        version,
        int(time.time()),
        sampling_defaults(recommended, settings.override_generation_config),
    )
    if settings.http.enable_log_requests:
        context.observe(RequestLog(engine.tokenizer, settings.http.max_log_len))
    if settings.http.otlp_traces_endpoint is not None:
        # OpenTelemetry is an extra, and only loaded when it is asked for.
        from .tracing import Tracing, send_to

        tracing = Tracing(send_to(settings.http.otlp_traces_endpoint, version), engine)
        context.observe(tracing)
        context.closing.append(tracing.close)
    return context


def _render(path: str, problem: Problem) -> Response:
    """Answer a failure outside of every route in the dialect that the path belongs to."""
    for render, modules in ((render_tgi, _TGI), (render_anthropic, (messages,))):
        if any(route.path == path for module in modules for route in module.router.routes):
            return render(problem)
    return render_openai(problem)
