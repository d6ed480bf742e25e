"""Shape an answer: which calls, thoughts and text it may hold, and how they are told apart.

An answer is thoughts, if a reasoning parser is set, and behind them text or calls of tools. A constraint
holds for what is behind the thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...constraint import Structured
from ...request import CompletionOutput, SamplingParams
from ...tokenizer import Tokenizer
from .. import reasoning, tools
from ..errors import invalid
from ..reasoning import Opening, ReasoningParser, ReasoningReader, ThoughtLimit
from ..settings import ServerSettings
from ..tools import Arguments, Call, Event, PlainNamedParser, PlainParser, ToolParser, ToolReader
from .chat_request import ChatRequest
from .deltas import Delta, ToolCallDelta
from .tool_request import ToolUse

# Of the prompt's end, which shows where the answer begins: more than any marker has.
_PROMPT_END = 32


class AnswerForm:
    """Know what the answers to one request look like.

    Args:
        body: the request.
        settings: which parsers the server has.
        tokenizer: of the model.

    Raises:
        ProblemError: the server is not set up for what is asked for.

    Attributes:
        reasons: the answers are searched for thoughts.
    """

    def __init__(self, body: ChatRequest, settings: ServerSettings, tokenizer: Tokenizer) -> None:
        self._use = body.tool_use
        self._tokenizer = tokenizer
        self._tools = None if self._use is None else _tool_parser(self._use, settings, tokenizer)
        self._thoughts: ReasoningParser | None = None
        if settings.reasoning_parser is not None:
            self._thoughts = reasoning.find(settings.reasoning_parser)
        self.reasons = self._thoughts is not None
        self._limit = _thought_limit(body.thinking_token_budget, self._thoughts, tokenizer)
        self._opening: Opening = "closed"
        special = tokenizer.special_tokens
        markers = {
            *(self._tools.markers if self._tools is not None else ()),
            *(self._thoughts.markers if self._thoughts is not None else ()),
        }
        self._kept = markers & special.keys()
        # If markers are special tokens, these are kept in the text, and the others taken out again here.
        self._hidden = None
        if self._kept and (others := special.keys() - markers) and body.skip_special_tokens is not False:
            self._hidden = re.compile("|".join(map(re.escape, sorted(others, key=len, reverse=True))))

    def params(self, params: SamplingParams, prompt_token_ids: list[int]) -> SamplingParams:
        """Return the parameters that make the model answer in this form.

        Args:
            params: those of the request.
            prompt_token_ids: what is answered.

        Raises:
            InvalidRequestError, ProblemError: the form cannot be enforced.
        """
        special = self._tokenizer.special_tokens
        reserved = ""
        if self._thoughts is not None:
            end = self._tokenizer.decode(prompt_token_ids[-_PROMPT_END:], skip_special_tokens=False)
            self._opening = self._thoughts.opening(end)
            reserved = self._thoughts.reserved(self._opening, special)
        structured = params.structured
        answer, param = self._answer(structured, reserved)
        if answer is None and self._limit is not None:
            answer, param = {"type": "any_text"}, "thinking_token_budget"
        if answer is not None:
            if self._thoughts is not None:
                is_free = self._is_free and structured is None
                answer = self._thoughts.before(
                    answer,
                    self._opening,
                    special_tokens=special,
                    is_free=is_free and self._limit is None,
                    limit=self._limit,
                    instead=self._instead(answer, reserved, is_free=is_free),
                )
            structured = Structured.structural_tag({"format": answer}, param=param)
        return replace(
            params, structured=structured, skip_special_tokens=params.skip_special_tokens and not self._kept
        )

    def reader(self) -> AnswerReader:
        """Return what reads one answer."""
        tool_reader = None
        if self._use is not None and self._tools is not None:
            tool_reader = self._tools.reader(self._use.tools)
        thoughts = None
        if self._thoughts is not None:
            thoughts = ReasoningReader(self._thoughts, self._opening)
        return AnswerReader(self, thoughts, tool_reader)

    def call_id(self) -> str:
        """Return the id of a new call."""
        assert self._tools is not None
        return self._tools.call_id()

    def visible(self, text: str) -> str:
        """Return a piece of text without the special tokens that were kept only for their markers' sake."""
        return text if self._hidden is None else self._hidden.sub("", text)

    def num_tokens(self, token_ids: list[int], text: str) -> int:
        """Return how many of an answer's tokens make its first text, those without text included."""
        wanted = len(text.encode())
        size = 0
        for count, token_id in enumerate(token_ids, start=1):
            if not self._is_left_out(token_id):
                size += len(self._tokenizer.token_bytes(token_id))
            if size >= wanted:
                return count
        return len(token_ids)

    @property
    def reports_calls(self) -> bool:
        """Tell whether an answer with calls ends for them; one that had to be this call ends as any other."""
        return self._use is not None and self._use.mode != "named"

    @property
    def _is_free(self) -> bool:
        """Tell whether text may come before calls, and begin with anything."""
        return (
            self._use is not None
            and self._tools is not None
            and self._use.mode == "auto"
            and not self._tools.anchored
        )

    def _answer(self, structured: Structured | None, reserved: str) -> tuple[dict[str, Any] | None, str]:
        """Return the format of what follows thoughts, and the field it comes from.

        The format is None where the request's own constraint, if any, says it all.
        """
        if self._use is None or self._tools is None:
            if structured is None or self._thoughts is None:
                return None, ""
            return _as_format(structured), structured.param
        use = self._use
        try:
            calls = self._tools.calls(use.tools, many=use.many)
            if use.mode == "auto":
                if structured is None:
                    return self._tools.free(use.tools, many=use.many, reserved=reserved), "tools"
                return {"type": "or", "elements": [calls, _as_format(structured)]}, "tools"
        except ValueError as error:
            raise invalid(f"The tools cannot be called: {error}", "tools") from None
        # OpenAI's `response_format` is about a text, of which there is none beside these calls.
        if structured is not None and structured.param != "response_format":
            raise invalid(
                f"`{structured.param}` constrains a text, and `tool_choice` leaves none: give one of them",
                structured.param,
            )
        return calls, "tools"

    def _instead(self, answer: dict[str, Any], reserved: str, *, is_free: bool) -> dict[str, Any] | None:
        """Return the format of an answer without thoughts; None: as of one behind them.

        With a limit of thoughts, text that begins as they do must not pass for an answer without any.
        """
        if self._limit is None or not reserved:
            return None
        if answer["type"] == "any_text":
            return tools.text_not_beginning_with(reserved)
        if not is_free or self._use is None or self._tools is None:
            return None
        calls = self._tools.calls(self._use.tools, many=self._use.many)
        begun = {"type": "regex", "pattern": rf"\s*[^\s{re.escape(reserved)}]"}
        return tools.either(calls, tools.sequence(begun, answer), {"type": "regex", "pattern": r"\s*"})

    def _is_left_out(self, token_id: int) -> bool:
        return self._tokenizer.is_special(token_id) and self._tokenizer.token_text(token_id) not in self._kept


