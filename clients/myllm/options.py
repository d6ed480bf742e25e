"""What a call may say beside its subject, typed: the options of the call, and every model parameter.

The parameters' meaning and ranges are in `myllm.params`; their aliases (`max_new_tokens`, `stop_sequences`,
…) are read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

from .wire import Timeout

TimeoutLike = Timeout | float | None


class RequestOptions(TypedDict, total=False):
    """What every call takes.

    model: instead of the client's.
    timeout: instead of the client's: a `Timeout`, seconds for the whole call, or None for no limit.
    extra_body: fields to send as they are, for what a server has beyond all known parameters.
    extra_headers: headers of this request alone.
    session: calls of one session go to one server, whose prefix cache is then warm, as long as that has
        room: what is over its share goes to the next.
    cache: False keeps the call away from the client's cache.
    """

    model: str | None
    timeout: TimeoutLike
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    session: str | None
    cache: bool


class EmbedOptions(RequestOptions, total=False):
    """What an embedding call takes; `dimensions` of each vector, where the model can shorten them."""

    dimensions: int | None
    truncate_prompt_tokens: int | None
    user: str | None


class TokenizeOptions(RequestOptions, total=False):
    """What a call of the tokenizer takes: whatever changes what the prompt is."""

    add_special_tokens: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    documents: Sequence[Mapping[str, Any]] | None
    tools: Sequence[Mapping[str, Any]] | None
    reasoning_effort: str | None


class CallOptions(TokenizeOptions, total=False):
    """What a chat or completion call takes."""

    max_tokens: int | None
    max_new_tokens: int | None
    max_completion_tokens: int | None
    num_predict: int | None
    n_predict: int | None
    min_tokens: int | None
    min_new_tokens: int | None
    n: int | None
    num_return_sequences: int | None
    best_of: int | None
    temperature: float | None
    do_sample: bool | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    mirostat: Literal[0, 1, 2] | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    logit_bias: Mapping[int, float] | None
    bad_words: Sequence[str] | None
    allowed_token_ids: Sequence[int] | None
    seed: int | None
    watermark: bool | None
    use_beam_search: bool | None
    length_penalty: float | None
    stop: str | Sequence[str] | None
    stop_sequences: Sequence[str] | None
    stop_strings: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool | None
    no_stop_trim: bool | None
    ignore_eos: bool | None
    logprobs: bool | int | None
    top_logprobs: int | None
    top_n_tokens: int | None
    n_probs: int | None
    prompt_logprobs: int | None
    echo: bool | None
    return_full_text: bool | None
    suffix: str | None
    skip_special_tokens: bool | None
    spaces_between_special_tokens: bool | None
    json_schema: Mapping[str, Any] | str | type[BaseModel] | None
    guided_json: Mapping[str, Any] | str | type[BaseModel] | None
    regex: str | None
    guided_regex: str | None
    choice: Sequence[str] | None
    guided_choice: Sequence[str] | None
    grammar: str | None
    guided_grammar: str | None
    ebnf: str | None
    response_format: Mapping[str, Any] | None
    truncate_prompt_tokens: int | None
    truncate: int | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    priority: int | None
    user: str | None
