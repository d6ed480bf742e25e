"""DSPy's old clients, working again: `HFClientVLLM`, `HFClientTGI` and `HFClientSGLang`.

They keep the interface of DSPy 2.4/2.5 (`dsp/modules/hf_client.py` at v2.4.12): constructor, `kwargs`,
`_generate`, `__call__`, `request`, `history`, `inspect_history`, `copy`. What was wrong with the old ones is
mended: unknown parameters are refused instead of dropped, errors are typed, waits end, answers are cached
only when asked for, and nothing is printed behind the caller's back. New code may use `.client`, which is a
`myllm.Client`.

For DSPy 3 itself use `myllm_adapters.dspy`, whose classes of the same names are LMs.
"""

from __future__ import annotations

import copy
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from . import tap
from .client import Client
from .endpoints import LOCALHOST, PortSpec, UrlSpec, resolve_endpoints
from .engines import refuse_places
from .errors import APIStatusError, InvalidParameterError, MyLLMError, UnsupportedFeatureError
from .options import RequestOptions
from .params import build
from .transport.options import HTTPOptions
from .types import ChatCompletion, Completion
from .wire import Timeout

HISTORY_LIMIT = 10_000
"""Entries of `history` that are kept; the oldest go first."""

# What vLLM, TGI and `myllm serve` say; a template that refuses these messages is another matter.
_NO_TEMPLATE = re.compile(
    r"no chat[ _]template|must provide a chat template|does not define (one|a chat template)"
    r"|chat template .*(not set|is missing)|template not found",
    re.IGNORECASE,
)
_MODEL_TYPES = ("text", "chat", "auto")
_PROXY_KEYS = frozenset({"http", "https", "all"})
_HTTP_KEYS = ("timeout", "verify", "cert", "headers", "proxies", "auth")
CLIENT_OPTIONS = frozenset(
    {"timeout", "max_retries", "headers", "policy", "breaker", "health_interval", "hedge_after",
     "max_concurrency", "requests_per_second", "coalesce", "cache", "message_policy", "hooks"}
)  # fmt: skip
"""Arguments of the constructors that are those of `myllm.Client`."""
CALL_OPTIONS = frozenset(RequestOptions.__annotations__)
"""What a call takes beside parameters and `system_prompt`: the options of a `myllm.Client`'s call."""
# What a copy may change over the same connections; the rest of a client's arguments it may not.
_COPY_OPTIONS = frozenset(
    {"model", "timeout", "max_retries", "hedge_after", "message_policy", "coalesce", "cache"}
)
_PLACE = (CLIENT_OPTIONS | {"port", "url", "api_key", "engine", "http_request_kwargs"}) - _COPY_OPTIONS