class AnswerReader:
    """Read one answer of the engine's as it comes.

    Args:
        form: what it looks like.
        thoughts: takes thoughts and text apart; None: there are no thoughts.
        calls: takes text and calls apart; None: there are no calls.
    """

    def __init__(self, form: AnswerForm, thoughts: ReasoningReader | None, calls: ToolReader | None) -> None:
        self._form = form
        self._thoughts = thoughts
        self._calls = calls
        self._num_calls = 0
        # Of the answer so far, until it is known what of it are thoughts.
        self._text = ""
        self._token_ids: list[int] = []
        self._num_reasoning: int | None = None

    @property
    def reasoning_tokens(self) -> int:
        """Return how many tokens the thoughts have taken, with what begins and ends them."""
        return len(self._token_ids) if self._num_reasoning is None else self._num_reasoning

    def read(self, output: CompletionOutput) -> Delta:
        """Return what an output means."""
        delta = Delta(
            output.index,
            token_ids=output.token_ids,
            logprobs=output.logprobs or [],
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )
        ends = output.finish_reason is not None
        text = self._form.visible(output.text)
        if self._thoughts is not None:
            delta.reasoning, text = self._take_thoughts(self._thoughts, text, output.token_ids, ends=ends)
        if self._calls is None:
            delta.text = text
            return delta
        self._add(self._calls.feed(text), delta)
        if ends:
            self._add(self._calls.finish(), delta)
            if self._num_calls and delta.finish_reason == "stop" and self._form.reports_calls:
                delta.finish_reason = "tool_calls"
        return delta

    def _take_thoughts(
        self, thoughts: ReasoningReader, text: str, token_ids: list[int], *, ends: bool
    ) -> tuple[str, str]:
        if self._num_reasoning is None:
            self._text += text
            self._token_ids += token_ids
        reasoning, text = thoughts.feed(text)
        if ends:
            more_reasoning, more_text = thoughts.finish()
            reasoning, text = reasoning + more_reasoning, text + more_text
        if self._num_reasoning is None and thoughts.thought is not None:
            thought = self._text[: thoughts.thought]
            self._num_reasoning = self._form.num_tokens(self._token_ids, thought) if thought else 0
        return reasoning, text

    def _add(self, events: list[Event], delta: Delta) -> None:
        for event in events:
            if isinstance(event, Call):
                self._num_calls += 1
                call = ToolCallDelta(self._num_calls - 1, self._form.call_id(), event.name)
                delta.tool_calls.append(call)
            elif isinstance(event, Arguments):
                index = self._num_calls - 1
                if not delta.tool_calls or delta.tool_calls[-1].index != index:
                    delta.tool_calls.append(ToolCallDelta(index))
                delta.tool_calls[-1].arguments += event.text
            else:
                delta.text += event


