"""Find out what kind of server answers, in as few questions as can be: two as a rule, never more than four.

`GET /v1/models` tells most: its `owned_by` is "vllm", "sglang", "llamacpp" (llama-server), "me"
(llama-cpp-python), "library" (Ollama) or "myllm" (`myllm serve`, which speaks vLLM's dialect); TGI repeats
the model's id there. One more question gives the version and the limits. Whatever is none of these, such as
LiteLLM's gateway, is taken for a server with OpenAI's API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InvalidResponseError
from ..types import ModelInfo
from ..wire import Reply, ServerInfo, WireRequest
from ._base import load_json

Probe = Generator[WireRequest, Reply, ServerInfo]
_Answers = Generator[WireRequest, Reply, Any]

_ABSENT = frozenset({404, 405, 501})
_CLOSED = frozenset({400, 401, 403})
# In `GET /server_info`, SGLang tells its own keys.
_SECRET = re.compile(r"(api|access|admin|auth|hf)_?(key|token)|secret|password", re.IGNORECASE)


class UndecidedError(Exception):
    """A server refused a question, or failed, in a way that says nothing about its kind.

    It never leaves the flow, which makes of `reply` the error that any other call would have raised:
    `AuthenticationError` for 401 and 403, a retryable one for 429 and 5xx.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def detect(name: str | None = None) -> Probe:
    """Ask what the server is; yields the questions, is sent each reply, and returns what it told.

    Args:
        name: the dialect, where it is known; the server is then asked for its version and limits alone.

    Raises:
        UndecidedError: a reply that says nothing, such as 401 or 503.
        InvalidResponseError: it answers the list of models with something that is no JSON.
    """
    asked = _Asked()
    if name == "tgi":
        info = yield from asked.ask("/info", required=True)
        told = _tgi(asked, info) if isinstance(info, Mapping) else _openai(asked)
        return replace(told, dialect=name)
    listing = yield from asked.ask("/v1/models", required=True)
    asked.listed(listing)
    if name is not None:
        product = asked.owner if (name, asked.owner) in _SPOKEN_BY_TWO else name
        told = yield from _PROBES[product](asked)
        return replace(told, dialect=name)
    if listing is None:  # TGI before 2.0 and Ollama before 0.1.24 have no such list
        info = yield from asked.ask("/info")
        if isinstance(info, Mapping):
            return _tgi(asked, info)
        return (yield from _ollama(asked))
    owner = asked.owner
    if owner in _PROBES:
        return (yield from _PROBES[owner](asked))
    if asked.models and owner == asked.models[0].id:
        info = yield from asked.ask("/info")
        return _tgi(asked, info) if isinstance(info, Mapping) else _openai(asked)
    path, tagged, _ = asked.models[0].id.partition(":") if asked.models else ("", "", "")
    if not asked.models or (tagged and f"{owner}/" in path):
        return (yield from _ollama(asked))  # with no model yet, or with one of a namespace of its own
    return _openai(asked)


def parse_version(text: Any) -> tuple[int, ...] | None:
    """Return the numbers that a version begins with: (0, 12, 0) of "v0.12.0rc1+cpu", (99,) of "b99-1a2b"."""
    match = re.match(r"[a-zA-Z]?(\d+(?:\.\d+)*)", text) if isinstance(text, str) else None
    return tuple(map(int, match[1].split("."))) if match else None


@dataclass(slots=True)
class _Asked:
    """What the server has told so far."""

    facts: dict[str, Any] = field(default_factory=dict)
    models: tuple[ModelInfo, ...] = ()

    @property
    def owner(self) -> str:
        return self.models[0].owned_by if self.models else ""

    def ask(self, path: str, *, required: bool = False) -> _Answers:
        """Ask; None where the server has no such path. Only a `required` answer must be had to go on."""
        reply = yield WireRequest(method="GET", path=path)
        if reply.status in _ABSENT or (reply.status in _CLOSED and not required):
            return None
        if not 200 <= reply.status < 300:
            raise UndecidedError(reply)
        try:
            body = load_json(reply.body)
        except InvalidResponseError:
            if required:
                raise
            return None  # a web page that stands for every path
        self.facts[path] = _public(body)
        return body

    def listed(self, listing: Any) -> None:
        """Take over the list of models."""
        entries = listing.get("data") if isinstance(listing, Mapping) else None
        self.models = tuple(ModelInfo.model_validate(entry) for entry in entries or ())

    def info(
        self, dialect: str, product: str, version: Any = None, *, speaks_for_dialect: bool = True, **more: Any
    ) -> ServerInfo:
        limits: dict[str, int] = {k: v for k, v in more.pop("limits", {}).items() if isinstance(v, int)}
        lengths = [model.max_model_len for model in self.models if model.max_model_len is not None]
        if lengths:
            limits.setdefault("max_model_len", lengths[0])
        return ServerInfo(
            dialect=dialect,
            product=f"{product} {version}" if isinstance(version, str) and version else product,
            version=parse_version(version) if speaks_for_dialect else None,
            models=self.models,
            limits=limits,
            facts=self.facts,
            **more,
        )


