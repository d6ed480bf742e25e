"""Define what the engine raises: one tree, rooted in `EngineError`."""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything that the engine raises on purpose."""


class ModelLoadError(EngineError):
    """A model or its tokenizer could not be loaded; the message says what, why and what to do."""


class InvalidRequestError(EngineError, ValueError):
    """A request is wrong in itself and would fail again.

    Attributes:
        param: name of the offending parameter, as in `SamplingParams`, or None.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ConstraintError(InvalidRequestError):
    """A constraint cannot be followed any further in the middle of the text; what is there is incomplete."""


class GenerationError(EngineError):
    """The model's output for one request cannot be sampled from; other requests go on."""


class ContextLengthError(InvalidRequestError):
    """Prompt and completion together do not fit.

    Attributes:
        prompt_tokens: length of the prompt in tokens.
        max_tokens: completion length asked for, or None when it was left open.
        limit: the largest number of tokens that prompt and completion may have together.
    """

    def __init__(
        self,
        message: str,
        *,
        prompt_tokens: int,
        max_tokens: int | None,
        limit: int,
        param: str | None = "max_tokens",
    ) -> None:
        super().__init__(message, param=param)
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.limit = limit

    @classmethod
    def for_model(cls, *, prompt_tokens: int, max_tokens: int | None, limit: int) -> ContextLengthError:
        """Build the error for a request longer than the model's context.

        The first words are vLLM's: OpenAI clients look for "maximum context length".
        """
        if max_tokens is None:
            asked = (
                f"at least {prompt_tokens + 1} tokens ({prompt_tokens} in the prompt, 1 for the completion)"
            )
            advice = "Please shorten the prompt."
        elif max_tokens == 0:
            asked = f"{prompt_tokens} tokens in the prompt"
            advice = "Please shorten the prompt."
        else:
            asked = (
                f"{prompt_tokens + max_tokens} tokens "
                f"({prompt_tokens} in the prompt, {max_tokens} for the completion)"
            )
            advice = "Please shorten the prompt or lower `max_tokens`."
        return cls(
            f"This model's maximum context length is {limit} tokens. "
            f"However, you requested {asked}. {advice}",
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            limit=limit,
            param="max_tokens" if max_tokens else "prompt",
        )


class QueueFullError(EngineError):
    """`EngineConfig.max_queue` requests wait already; try again later."""


class EngineDeadError(EngineError):
    """The engine was closed or its step loop died; `__cause__` holds the reason where there is one."""
