"""Serve the page's own files: no build step, and nothing from anywhere else."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

# All that the page may do: run the scripts and styles served here, and talk to this server. Text of a model
# can never become markup: the scripts write no HTML, and the browser would refuse it (trusted types).
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
_FOLDER = files(__package__) / "assets"

_ASSETS = sorted(file.name for file in _FOLDER.iterdir() if file.name != "index.html")

PATHS = frozenset({"/ui", "/ui/", *(f"/ui/{name}" for name in _ASSETS)})
"""What a browser must get before anybody could type a key into it."""


def _serve(path: str, name: str) -> None:
    content = (_FOLDER / name).read_bytes()
    media_type = _TYPES[name.rpartition(".")[2]]

    async def asset() -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    router.add_api_route(path, asset, methods=["GET", "HEAD"])


_serve("/ui", "index.html")
for _name in _ASSETS:
    _serve(f"/ui/{_name}", _name)
