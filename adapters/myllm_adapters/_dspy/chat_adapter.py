"""DSPy's ChatAdapter with its format enforced by the server.

`dspy.ChatAdapter` asks for `[[ ## field ## ]]` headers in the prompt, and asks a second time, as JSONAdapter,
when the model did not keep to them. Here the format is a regular expression, which the server enforces token
by token, and one request does.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from dspy import adapters

from myllm import params

from .lm import LM
from .parameters import packed

# A text that is not empty, has no `[[ ##` in it, which begins the next header, and does not end in an open
# bracket. No server's engine has lookahead, so it is spelled out what may follow a bracket.
_NO_HEADER = r"\[(?:\[+ #?\[)*(?:[^\[]|\[+[^\[ ]|\[+ [^#\[]|\[+ #[^#\[])"
_TEXT = rf"(?:[^\s\[]|{_NO_HEADER})(?:[^\[]|{_NO_HEADER})*"
# Digits have an end: a model that cannot stop would write them until `max_tokens`.
_INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"
_SPECIAL, _ESCAPED = r"([\\.^$|?*+()\[\]{}])", r"\\\1"
_PATTERNS: dict[Any, str] = {
    str: _TEXT,
    int: _INTEGER,
    float: rf"{_INTEGER}(?:\.[0-9]{{1,17}})?",
    bool: "(?:True|False)",
    dict: rf"\{{(?:\"(?:[^\[]|{_NO_HEADER})*)?\}}",  # what is in it is the model's affair
}


class ChatAdapter(adapters.ChatAdapter):
    """`dspy.ChatAdapter`, whose format the server enforces; for the LMs of this package.

        dspy.configure(lm=HFClientVLLM("smollm2", port=8000), adapter=ChatAdapter())

    Outputs of the types `str`, `int`, `float`, `bool`, `Literal`, `Enum` and `dict` are constrained by a
    regular expression (a `str` is then never empty, and a `dict` begins and ends like one), and a signature
    with any other type is sent as JSONAdapter sends it, by a JSON Schema. No call is repeated: an answer that
    `max_tokens` cuts off is an `AdapterParseError`. Left as `dspy.ChatAdapter` has it: other LMs, signatures
    with `dspy.ToolCalls`, and calls that bring a constraint of their own.

    Args: as `dspy.ChatAdapter`.
    """

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> Any:
        """Answer with one request; see `dspy.Adapter`."""
        if not _is_ours(lm, lm_kwargs, signature):
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)
        pattern = answer_pattern(signature)
        if pattern is None:
            return self._json()(lm, lm_kwargs, signature, demos, inputs)
        constrained = {**lm_kwargs, "regex": pattern}
        # Not `dspy.ChatAdapter`'s, which is what asks again.
        return adapters.Adapter.__call__(self, lm, constrained, signature, demos, inputs)

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> Any:
        """See `__call__`."""
        if not _is_ours(lm, lm_kwargs, signature):
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)
        pattern = answer_pattern(signature)
        if pattern is None:
            return await self._json().acall(lm, lm_kwargs, signature, demos, inputs)
        constrained = {**lm_kwargs, "regex": pattern}
        return await adapters.Adapter.acall(self, lm, constrained, signature, demos, inputs)

    def _json(self) -> adapters.JSONAdapter:
        return adapters.JSONAdapter(
            callbacks=self.callbacks,
            use_native_function_calling=self.use_native_function_calling,
            parallel_tool_calls=self.parallel_tool_calls,
        )


def answer_pattern(signature: Any) -> str | None:
    """Return the regular expression of ChatAdapter's answers, or None: a field's type has none."""
    parts = []
    for name, field in signature.output_fields.items():
        value = _value_pattern(field.annotation)
        if value is None:
            return None
        parts.append(rf"\[\[ ## {name} ## \]\]\n{value}\n\n")
    return "".join(parts) + r"\[\[ ## completed ## \]\]"


def _is_ours(lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> bool:
    """Whether the format of this call is for us to enforce."""
    if not isinstance(lm, LM):
        return False
    if adapters.ToolCalls in [field.annotation for field in signature.output_fields.values()]:
        return False
    given = {**lm.kwargs, **packed(lm.kwargs), **lm_kwargs}
    return all(given.get(name) is None for name in params.SHAPES)


def _value_pattern(annotation: Any) -> str | None:
    if get_origin(annotation) is Literal:
        return _one_of(get_args(annotation))
    if isinstance(annotation, enum.EnumMeta):  # DSPy reads a text as a value, else as a name
        members: list[enum.Enum] = list(annotation)
        return _one_of(m.value if isinstance(m.value, str) else m.name for m in members)
    return _PATTERNS.get(dict if get_origin(annotation) is dict else annotation)


def _one_of(values: Iterable[Any]) -> str | None:
    texts = [str(value) for value in values]
    if not all(text and text == text.strip() for text in texts):
        return None  # DSPy would strip it, and not know it again
    # Escaped as Python's engine and Rust's have it in common.
    return f"(?:{'|'.join(re.sub(_SPECIAL, _ESCAPED, text) for text in texts)})"
