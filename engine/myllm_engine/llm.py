"""Run an engine offline: prompts in, completions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import EngineConfig
from .engine import Engine
from .errors import InvalidRequestError
from .request import Request, RequestOutput, SamplingParams

Prompt = str | list[int]


class LLM:
    """Generate completions for lists of prompts, batched continuously.

    Args:
        model: as in `EngineConfig`.
        config: further fields of `EngineConfig`.

    Raises:
        ModelLoadError: from the constructor.

    Example:
        llm = LLM("smollm2")
        print(llm.generate("Once upon a time", SamplingParams(max_tokens=16))[0].outputs[0].text)
    """

    def __init__(self, model: str = "smollm2", **config: Any) -> None:
        self.engine = Engine(EngineConfig(model=model, **config))
        self.tokenizer = self.engine.tokenizer

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Return one finished output per prompt, in order, each with the whole text of its completions.

        Args:
            prompts: one text, or a list of texts or of lists of token ids.
            params: for all prompts, or one per prompt.

        Raises:
            InvalidRequestError, ContextLengthError: for any of the prompts; then nothing is generated.
            ConstraintError, GenerationError: one of the prompts could not be brought to its end.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        if params is None:
            params = SamplingParams()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InvalidRequestError(f"{len(prompts)} prompts came with {len(each)} sampling parameters")
        requests = [
            Request(
                prompt_token_ids=self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt,
                params=item,
            )
            for prompt, item in zip(prompts, each, strict=True)
        ]
        return self._run(requests)

    def chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        params: SamplingParams | None = None,
        **template: Any,
    ) -> list[RequestOutput]:
        """Return one finished output per conversation, in order.

        Args:
            messages: one conversation, or a list of them.
            params: for all of them.
            template: further arguments of `Tokenizer.render_chat`.
        """
        many = messages if messages and isinstance(messages[0], list) else [messages]
        return self.generate([self.tokenizer.encode_chat(each, **template) for each in many], params)

    def _run(self, requests: list[Request]) -> list[RequestOutput]:
        for prepared in [self.engine.prepare(request) for request in requests]:
            self.engine.add_request(prepared)
        results: dict[str, RequestOutput] = {}
        try:
            while self.engine.has_unfinished():
                for output in self.engine.step():
                    if output.error is not None:
                        raise output.error
                    if output.request_id in results:
                        results[output.request_id].extend(output)
                    else:
                        results[output.request_id] = output
        finally:  # an interrupt must not leave requests to the next call
            for request in requests:
                self.engine.abort(request.request_id)
        return [results[request.request_id] for request in requests]
