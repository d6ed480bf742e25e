"""Find the path that a request is routed by."""

from __future__ import annotations

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Return the path without `root_path`, where a proxy has left that in front of it.

    By the rule of starlette's router (`starlette._utils.get_route_path`): what guards a route must see the
    path that the router sees.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) :][:1] in ("", "/"):
        return path[len(root) :]
    return path
