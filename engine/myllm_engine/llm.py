"""Run an engine offline: prompts in, completions out."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from .async_engine import AsyncEngine
from .config import EngineConfig
from .errors import InvalidRequestError
from .gather import Gathering
from .request import Request, RequestOutput, SamplingParams

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or a dict with `prompt` or `prompt_token_ids` and perhaps `cache_salt` (as vLLM's)."""
Message = Mapping[str, Any]

_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})
_REFRESH = 0.1  # seconds between two looks at the progress

T = TypeVar("T")


class LLM:
    """Generate completions for lists of prompts, batched continuously.

    The engine runs in a thread of its own. Every method may be called from several threads at once: their
    prompts share the batches. Ctrl-C ends the call it interrupts, and the LLM can be used again.

    Args:
        model: as in `EngineConfig`.
        config: further fields of `EngineConfig`.

    Attributes:
        engine: the `AsyncEngine` underneath.
        tokenizer: of the model.

    Raises:
        ModelLoadError: from the constructor.

    Example:
        with LLM("smollm2") as llm:
            print(llm.generate("Once upon a time", SamplingParams(max_tokens=16))[0].outputs[0].text)
    """

    def __init__(self, model: str = "smollm2", **config: Any) -> None:
        self.engine = AsyncEngine(EngineConfig(model=model, **config))
        self.tokenizer = self.engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        lora: str | Sequence[str | None] | None = None,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Return one finished output per prompt, in order, each with the whole text of its completions.

        Args:
            prompts: one prompt or a list of them, each a text, token ids, or a dict: see `Prompt`.
            sampling_params: for all prompts, or one per prompt; the default samples at temperature 1.
            use_tqdm: show a progress bar with tokens/s on stderr; None: if that is a terminal or a notebook.
            lora: name of the LoRA adapter for all prompts, or one (or None) per prompt.
            priority: for all prompts, or one per prompt: the lower, the sooner.

        Raises:
            InvalidRequestError, ContextLengthError: for any of the prompts; then nothing is generated.
            ConstraintError, GenerationError: one of the prompts could not be brought to its end; the others
                are given up.
            EngineDeadError: the LLM is closed, or its engine died.
        """
        many = _as_list(prompts)
        count = len(many)
        params = SamplingParams() if sampling_params is None else sampling_params
        requests = [
            self._request(*each)
            for each in zip(
                many,
                _per_prompt("sampling_params", params, count, SamplingParams),
                _per_prompt("lora", lora, count, str, type(None)),
                _per_prompt("priority", priority, count, int),
                strict=True,
            )
        ]
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        lora: str | Sequence[str | None] | None = None,
        priority: int | Sequence[int] = 0,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Return one finished output per conversation, in order.

        Args:
            messages: one conversation, which is a list of messages, or a list of conversations.
            sampling_params, use_tqdm, lora, priority: see `generate`.
            chat_template, add_generation_prompt, continue_final_message, tools: see `Tokenizer.render_chat`.
            chat_template_kwargs: further variables of the template.

        Raises:
            InvalidRequestError: there is no chat template, or it refuses the messages; and see `generate`.
        """
        single = len(messages) > 0 and isinstance(messages[0], Mapping)
        prompts = [
            self.tokenizer.encode_chat(
                list(conversation),
                tools=tools,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(chat_template_kwargs or {}),
            )
            for conversation in ([messages] if single else messages)
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora=lora, priority=priority)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["last", "mean"] = "last",
        use_tqdm: bool | None = None,
        lora: str | Sequence[str | None] | None = None,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Return one output per prompt, in order, each with its `embedding`: `[hidden_size]`, of length 1.

        Args:
            prompts, use_tqdm, lora, priority: see `generate`.
            pooling: "last" takes the last token's hidden state after the model's last norm, as causal models
                that were trained to embed do; "mean" the mean over all tokens.

        Raises:
            InvalidRequestError, ContextLengthError: for any of the prompts; then nothing is computed.
            EngineDeadError: the LLM is closed, or its engine died.
        """
        many = _as_list(prompts)
        requests = [
            dataclasses.replace(self._request(prompt, SamplingParams(), *more), pooling=pooling)
            for prompt, *more in zip(
                many,
                _per_prompt("lora", lora, len(many), str, type(None)),
                _per_prompt("priority", priority, len(many), int),
                strict=True,
            )
        ]
        return self._run(requests, use_tqdm)

    @property
    def loras(self) -> Mapping[str, str]:
        """Return the LoRA adapters that prompts may name: where each was read from, by name."""
        return self.engine.loras

    def add_lora(self, name: str, path: str) -> None:
        """Load a LoRA adapter in PEFT's format; see `Engine.add_lora`."""
        self.engine.add_lora_blocking(name, path)

    def remove_lora(self, name: str) -> None:
        """Let no more prompts name a LoRA adapter; see `Engine.remove_lora`."""
        self.engine.remove_lora_blocking(name)

    def close(self) -> None:
        """Stop the engine after its current step; calls that still run fail with EngineDeadError."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _request(self, prompt: Prompt, params: SamplingParams, lora: str | None, priority: int) -> Request:
        salt = None
        if isinstance(prompt, Mapping):
            prompt, salt = _from_dict(prompt)
        if not isinstance(prompt, Sequence):
            raise InvalidRequestError(
                f"A prompt must be a text, token ids or a dict; got {prompt!r}", param="prompt"
            )
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return Request(prompt_token_ids=ids, params=params, lora=lora, priority=priority, cache_salt=salt)

    def _run(self, requests: list[Request], use_tqdm: bool | None) -> list[RequestOutput]:
        gathering = self.engine.gather(requests)
        try:
            with _Progress(
                gathering, len(requests), _is_seen() if use_tqdm is None else use_tqdm
            ) as progress:
                while not gathering.wait(_REFRESH):
                    progress.refresh()
        finally:  # an interrupt must not leave requests to the next call
            gathering.close()
        return gathering.results()


class _Progress:
    """Draw the bar that vLLM draws: prompts done, and prompt and generated tokens a second so far."""

    def __init__(self, gathering: Gathering, total: int, visible: bool) -> None:
        from tqdm import tqdm  # transformers brings it

        self._gathering = gathering
        self._started = time.perf_counter()
        self._bar = tqdm(total=total, desc="Processed prompts", unit="prompt", disable=not visible)

    def refresh(self) -> None:
        """Draw how far it is."""
        if self._bar.disable:
            return
        seconds = time.perf_counter() - self._started
        rates = (self._gathering.prompt_tokens / seconds, self._gathering.generation_tokens / seconds)
        self._bar.set_postfix_str("in {:.1f} tok/s, out {:.1f} tok/s".format(*rates), refresh=False)
        self._bar.n = self._gathering.num_finished
        self._bar.refresh()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.refresh()
        self._bar.close()


def _is_seen() -> bool:
    """Tell whether someone looks at stderr: a terminal, or a notebook."""
    ipython = sys.modules.get("IPython")
    return sys.stderr.isatty() or (ipython is not None and ipython.get_ipython() is not None)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    many = list(prompts)
    return [many] if many and isinstance(many[0], int) else many


def _from_dict(prompt: Mapping[str, Any]) -> tuple[str | Sequence[int], str | None]:
    """Return the text or the ids of a prompt given as a dict, and its cache salt."""
    if unknown := sorted(prompt.keys() - _PROMPT_KEYS):
        known = ", ".join(f"`{key}`" for key in sorted(_PROMPT_KEYS))
        raise InvalidRequestError(f"A prompt holds `{unknown[0]}`; known are {known}", param="prompt")
    given = [prompt[key] for key in ("prompt_token_ids", "prompt") if prompt.get(key) is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            "A prompt given as a dict has either `prompt`, a text, or `prompt_token_ids`", param="prompt"
        )
    return given[0], prompt.get("cache_salt")


def _per_prompt(name: str, value: T | Sequence[T], count: int, *kinds: type) -> list[T]:
    """Return a value for each prompt."""
    if isinstance(value, kinds):
        return [value] * count  # type: ignore[list-item]
    each = list(value)  # type: ignore[arg-type]
    if len(each) != count:
        raise InvalidRequestError(f"{count} prompts came with {len(each)} values of `{name}`", param=name)
    return each
