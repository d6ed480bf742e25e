"""Hold how the application meets HTTP, apart from what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Configure what lies around the routes. Names are those of vLLM's flags, where it has them.

    Attributes:
        root_path: what a proxy in front puts before each path, such as "/llm"; whether it strips it or not.
        allowed_origins: web pages that may call the server from a browser; empty: none but its own.
        allowed_methods: methods that these may use.
        allowed_headers: headers that these may send.
        allow_credentials: whether these may send cookies and the like.
        middleware: import paths of ASGI middleware classes, or of functions `(request, call_next)`; the first
            one is the outermost.
        enable_docs: whether `/docs`, `/redoc` and `/openapi.json` are served.
        enable_request_id_headers: whether answers carry the request's `X-Request-Id`.
        enable_log_requests: whether prompts and parameters are logged.
        max_log_len: characters of a prompt, and of its token ids as many, that are logged; None: all.
        sse_keep_alive_interval: seconds without an event after which a stream gets a comment; 0: never.
        request_timeout: seconds that a request may take; None: no limit.
        otlp_traces_endpoint: where traces of requests are sent; None: there are none.

    Raises:
        ValueError: from the constructor, for a value out of range.
    """

    root_path: str = ""
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    middleware: tuple[str, ...] = ()
    enable_docs: bool = True
    enable_request_id_headers: bool = False
    enable_log_requests: bool = False
    max_log_len: int | None = None
    sse_keep_alive_interval: float = 0.0
    request_timeout: float | None = None
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ValueError(
                f"`root_path` must begin with a slash and not end with one, as in '/llm'; got "
                f"{self.root_path!r}"
            )
        if self.max_log_len is not None and self.max_log_len < 0:
            raise ValueError(f"`max_log_len` must be 0 or more; got {self.max_log_len!r}")
        if not 0 <= self.sse_keep_alive_interval < float("inf"):
            raise ValueError(
                f"`sse_keep_alive_interval` must be 0 (never) or a number of seconds; got "
                f"{self.sse_keep_alive_interval!r}"
            )
        if self.request_timeout is not None and not 0 < self.request_timeout < float("inf"):
            raise ValueError(
                f"`request_timeout` must be above 0 seconds, or None for no limit; got "
                f"{self.request_timeout!r}"
            )