class HFClient:
    """What the old clients share. Not made directly: use `HFClientVLLM`, `HFClientTGI`, `HFClientSGLang`."""

    dialect: ClassVar[str]
    DEFAULTS: ClassVar[Mapping[str, Any]]
    """What DSPy's client of this name sent unless told otherwise."""

    def __init__(self, model: str, port: PortSpec = None, url: UrlSpec = LOCALHOST, **kwargs: Any) -> None:
        model_type = kwargs.pop("model_type", "auto")
        if url in ("chat", "text"):
            # DSPy 2.4.9 to 2.5 had `model_type` in the third place, its documentation `url`.
            warnings.warn(
                f"the third argument of {type(self).__name__} is `url`; write model_type={url!r}",
                DeprecationWarning,
                stacklevel=2 if type(self).__init__ is HFClient.__init__ else 3,
            )
            model_type, url = url, LOCALHOST
        options = _http_arguments(kwargs.pop("http_request_kwargs", None), url)
        options.update({name: kwargs.pop(name) for name in CLIENT_OPTIONS & kwargs.keys()})
        self.model = model
        self.model_type = _checked_model_type(model_type)
        self.system_prompt: str | None = kwargs.pop("system_prompt", None)
        options.update(_place(kwargs.pop("engine", None), port, url, kwargs.pop("api_key", None)))
        self.client = Client(model=model, dialect=self.dialect, **options)
        # A mistake is told here, not at the first call.
        self.kwargs: dict[str, Any] = build(kwargs, self.DEFAULTS).set_values()
        _check_system_prompt(self.system_prompt, self.model_type)
        self.history: list[dict[str, Any]] = []
        self._no_template: int | None = None  # when that was found out: see `tap.changes`
        self._lock = threading.Lock()

    def _generate(self, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """Generate for one prompt.

        Args:
            prompt: the user's message, or with `model_type="text"` the text to continue.
            **kwargs: parameters, which go before the client's own; `system_prompt`; and the options of a
                `myllm.Client`'s call (`timeout`, `extra_body`, `cache`, …).

        Returns:
            `{"prompt": prompt, "choices": [{"text": …, "index": …, "finish_reason": …}, …], "model": …,
            "usage": …}`; a choice has `logprobs` when they were asked for.

        Raises:
            MyLLMError: see `myllm.errors`.
        """
        options = {name: kwargs.pop(name) for name in CALL_OPTIONS & kwargs.keys()}
        system_prompt = kwargs.pop("system_prompt", self.system_prompt)
        options.update(build(kwargs, self.kwargs).set_values())
        answer: Completion | ChatCompletion
        if self.model_type == "chat" or (self.model_type == "auto" and self._no_template != tap.changes):
            messages = [{"role": "user", "content": prompt}]
            if system_prompt:
                messages.insert(0, {"role": "system", "content": system_prompt})
            try:
                answer = self.client.chat(messages, **options)
                return _old_response(prompt, answer)
            except (UnsupportedFeatureError, APIStatusError) as exc:
                if self.model_type == "chat" or system_prompt or not self._text_is_meant(exc):
                    raise
        elif system_prompt:
            raise InvalidParameterError(
                "`system_prompt` needs a chat template, and this model has none.", param="system_prompt"
            )
        answer = self.client.complete(prompt, **options)
        return _old_response(prompt, answer)

    def _text_is_meant(self, exc: MyLLMError) -> bool:
        """Whether "auto" answers a failed chat call with a completion: no template, no chat endpoint, or a
        parameter that only the completion endpoint knows (TGI's `top_k`, `typical_p`, …)."""
        if isinstance(exc, UnsupportedFeatureError):
            warnings.warn(
                f"{exc.message} The prompt is sent as text to continue instead, without the model's chat "
                'template; `model_type="text"` or "chat" decides it.',
                UserWarning,
                stacklevel=4,
            )
            return True
        words = exc.server_message or ""
        # A server without the route says 404 too, but it does not speak of the model.
        if _NO_TEMPLATE.search(words) or (exc.status == 404 and "model" not in words.lower()):
            self._no_template = tap.changes
        return self._no_template == tap.changes

    def request(self, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """Generate for one prompt, and remember it in `history`."""
        response = self._generate(prompt, **kwargs)
        told = {name: value for name, value in kwargs.items() if name != "extra_headers"}  # may be secret
        entry = {
            "prompt": prompt,
            "response": response,
            "kwargs": {**self.kwargs, **told},
            "raw_kwargs": told,
        }
        with self._lock:
            self.history.append(entry)
            del self.history[:-HISTORY_LIMIT]
        return response

    basic_request = request

    def __call__(
        self, prompt: str, only_completed: bool = True, return_sorted: bool = False, **kwargs: Any
    ) -> list[str]:
        """Return the texts of the choices.

        Raises:
            InvalidParameterError: `only_completed=False` or `return_sorted=True`, which no client ever knew.
        """
        if not only_completed or return_sorted:
            raise InvalidParameterError(
                "only `only_completed=True` and `return_sorted=False` exist; `_generate` gives every choice "
                "with its finish_reason."
            )
        return [choice["text"] for choice in self.request(prompt, **kwargs)["choices"]]

    def inspect_history(self, n: int = 1, skip: int = 0) -> str:
        """Print the last `n` exchanges before the last `skip`, and return the printed text."""
        with self._lock:
            entries = self.history[max(0, len(self.history) - skip - n) : max(0, len(self.history) - skip)]
        lines = []
        for entry in entries:
            texts = [choice["text"] for choice in entry["response"]["choices"]]
            more = f" \t (and {len(texts) - 1} other completions)" if len(texts) > 1 else ""
            lines.append(f"\n\n\n{entry['prompt']}{texts[0] if texts else ''}{more}\n\n\n")
        text = "".join(lines)
        sys.stdout.write(text)
        return text

    def copy(self, **kwargs: Any) -> HFClient:
        """Return a client with other settings, an empty history and the same connections.

        Args:
            **kwargs: `model`, `model_type`, `system_prompt`, default parameters (`None` removes one), and
                `timeout`, `max_retries`, `hedge_after`, `message_policy`, `coalesce`, `cache`.

        Raises:
            InvalidParameterError: what says where the servers are cannot change.
        """
        if misplaced := sorted(_PLACE & kwargs.keys()):
            raise InvalidParameterError(
                f"`{misplaced[0]}` belongs to the connections, which a copy shares: make a new "
                f"{type(self).__name__}.",
                param=misplaced[0],
            )
        twin = copy.copy(self)
        options = {name: kwargs.pop(name) for name in _COPY_OPTIONS & kwargs.keys()}
        twin.model = options.get("model") or self.model
        if options:
            twin.client = self.client.with_options(**options)
        twin.model_type = _checked_model_type(kwargs.pop("model_type", self.model_type))
        twin.system_prompt = kwargs.pop("system_prompt", self.system_prompt)
        twin.kwargs = build(kwargs, self.kwargs).set_values()
        _check_system_prompt(twin.system_prompt, twin.model_type)
        twin.history = []
        return twin

    def close(self) -> None:
        """Close the connections (copies share them)."""
        self.client.close()

    def __repr__(self) -> str:
        urls = ", ".join(endpoint.url for endpoint in self.client.endpoints())
        return f"{type(self).__name__}({self.model!r}, url={urls!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


_PLAIN: Mapping[str, Any] = {
    "temperature": 0.0,
    "max_tokens": 150,
    "top_p": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "n": 1,
}
_SHORT_ANSWERS: Mapping[str, Any] = {
    "temperature": 0.01,
    "max_tokens": 75,
    "top_p": 0.97,
    "n": 1,
    "stop": ["\n", "\n\n"],
}


class HFClientVLLM(HFClient):
    """A vLLM server (or `myllm serve`) behind DSPy's old interface.

        HFClientVLLM("meta-llama/Llama-3.1-8B-Instruct", port=8000)._generate("The capital of France is")

    Args:
        model: the served model's name.
        port: a port, or several: the servers take turns, and a dead one's calls go to the next.
        url: where the servers are; with or without scheme, port and `/v1`; a list for several hosts.
        **kwargs: `model_type` ("auto", the default: the prompt is a chat message if the model has a chat
            template and the endpoint knows every parameter, else text to continue; "chat"; "text", as
            DSPy's client had it), `system_prompt` (chat), `api_key` (default: `MYLLM_API_KEY`),
            `http_request_kwargs` (`timeout`, `verify`, `cert`, `headers`, `proxies`, `auth`, as in requests),
            `engine` (in place of port and URL, an engine in this process: see `myllm.Client`), its other
            arguments (`timeout`, `max_retries`, `cache`, `policy`, …: `CLIENT_OPTIONS`), and default
            parameters of the requests (`myllm.params.Parameters`).

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
    """

    dialect = "vllm"
    DEFAULTS = _PLAIN


class HFClientSGLang(HFClient):
    """An SGLang server behind DSPy's old interface.

        HFClientSGLang("meta-llama/Llama-3.1-8B-Instruct", port=30000)._generate("The capital of France is")

    The model asked for is `model`; DSPy's client asked for "default" whatever it was given.

    Args:
        model, port, url, **kwargs: see `HFClientVLLM`.
    """

    dialect = "sglang"
    DEFAULTS = _SHORT_ANSWERS


class HFClientTGI(HFClient):
    """A Text Generation Inference server behind DSPy's old interface.

        HFClientTGI("meta-llama/Llama-2-7b-hf", port=[8080, 8081])._generate("The capital of France is")

    `temperature=0` is greedy (the old client made it 0.1); `n` becomes TGI's `best_of` where TGI can do it
    and several requests where not; a stop string is cut off the answer, as other servers do
    (`include_stop_str_in_output=True` keeps it).

    Args:
        model: the served model's name.
        port: a port, or several: the servers take turns, and a dead one's calls go to the next.
        url: where the servers are. DSPy's default was a host of its authors'; here it is this machine.
        http_request_kwargs: `timeout`, `verify`, `cert`, `headers`, `proxies`, `auth`, as in requests.
        **kwargs: see `HFClientVLLM`.
    """

    dialect = "tgi"
    DEFAULTS = _SHORT_ANSWERS

    def __init__(
        self,
        model: str,
        port: PortSpec = None,
        url: UrlSpec = LOCALHOST,
        http_request_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, port, url, http_request_kwargs=http_request_kwargs, **kwargs)


def _place(engine: Any, port: PortSpec, url: UrlSpec, api_key: str | None) -> dict[str, Any]:
    """Return the arguments that tell the client where its servers are."""
    if engine is None:
        return {"endpoints": resolve_endpoints(url, api_key, port=port)}
    refuse_places(port=port, url=None if url == LOCALHOST else url, api_key=api_key)
    return {"engine": engine}


def _checked_model_type(model_type: str) -> str:
    if model_type not in _MODEL_TYPES:
        raise InvalidParameterError(
            f"`model_type={model_type!r}` must be one of {', '.join(map(repr, _MODEL_TYPES))}.",
            param="model_type",
        )
    return model_type


def _check_system_prompt(system_prompt: str | None, model_type: str) -> None:
    if system_prompt and model_type == "text":
        raise InvalidParameterError(
            '`system_prompt` is part of a chat: `model_type="text"` has no place for it.',
            param="system_prompt",
        )


def _http_arguments(given: Mapping[str, Any] | None, url: UrlSpec) -> dict[str, Any]:
    """Translate `requests`' keywords into the client's."""
    given = dict(given or {})
    if unknown := set(given) - set(_HTTP_KEYS):
        raise InvalidParameterError(
            f"`http_request_kwargs` has {', '.join(f'`{k}`' for k in sorted(unknown))}; known are "
            f"{', '.join(f'`{k}`' for k in _HTTP_KEYS)}.",
            param="http_request_kwargs",
        )
    arguments: dict[str, Any] = {}
    if "timeout" in given:
        value = given["timeout"]
        # requests: seconds for each wait, or (connect, read).
        if isinstance(value, tuple):
            arguments["timeout"] = Timeout(connect=value[0], first_byte=value[1], idle=value[1])
        elif value is not None and not isinstance(value, Timeout):
            arguments["timeout"] = Timeout(connect=value, first_byte=value, idle=value)
        else:
            arguments["timeout"] = value
    if "headers" in given:
        arguments["headers"] = given["headers"]
    proxies = given.get("proxies") or {}
    if isinstance(proxies, str):
        proxies = {"all": proxies}
    if not isinstance(proxies, Mapping) or not _PROXY_KEYS.issuperset(proxies):
        # Not repeated: a proxy's URL may hold a password.
        raise InvalidParameterError(
            "`proxies` in `http_request_kwargs` must be a mapping of `http`, `https` and `all` to URLs.",
            param="http_request_kwargs",
        )
    # requests: one proxy for each scheme; here all servers of a client have the same one.
    first = url if isinstance(url, str) else next(iter(url), "")
    scheme = "https" if first.startswith("https:") else "http"
    arguments["http"] = HTTPOptions(
        verify=given.get("verify", True),
        cert=given.get("cert"),
        proxy=proxies.get(scheme, proxies.get("all")),
        # An explicit None is requests' way to say "no proxy".
        trust_env=proxies.get(scheme, "") is not None,
        auth=_basic(given.get("auth")),
    )
    return arguments


def _basic(auth: Any) -> Any:
    """Return `requests.auth.HTTPBasicAuth` as user and password; anything else as it is, to be checked."""
    return (auth.username, auth.password) if type(auth).__name__ == "HTTPBasicAuth" else auth


def _old_response(prompt: str, answer: Completion | ChatCompletion) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for choice in answer.choices:
        text = (
            choice.text if not isinstance(answer, ChatCompletion) else choice.message.content or ""  # type: ignore[union-attr]
        )
        entry: dict[str, Any] = {"text": text, "index": choice.index, "finish_reason": choice.finish_reason}
        if choice.logprobs is not None:
            entry["logprobs"] = choice.logprobs.model_dump(exclude_none=True)
        choices.append(entry)
    response: dict[str, Any] = {"prompt": prompt, "choices": choices, "model": answer.model}
    if answer.usage is not None:
        response["usage"] = answer.usage.model_dump(exclude_none=True)
    return response
