"""Put the layers around the routes: CORS, request ids and counts, keys, middleware of the user's, limits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from fastapi import FastAPI, Response
from starlette.middleware.cors import CORSMiddleware

from .auth import ApiKeyMiddleware
from .body_limit import BodyLimitMiddleware
from .errors import Problem
from .settings import ServerContext
from .traffic import TrafficMiddleware


def add_layers(app: FastAPI, context: ServerContext, render: Callable[[str, Problem], Response]) -> None:
    """Add them, from the innermost to the outermost; `render` words a refusal for a path.

    Raises:
        ValueError: a middleware cannot be imported, or is none.
    """
    settings, http = context.settings, context.settings.http
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_size)
    for name in reversed(http.middleware):
        middleware = load_middleware(name)
        if inspect.isclass(middleware):
            app.add_middleware(middleware)
        else:
            app.middleware("http")(middleware)
    if settings.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys, render=render)
    app.add_middleware(
        TrafficMiddleware,
        traffic=context.traffic,
        http=http,
        limit=settings.max_concurrent_requests,
        render=render,
    )
    if http.allowed_origins:
        # Outside of keys: a preflight request brings none, and a page must be able to read a refusal.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=http.allowed_origins,
            allow_methods=http.allowed_methods,
            allow_headers=http.allowed_headers,
            allow_credentials=http.allow_credentials,
            expose_headers=("X-Request-Id",),
        )


def load_middleware(name: str) -> Any:
    """Return the class or the coroutine function that an import path such as "package.module.Name" means.

    Raises:
        ValueError: there is none.
    """
    module_name, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`--middleware` {name!r} cannot be imported: {error}") from error
    if not (inspect.isclass(found) or inspect.iscoroutinefunction(found)):
        raise ValueError(f"`--middleware` {name!r} is neither a class nor a coroutine function")
    return found