def _vllm(asked: _Asked) -> Probe:
    body = yield from asked.ask("/version")
    version = _get(body, "version")
    # What setuptools-scm calls a checkout that lacks the tags: it may be of any age.
    untagged = re.match(r"0\.[01]\.(0\.)?dev", str(version)) is not None
    return asked.info("vllm", "vLLM", version, speaks_for_dialect=not untagged)


def _myllm(asked: _Asked) -> Probe:
    body = yield from asked.ask("/version")
    # Its own version says nothing about vLLM's, whose newest and older words it all reads.
    return asked.info(
        "vllm",
        "myllm serve",
        _get(body, "version"),
        speaks_for_dialect=False,
        features=frozenset({"best_of"}),
    )


def _sglang(asked: _Asked) -> Probe:
    body = yield from asked.ask("/server_info")
    if body is None:
        body = yield from asked.ask("/get_server_info")  # its name until 0.5
    features = {
        "tools": _get(body, "tool_call_parser"),
        "reasoning": _get(body, "reasoning_parser"),
        "embeddings": _get(body, "is_embedding"),
    }
    return asked.info(
        "sglang", "SGLang", _get(body, "version"), features=frozenset(k for k, v in features.items() if v)
    )


def _llamacpp(asked: _Asked) -> Probe:
    body = yield from asked.ask("/props")
    modalities = _get(body, "modalities") or {}
    features = {name for name, there in modalities.items() if there is True}
    if _get(body, "chat_template"):
        features.add("chat")
    limits = {
        "max_model_len": _get(_get(body, "default_generation_settings"), "n_ctx"),
        "total_slots": _get(body, "total_slots"),
    }
    build = _get(body, "build_info")
    return asked.info("llamacpp", "llama-server", build, limits=limits, features=frozenset(features))


def _llama_cpp_python(asked: _Asked) -> Probe:
    body = yield from asked.ask("/openapi.json")
    about = _get(body, "info")
    if "llama.cpp python" not in str(_get(about, "title")).lower():
        return _openai(asked)
    asked.facts["/openapi.json"] = {"info": about}  # the rest describes every route
    paths = _get(body, "paths") or {}
    features = {
        name
        for name, path in (("embeddings", "/v1/embeddings"), ("tokenize", "/extras/tokenize"))
        if path in paths
    }
    return asked.info("llamacpp", "llama-cpp-python", _get(about, "version"), features=frozenset(features))


def _ollama(asked: _Asked) -> Probe:
    body = yield from asked.ask("/api/version")
    version = _get(body, "version")
    return asked.info("ollama", "Ollama", version) if version else _openai(asked)


def _openai(asked: _Asked) -> ServerInfo:
    return asked.info("openai", "")


def _only_listed(asked: _Asked) -> Probe:
    return _openai(asked)
    yield  # asks nothing more


def _tgi(asked: _Asked, info: Mapping[str, Any]) -> ServerInfo:
    if "max_total_tokens" not in info:
        # text-embeddings-inference has this path, too, and OpenAI's embeddings beside its own.
        product = "text-embeddings-inference" if "model_type" in info else ""
        return asked.info("openai", product, info.get("version") if product else None)
    total = info["max_total_tokens"]
    if not asked.models and isinstance(info.get("model_id"), str):
        asked.models = (ModelInfo(id=info["model_id"], max_model_len=total),)
    names = ("max_best_of", "max_stop_sequences", "max_top_n_tokens", "max_input_tokens", "max_total_tokens")
    limits = {name: info[name] for name in names if name in info} | {"max_model_len": total}
    if info.get("router") == "myllm":
        return asked.info("tgi", "myllm serve", info.get("version"), speaks_for_dialect=False, limits=limits)
    return asked.info("tgi", "Text Generation Inference", info.get("version"), limits=limits)


_PROBES: dict[str, Callable[[_Asked], Probe]] = {
    "vllm": _vllm,
    "myllm": _myllm,
    "sglang": _sglang,
    "llamacpp": _llamacpp,
    "me": _llama_cpp_python,
    "library": _ollama,
    "ollama": _ollama,
    "openai": _only_listed,
}
"""What to ask next, by the owner of the listed models or the dialect's name."""
_SPOKEN_BY_TWO = {("vllm", "myllm"), ("llamacpp", "me")}


def _get(body: Any, name: str) -> Any:
    return body.get(name) if isinstance(body, Mapping) else None


def _public(body: Any) -> Any:
    """Return an answer without what is secret in it, or endless."""
    if not isinstance(body, Mapping):
        return body
    return {
        name: _public(value)
        for name, value in body.items()
        if not _SECRET.search(name) and name != "internal_states"
    }