def _tool_parser(use: ToolUse, settings: ServerSettings, tokenizer: Tokenizer) -> ToolParser:
    if use.mode == "auto" and not settings.enable_auto_tool_choice:
        raise invalid(
            'The `tool_choice` "auto", the default with `tools`, needs a server with '
            '--enable-auto-tool-choice and --tool-call-parser; every server takes "required", '
            'a function to call, and "none"',
            "tool_choice",
        )
    if settings.tool_call_parser is not None:
        return tools.find(settings.tool_call_parser)(tokenizer.special_tokens)
    return PlainNamedParser() if use.mode == "named" else PlainParser()


def _thought_limit(
    budget: int | None, thoughts: ReasoningParser | None, tokenizer: Tokenizer
) -> ThoughtLimit | None:
    """Return how long thoughts may be; None: as long as the answer.

    Raises:
        ProblemError: a budget is set, and nobody can tell where thoughts end.
    """
    if budget is None or budget == -1:
        return None
    param = "thinking_token_budget"
    if thoughts is None:
        raise invalid(f"`{param}` needs a server with --reasoning-parser: nobody tells thoughts apart", param)
    ends = [tokenizer.encode(end, add_special_tokens=False) for end in thoughts.ends]
    if any(len(end) != 1 for end in ends):
        raise invalid(
            f"`{param}` needs a model that ends its thoughts with one token, and {thoughts.ends[0]!r} are "
            f"{len(ends[0])} here",
            param,
        )
    return ThoughtLimit(max_tokens=budget, end_token_ids=tuple(end[0] for end in ends))


def _as_format(structured: Structured) -> dict[str, Any]:
    """Return a constraint as a format of structural tags.

    Raises:
        ProblemError: it is malformed.
    """
    value = structured.value
    match structured.kind:
        case "json_schema":
            own = {} if structured.whitespace is None else {"whitespace_pattern": structured.whitespace}
            return {"type": "json_schema", "json_schema": json.loads(value), **own}
        case "regex":
            return {"type": "regex", "pattern": value}
        case "choice":
            # One lexeme, as without tags: many alternatives are more than the parser takes.
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(value))
            return {"type": "grammar", "grammar": f"start: TEXT\nTEXT: {texts}\n"}
        case "grammar":
            return {"type": "grammar", "grammar": value}
        case "structural_tag":
            return _tag_format(json.loads(value), structured.param)


def _tag_format(document: Mapping[str, Any], param: str) -> dict[str, Any]:
    """Return the newer form's format of a structural tag in either form."""
    if isinstance(document.get("format"), dict):
        return document["format"]
    structures = document.get("structures")
    if not isinstance(structures, list) or not all(isinstance(item, dict) for item in structures):
        raise invalid(f"`{param}` needs `format`, or `structures` and `triggers`", param)
    tags = [
        {
            **{name: value for name, value in item.items() if name != "schema"},
            "content": {"type": "json_schema", "json_schema": item.get("schema")},
        }
        for item in structures
    ]
    return {"type": "triggered_tags", "triggers": document.get("triggers"), "tags": tags}
