"""DSPy 3's language models on your own servers: `HFClientVLLM`, `HFClientTGI`, `Client` and `LM`.

    import dspy
    from myllm_adapters.dspy import HFClientVLLM

    dspy.configure(lm=HFClientVLLM("meta-llama/Llama-3.1-8B-Instruct", port=8000))
    print(dspy.ChainOfThought("question -> answer")(question="What is the capital of France?").answer)

They are `dspy.LM`s whose engines are `myllm.Client` and `myllm.AsyncClient`: everything that DSPy does with
an LM (caching, retries, history, usage, streaming, optimizers) it does with these. DSPy's calls go to the
chat endpoint with the parameters given here or in the call, and nothing else; `_generate` is the old clients'
call, with the old clients' defaults. `ChatAdapter` holds answers to DSPy's format by the server's own
constraint, and `Embedder` is `dspy.Embedder` over a client.

Nothing secret is saved: neither JSON files nor pickles (`program.save(folder, save_program=True)`, joblib,
multiprocessing) hold the API key, headers, proxy or password of an LM, and none has its `hooks`, which, like
DSPy's callbacks, belong to the process. A loaded LM takes its key from `MYLLM_API_KEY`, as worker processes
do, which inherit it; what else it needs, set with a new LM (`program.set_lm(…)`). `copy()`, `copy.deepcopy`
and a program's `deepcopy()` stay in the process and keep everything.

DSPy's cache knows an answer by model, messages, parameters and, with these, the servers' URLs; see
`cache_scope` of `LM`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from ._extra import missing_extra

try:
    import dspy  # noqa: F401
    from dspy import lm15  # noqa: F401 - the engines' vocabulary; DSPy has engines since 3.4
except ImportError as exc:
    raise missing_extra(__name__, "dspy", exc) from exc

import myllm
from myllm import InvalidParameterError, compat, params
from myllm.endpoints import PortSpec, UrlSpec

from ._dspy.chat_adapter import ChatAdapter
from ._dspy.embedder import Embedder
from ._dspy.engines import AsyncEngine, Engine
from ._dspy.lm import CONNECTION, LM
from ._dspy.parameters import wire
from ._dspy.state import client_arguments, dump_client

__all__ = [
    "LM",
    "AsyncEngine",
    "ChatAdapter",
    "Client",
    "Embedder",
    "Engine",
    "HFClientTGI",
    "HFClientVLLM",
]

# DSPy's files name LMs and engines by their classes; they shall name the public place.
LM.__module__ = Engine.__module__ = AsyncEngine.__module__ = __name__

_OF_CLIENT = CONNECTION | {"api_key", "dialect", "endpoints", "engine", "http"}
_OF_OLD = CONNECTION | {"api_key", "engine", "http_request_kwargs", "model_type", "system_prompt"}
# What says where to connect in the words of `myllm.Client`, and the old clients' words for it.
_INSTEAD = {
    "base_url": "`url` and `port`",
    "endpoints": "`url` and `port`",
    "http": "`http_request_kwargs`",
    "dialect": "none (the class says the kind of server)",
}
# What `_generate` takes beside parameters.
_ASIDE = compat.CALL_OPTIONS | {"system_prompt"}


class Client(LM):
    """An LM for a server of any dialect: `LM` over a client that it makes.

        dspy.configure(lm=Client("smollm2", "http://localhost:8000", temperature=0))

    Args:
        model: the served model's name; default: the first one that the server lists.
        base_url, **kwargs: as `myllm.Client` takes them (`api_key`, `dialect`, `timeout`, `headers`,
            `engine`, `policy`, `max_retries`, …), and as `LM` does (`supports`, `cache_scope`, `extra_body`,
            parameters, and `dspy.LM`'s settings, of which `cache` is one).

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        MyLLMError: nobody names a model and the server cannot be asked.
    """

    def __init__(self, model: str | None = None, base_url: UrlSpec | None = None, **kwargs: Any) -> None:
        connection = {name: kwargs.pop(name) for name in list(kwargs) if name in _OF_CLIENT}
        super().__init__(myllm.Client(base_url, **client_arguments(connection)), model, **kwargs)

    def _dump_connection(self) -> dict[str, Any]:
        return dump_client(self.client)


class HFClientLM(LM):
    """What DSPy's two old clients share. Not made directly."""

    _old_class: ClassVar[type[compat.HFClientVLLM] | type[compat.HFClientTGI]]

    def __init__(self, model: str, port: PortSpec, url: UrlSpec, kwargs: dict[str, Any]) -> None:
        for name, instead in _INSTEAD.items():
            if name in kwargs:
                raise InvalidParameterError(
                    f"`{name}` is an argument of `myllm.Client`: give {instead}, or "
                    f"`LM(myllm.Client({name}=…))`.",
                    param=name,
                )
        connection = {name: kwargs.pop(name) for name in list(kwargs) if name in _OF_OLD}
        # It owns the connections, and knows the old call and its defaults.
        self._old: compat.HFClient = self._old_class(model, port, url, **client_arguments(connection))
        super().__init__(self._old.client, model, **kwargs)

    def _generate(self, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """Generate for one prompt as the old client did, outside of DSPy's cache, history and retries.

        Args:
            prompt: the text to continue.
            **kwargs: parameters that go before this LM's, which go before the old client's defaults;
                `system_prompt`, and the options of a `myllm.Client`'s call (`timeout`, `extra_body`, …), too.

        Returns:
            `{"prompt": prompt, "choices": [{"text": …}, …], …}`; see `myllm.HFClientVLLM._generate`.

        Raises:
            MyLLMError: see `myllm.errors`.
        """
        old = self._old if self._old.model == self.model else self._old.copy(model=self.model)
        # Either may say `max_new_tokens` for `max_tokens`, and the call's is the one that counts.
        own, given = wire(self.kwargs), dict(kwargs)
        aside = {name: source.pop(name) for source in (own, given) for name in _ASIDE.intersection(source)}
        return old._generate(prompt, **{**params.canonical(own), **params.canonical(given), **aside})

    def copy(self, **kwargs: Any) -> HFClientLM:
        """See `LM.copy`; `model_type` and `system_prompt`, which concern `_generate`, change too."""
        old = {name: kwargs.pop(name) for name in ("model_type", "system_prompt") if name in kwargs}
        if old.get("model_type", "auto") not in ("auto", "chat", "text"):
            raise InvalidParameterError(
                f"`model_type={old['model_type']!r}` must be one of 'auto', 'chat', 'text'.",
                param="model_type",
            )
        copied = super().copy(**kwargs)
        assert isinstance(copied, HFClientLM)
        if old:
            copied._old = self._old.copy(**old)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_old"] = copy.copy(self._old)
        state["_old"].client = state["client"]
        return state

    def _dump_connection(self) -> dict[str, Any]:
        state = dump_client(self.client)
        http = state.pop("http", None)
        state["url"] = state.pop("base_url")
        del state["dialect"]
        if http is not None:
            if not http.pop("trust_env", True):
                http["proxies"] = {"http": None, "https": None}  # requests' way to say it
            state["http_request_kwargs"] = http
        if self._old.model_type != "auto":
            state["model_type"] = self._old.model_type
        if self._old.system_prompt is not None:
            state["system_prompt"] = self._old.system_prompt
        return state


class HFClientVLLM(HFClientLM):
    """A vLLM server (or `myllm serve`) as an LM of DSPy 3, under its old name.

    Args:
        model: the served model's name.
        port: a port, or several: the servers take turns, and a dead one's calls go to the next.
        url: where the servers are; see `myllm.HFClientVLLM`.
        **kwargs: `api_key`, `timeout`, `headers`, `max_retries`, `policy`, …, `engine` (in place of port and
            URL), `http_request_kwargs`, `model_type` ("auto", "chat", "text") and `system_prompt` (these two
            concern `_generate` alone) as `myllm.HFClientVLLM` takes them; `supports`, `cache_scope`,
            `extra_body`, default parameters and `dspy.LM`'s settings (`cache` is one of them) as `LM` does.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
    """

    _old_class = compat.HFClientVLLM

    def __init__(
        self, model: str, port: PortSpec = None, url: UrlSpec = "http://localhost", **kwargs: Any
    ) -> None:
        super().__init__(model, port, url, kwargs)


class HFClientTGI(HFClientLM):
    """A Text Generation Inference server as an LM of DSPy 3, under its old name.

    DSPy's calls go through TGI's `/v1/chat/completions`. So does `_generate`, unless the server has no chat
    template or endpoint, or the call has a parameter that only `/generate` knows (`top_k`, `typical_p`, …);
    with `model_type="text"` it always goes through `/generate`, as DSPy's old client did.

    Args:
        http_request_kwargs: `timeout`, `verify`, `cert`, `headers`, `proxies`, `auth`, as in requests.
        model, port, url, **kwargs: see `HFClientVLLM`.
    """

    _old_class = compat.HFClientTGI

    def __init__(
        self,
        model: str,
        port: PortSpec = None,
        url: UrlSpec = "http://localhost",
        http_request_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, port, url, {**kwargs, "http_request_kwargs": http_request_kwargs})
