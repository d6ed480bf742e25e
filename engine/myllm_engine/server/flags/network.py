"""Options that say who reaches the server, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .option import flag


@dataclass(frozen=True, slots=True)
class NetworkFlags:
    """Listen, and let in."""

    title: ClassVar[str] = "Network"

    # TGI reads HOSTNAME, too: every container has that, and few mean it as an address to listen on.
    host: Annotated[
        str,
        flag(
            "Interface to listen on. The default is reached from this machine only; 0.0.0.0 opens the server "
            "to the network: use --api-key then.",
            "--host",
            "--hostname",
            metavar="ADDRESS",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, flag("0 takes a free port.", "--port", "-p", min=0, max=65535, env=("PORT",))] = 8000
    uds: Annotated[
        str | None, flag("Listen on this Unix domain socket in place of host and port.", metavar="PATH")
    ] = None
    fd: Annotated[
        int | None,
        flag("Serve on this inherited socket (bound, not yet listening) in place of host and port.", min=0),
    ] = None
    api_key: Annotated[
        list[str] | None,
        flag(
            "Keys, one of which clients must send as `Authorization: Bearer KEY`: ASCII, without blanks. In "
            "a variable (keys parted by blanks) and in the file of --config they do not show in the list of "
            "processes.",
            metavar="KEY",
            env=("VLLM_API_KEY", "API_KEY"),
        ),
    ] = None
    root_path: Annotated[
        str,
        flag("What a proxy puts before each path, as in /llm; whether it strips it or not.", metavar="PATH"),
    ] = ""
    sse_keep_alive_interval: Annotated[
        float,
        flag(
            "Seconds without an event after which a stream gets a comment, so that no proxy cuts it while it "
            "waits for its turn, for its prompt to be read, or between tokens; 0: never.",
            metavar="SECONDS",
        ),
    ] = 0.0
    middleware: Annotated[
        list[str] | None,
        flag(
            "ASGI middleware to put around the routes: the import path of a class, or of a function "
            "(request, call_next); the outermost first.",
            metavar="MODULE.NAME",
        ),
    ] = None
    enable_ui: Annotated[bool, flag("Serve the page /ui: a chat, and a live view of the engine.")] = True
    disable_fastapi_docs: Annotated[bool, flag("Serve no /docs, /redoc and /openapi.json.")] = False


@dataclass(frozen=True, slots=True)
class TlsFlags:
    """Encrypt."""

    title: ClassVar[str] = "TLS"

    ssl_keyfile: Annotated[
        str | None, flag("Private key, in PEM; the server speaks https.", metavar="FILE")
    ] = None
    ssl_certfile: Annotated[str | None, flag("Certificate and its chain, in PEM.", metavar="FILE")] = None
    ssl_ca_certs: Annotated[
        str | None, flag("Authorities whose client certificates are believed, in PEM.", metavar="FILE")
    ] = None
    ssl_cert_reqs: Annotated[
        int,
        flag(
            "Whether clients need a certificate: 0 no, 1 it is checked if there is one, 2 yes.",
            min=0,
            max=2,
            metavar="0|1|2",
        ),
    ] = 0


@dataclass(frozen=True, slots=True)
class BrowserFlags:
    """Let web pages in."""

    title: ClassVar[str] = "Web pages of other origins (CORS)"

    allowed_origins: Annotated[
        list[str] | None,
        flag(
            """Pages that may call the server, as in https://example.org; * for all. Also a JSON list """
            """('["*"]'), or parted by commas. Default: none.""",
            "--allowed-origins",
            "--cors-allow-origin",
            metavar="ORIGIN",
            env=("CORS_ALLOW_ORIGIN",),
        ),
    ] = None
    allowed_methods: Annotated[
        list[str] | None,
        flag("Methods that they may use, in the same forms.", show_default="*", metavar="METHOD"),
    ] = None
    allowed_headers: Annotated[
        list[str] | None,
        flag("Headers that they may send, in the same forms.", show_default="*", metavar="HEADER"),
    ] = None
    allow_credentials: Annotated[bool, flag("Let them send cookies and the like.")] = False
